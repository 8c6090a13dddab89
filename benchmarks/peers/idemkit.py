"""idemkit's ASGI middleware, around FastAPI."""

from __future__ import annotations

from typing import Any

from benchmarks.apps import fastapi
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.idemkit_backends import BACKENDS, make_backend
from benchmarks.peers.loading import installed, named

__all__ = ["BACKENDS"]

NAME = "idemkit"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay")
LACKS = (
    "a duplicate in flight waits (10 s, then 423), so that row has no time to compare",
    "the response leaves before it is stored",
    "no caller in the key without a scope=",
    "headers in a dict",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("idemkit", "starlette")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("idemkit", "IdempotencyMiddleware")
    app = fastapi.bare()
    app.add_middleware(middleware, backend=make_backend(backend, url), **documented)
    return app
