"""The handler of the small shop behind this package's middleware, in four ways."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from flask import Flask, make_response, request

from open_idempotency import events
from open_idempotency.asgi import App, IdempotencyMiddleware, Receive, Scope, Send
from open_idempotency.fastapi import IdempotencyMiddleware as FastAPIMiddleware
from open_idempotency.flask import Idempotency
from open_idempotency.wsgi import IdempotencyMiddleware as WSGIMiddleware
from tests.conformance.shop import PATIENCE, SLOW


class Handler:
    """Charges; ``/slow`` waits until a duplicate was refused, ``/failing`` is a 503.

    During the first slow request a retry arrives, during the second no request, and during the third another payload.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._slow_runs = 0
        self._turned_away = {0: threading.Event(), 2: threading.Event()}

    def listen(self, event: events.Event) -> None:
        """End a slow request once the request that came during it has been refused."""
        if isinstance(event, events.Conflicted):
            self._turned_away[0].set()
        elif isinstance(event, events.KeyReused) and self._slow_runs >= 2:
            self._turned_away[2].set()

    def charge(self, path: str) -> tuple[int, dict[str, int], dict[str, str]]:
        """The status, body and headers of a charge."""
        if path == "/slow":
            turn, self._slow_runs = self._slow_runs, self._slow_runs + 1
            if turn in self._turned_away:
                self._turned_away[turn].wait(PATIENCE)
                time.sleep(SLOW)
        number = next(self._numbers)
        fields = {"Location": f"/charges/{number}", "Set-Cookie": f"last={number}"}
        return 503 if path == "/failing" else 201, {"charge": number}, fields

    def policy(self, required: bool) -> dict[str, Any]:
        """The policy of each middleware."""
        return {"required": required, "on_event": self.listen}


def plain_asgi(required: bool) -> App:
    """The shop as a plain ASGI application."""
    handler = Handler()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        status, body, fields = await asyncio.to_thread(handler.charge, scope["path"])
        headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    return IdempotencyMiddleware(app, "memory://", **handler.policy(required))


def plain_wsgi(required: bool) -> Callable[..., Iterable[bytes]]:
    """The shop as a plain WSGI application."""
    handler = Handler()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, body, fields = handler.charge(environ["PATH_INFO"])
        start_response(f"{status} Whatever", list(fields.items()))
        return [json.dumps(body).encode()]

    return WSGIMiddleware(app, "memory://", **handler.policy(required))


def fastapi(required: bool) -> App:
    """The shop as a FastAPI application."""
    handler = Handler()
    app = FastAPI()
    app.add_middleware(FastAPIMiddleware, backend="memory://", **handler.policy(required))

    @app.post("/{name}")
    def charge(name: str, order: dict[str, Any]) -> JSONResponse:
        status, body, fields = handler.charge(f"/{name}")
        return JSONResponse(body, status, fields)

    return app


def flask(required: bool) -> Callable[..., Iterable[bytes]]:
    """The shop as a Flask application."""
    handler = Handler()
    app = Flask("shop")
    Idempotency(app, backend="memory://", **handler.policy(required))

    @app.post("/<name>")
    def charge(name: str) -> Any:
        status, body, fields = handler.charge(request.path)
        return make_response(body, status, fields)

    return app
