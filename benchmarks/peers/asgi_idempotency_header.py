"""asgi-idempotency-header's middleware, around FastAPI."""

from __future__ import annotations

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Colour, Kind
from benchmarks.peers.loading import installed, load, named

NAME = "asgi-idempotency-header"
COLOUR: Colour = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
LACKS = (
    "does not look at the request: its body, path and method are not compared",
    "JSON answers in one message only, replayed in other bytes; header fields are not stored",
    "looks first and claims after, in two calls",
    "no lease: a request that dies holds its key for ever",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("idempotency_header_middleware")


def make(backend: BackendName, url: str) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("idempotency_header_middleware", "IdempotencyHeaderMiddleware")
    memory, redis = named("idempotency_header_middleware.backends", "MemoryBackend", "RedisBackend")
    app = fastapi.bare()
    if backend == "memory":
        app.add_middleware(middleware, backend=memory())
    else:
        app.add_middleware(middleware, backend=redis(redis=load("redis.asyncio").from_url(url)))
    return app
