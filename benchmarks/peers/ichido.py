"""ichido's middleware, around FastAPI."""

from __future__ import annotations

from typing import Any

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load, named

NAME = "ichido"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("redis",)
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
LACKS = (
    "the response leaves before it is stored",
    "no lease: a request that dies holds its key for a day",
    "no token: a stale owner overwrites",
    "5xx responses are stored",
    "headers in a dict; no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("ichido")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    middleware, store = named("ichido", "IchidoMiddleware", "RedisIdempotencyStore")
    client = load("redis.asyncio").from_url(url, decode_responses=True)
    app = fastapi.bare()
    app.add_middleware(middleware, store=store(redis_client=client, ttl=86400), **documented)
    return app
