"""asgi-idempotency-header's middleware, around FastAPI."""

from __future__ import annotations

from typing import Any

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load, named

NAME = "asgi-idempotency-header"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
LACKS = (
    "does not look at the request: its body, path and method are not compared",
    "JSON responses in one message only, replayed in other bytes; headers are not stored",
    "looks first and claims after, in two calls",
    "no lease: a request that dies holds its key for ever",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("idempotency_header_middleware")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("idempotency_header_middleware", "IdempotencyHeaderMiddleware")
    memory, redis = named("idempotency_header_middleware.backends", "MemoryBackend", "RedisBackend")
    app = fastapi.bare()
    if backend == "memory":
        app.add_middleware(middleware, backend=memory(), **documented)
    else:
        app.add_middleware(middleware, backend=redis(redis=load("redis.asyncio").from_url(url)), **documented)
    return app
