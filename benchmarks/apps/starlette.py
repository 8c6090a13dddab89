"""Starlette's form of the endpoint."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.apps.asgi_layer import Layer
from benchmarks.interface import HELD, HOLD, METHODS, OTHER_PATH, PATH, STATUS, App, Reply, body_of
from open_idempotency.starlette import IdempotencyMiddleware

STYLE = "asgi"


def for_starlette(reply: Reply) -> Response:
    """A script's reply."""
    if reply.streamed:
        return StreamingResponse(iter(reply.parts), reply.status, reply.headers)
    return Response(b"".join(reply.parts), reply.status, reply.headers)


async def charge(request: Request) -> Response:
    """Read the order, respond with as much."""
    body = await request.body()
    if HOLD in request.headers:
        reply = await HELD.wait_async()
        if reply is not None:
            return for_starlette(reply)
    return Response(body_of(len(body)), STATUS, media_type="application/json")


def bare() -> App:
    """See ``interface.Application``."""
    return Starlette(routes=[Route(path, charge, methods=list(METHODS)) for path in (PATH, OTHER_PATH)])


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
