"""FastAPI's form of the endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from benchmarks.apps.asgi_layer import Layer
from benchmarks.apps.starlette import for_starlette
from benchmarks.interface import HELD, HOLD, METHODS, OTHER_PATH, PATH, STATUS, App, body_of
from open_idempotency.fastapi import IdempotencyMiddleware

STYLE = "asgi"


async def charge(request: Request) -> Response:
    """Read the order, respond with as much."""
    body = await request.body()
    if HOLD in request.headers:
        reply = await HELD.wait_async()
        if reply is not None:
            return for_starlette(reply)
    return Response(body_of(len(body)), STATUS, media_type="application/json")


def routed(view: Callable[..., Any], **options: Any) -> App:
    """An application of FastAPI with ``view`` as the endpoint."""
    app = FastAPI()
    for path in (PATH, OTHER_PATH):
        app.api_route(path, methods=list(METHODS), **options)(view)
    return app


def bare() -> App:
    """See ``interface.Application``."""
    return routed(charge)


def layer() -> App:
    """See ``interface.Application``."""
    app = bare()
    app.add_middleware(Layer)
    return app


def ours(backend_url: str, **documented: Any) -> App:
    """See ``interface.Application``."""
    app = bare()
    app.add_middleware(IdempotencyMiddleware, backend=backend_url, **documented)
    return app
