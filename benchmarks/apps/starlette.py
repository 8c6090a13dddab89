"""Starlette's form of the endpoint."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.apps.asgi_layer import Layer
from benchmarks.interface import HELD, HOLD, PATH, STATUS, App, answer
from open_idempotency.starlette import IdempotencyMiddleware

COLOUR = "asgi"


async def charge(request: Request) -> Response:
    """Read the order, answer with as much."""
    body = await request.body()
    if HOLD in request.headers:
        await HELD.wait_async()
    return Response(answer(len(body)), STATUS, media_type="application/json")


def bare() -> App:
    """See ``interface.Application``."""
    return Starlette(routes=[Route(PATH, charge, methods=["POST"])])


def layer() -> App:
    """See ``interface.Application``."""
    app = bare()
    app.add_middleware(Layer)
    return app


def ours(backend_url: str) -> App:
    """See ``interface.Application``."""
    app = bare()
    app.add_middleware(IdempotencyMiddleware, backend=backend_url)
    return app
