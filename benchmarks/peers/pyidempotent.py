"""pyidempotent's decorator, on a view of FastAPI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from benchmarks.apps.fastapi import routed
from benchmarks.interface import STATUS, App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load
from benchmarks.peers.returned import charge

NAME = "pyidempotent"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("new-key", "replay")
LACKS = (
    "stores what the view returns, not the response; its status and headers are made anew",
    "compares the view's arguments, not the request: here there are none",
    "a request without a key is an error, and one in flight polls for 10 s",
    "no lease, no token, no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("pyidempotent")


def make(backend: BackendName, url: str, view: Callable[..., Any] = charge) -> App:
    """See ``interface.Peer``."""
    if backend == "memory":
        chosen = load("pyidempotent.backends.memory").MemoryBackend()
    else:
        chosen = load("pyidempotent.backends.redis").RedisBackend(load("redis.asyncio").from_url(url))
    app = routed(load("pyidempotent").idempotent(backend=chosen, ttl=24 * 3600)(view), status_code=STATUS)
    for error, status in (("IdempotencyConflict", 422), ("IdempotencyProcessing", 409), ("IdempotencyKeyMissing", 400)):
        app.add_exception_handler(getattr(load("pyidempotent.exceptions"), error), _refuse_with(status))
    return app


def _refuse_with(status: int) -> Callable[..., Any]:
    async def refuse(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, status)

    return refuse
