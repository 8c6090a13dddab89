"""fastidempotent's middleware, around FastAPI; its backends are opened in the application's lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load, named

NAME = "fastidempotent"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "sqlite-full", "redis", "postgres")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
LACKS = (
    "looks first and claims after, in two calls",
    "a 5xx is stored and replayed",
    "no token: a stale owner overwrites",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("fastidempotent", "sqlalchemy", "aiosqlite", "asyncpg")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("fastidempotent", "IdempotencyMiddleware")
    chosen = _backend(backend, url)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if hasattr(chosen, "init"):
            await chosen.init()
        yield
        await chosen.close()

    app = fastapi.bare()
    app.router.lifespan_context = lifespan
    app.add_middleware(middleware, backend=chosen, **{"optional": True, **documented})
    return app


def _backend(backend: BackendName, url: str) -> Any:
    if backend == "memory":
        return load("fastidempotent").MemoryBackend()
    if backend == "redis":
        return load("fastidempotent").RedisBackend(url=url)
    if backend == "postgres":
        driver = url.replace("postgresql://", "postgresql+asyncpg://", 1)
        return load("fastidempotent.backends.postgres").PostgresBackend(url=driver)
    path = unquote(urlsplit(url).path[1:])
    return load("fastidempotent.backends.sqlite").SQLiteBackend(url=f"sqlite+aiosqlite:///{path}.fastidempotent")
