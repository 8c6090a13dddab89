"""One small application on each adapter, for behaviour that is the same on all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from django.http import HttpResponse
from django.test import AsyncClient, Client
from fastapi import FastAPI
from fastapi import Response as FastAPIResponse
from flask import Flask, make_response
from werkzeug.test import Client as WsgiClient

from open_idempotency import asgi, fastapi, wsgi
from open_idempotency.flask import Idempotency
from tests.django_project.calls import post, project

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
FIELDS = {"idempotency-key": KEY}

Pairs = Sequence[tuple[str, str]]


class Reply:
    """A response of any adapter. ``headers``: by lower-case name; the last one of several."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    @property
    def problem(self) -> dict[str, Any]:
        """The JSON body."""
        return dict(json.loads(self.body))


Send = Callable[[], Reply]


def post_asgi(app: Any) -> Reply:
    """One POST with the key, in process, to an ASGI application."""

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/0", headers=FIELDS)

    response = asyncio.run(send())
    return Reply(response.status_code, response.headers.items(), response.content)


def post_flask(app: Flask) -> Reply:
    """One POST with the key, by Flask's own client, which keeps no cookies."""
    response = app.test_client(use_cookies=False).post("/0", headers=FIELDS)
    return Reply(response.status_code, response.headers.items(), response.data)


def _asgi(backend: Any, sent: Pairs, **policy: Any) -> Send:
    headers = [(name.encode(), value.encode()) for name, value in sent]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"ran"})

    protected = asgi.IdempotencyMiddleware(app, backend, **policy)
    return lambda: post_asgi(protected)


def _fastapi(backend: Any, sent: Pairs, **policy: Any) -> Send:
    app = FastAPI()
    app.add_middleware(fastapi.IdempotencyMiddleware, backend=backend, **policy)

    def view() -> FastAPIResponse:
        response = FastAPIResponse("ran", 201)
        for name, value in sent:
            response.headers.append(name, value)
        return response

    app.post("/0", status_code=201)(view)
    return lambda: post_asgi(app)


def _wsgi(backend: Any, sent: Pairs, **policy: Any) -> Send:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("201 Created", [("Content-Type", "text/plain"), *sent])
        return [b"ran"]

    protected = wsgi.IdempotencyMiddleware(app, backend, **policy)

    def send() -> Reply:
        response = WsgiClient(protected, use_cookies=False).post("/0", headers=FIELDS)
        return Reply(response.status_code, response.headers.items(), response.data)

    return send


def _flask(backend: Any, sent: Pairs, **policy: Any) -> Send:
    app = Flask("shop")

    def view() -> Any:
        response = make_response("ran", 201)
        for name, value in sent:
            response.headers.add(name, value)
        return response

    app.post("/0")(view)
    Idempotency(app, backend, **policy)
    return lambda: post_flask(app)


def _django(awaited: bool, backend: Any, sent: Pairs, **policy: Any) -> Send:
    fields = {f"IDEMPOTENCY_{name.upper()}": value for name, value in policy.items()}

    def view(request: Any) -> HttpResponse:
        response = HttpResponse("ran", status=201)
        for name, value in sent:
            if name == "Set-Cookie":
                response.cookies.load(value)
            else:
                response.headers[name] = value
        return response

    async def post_awaited() -> Any:
        return await post(AsyncClient())

    def send() -> Reply:
        with project(view, IDEMPOTENCY_BACKEND=backend, **fields):
            response = asyncio.run(post_awaited()) if awaited else post(Client())
        cookies = [("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()]
        return Reply(response.status_code, [*response.items(), *cookies], response.content)

    return send


def _django_awaited(backend: Any, sent: Pairs, **policy: Any) -> Send:
    return _django(True, backend, sent, **policy)


def _django_blocking(backend: Any, sent: Pairs, **policy: Any) -> Send:
    return _django(False, backend, sent, **policy)


#: by name: takes a backend, headers of the view's response, and policy fields; returns a sender of requests
ADAPTERS: dict[str, Callable[..., Send]] = {
    "asgi": _asgi,
    "fastapi": _fastapi,
    "wsgi": _wsgi,
    "flask": _flask,
    "django": _django_blocking,
    "django under asgi": _django_awaited,
}
