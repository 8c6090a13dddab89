"""fastapi-idempotency-key's middleware, around FastAPI."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load, named

NAME = "fastapi-idempotency-key"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
#: of SQLite's settings it leaves FULL, and has no option for another
BACKENDS: tuple[BackendName, ...] = ("memory", "sqlite-full", "redis")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
#: on Redis completing forgets the fingerprint, so every replay is refused as another request (422)
WRONG: tuple[tuple[BackendName, Kind], ...] = (("redis", "replay"),)
LACKS = (
    "the response leaves before it is stored",
    "no token: a stale owner overwrites",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("fastapi_idempotency_key", "aiosqlite")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("fastapi_idempotency_key", "IdempotencyMiddleware")
    app = fastapi.bare()
    app.add_middleware(middleware, backend=_backend(backend, url), **documented)
    return app


def _backend(backend: BackendName, url: str) -> Any:
    backends = load("fastapi_idempotency_key.backends")
    if backend == "memory":
        return backends.MemoryBackend()
    if backend == "redis":
        return backends.RedisBackend(redis_url=url)
    return backends.SQLiteBackend(unquote(urlsplit(url).path[1:]) + ".fastapi-idempotency-key")
