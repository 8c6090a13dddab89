"""fastapi-idempotency's middleware, around FastAPI, with the in-process store that it ships."""

from __future__ import annotations

from typing import Any

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, named

NAME = "fastapi-idempotency"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory",)
ROWS: tuple[Kind, ...] = ("new-key", "replay")
LACKS = (
    "a request without a key is protected too, by its content for ten seconds: here it would be replayed",
    "a duplicate in flight polls for 15 s before it is refused",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("fastapi_idempotency")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    middleware, store = named("fastapi_idempotency", "IdempotencyMiddleware", "MemoryStore")
    app = fastapi.bare()
    app.add_middleware(middleware, store=store(), **documented)
    return app
