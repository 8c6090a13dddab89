"""idemkit's WSGI middleware, around Flask."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.apps import flask
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.idemkit_backends import BACKENDS, make_backend
from benchmarks.peers.loading import installed, named

__all__ = ["BACKENDS"]

NAME = "idemkit"
STYLE: Style = "wsgi"
FRAMEWORK = "flask"
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay")
LACKS = (
    "every call goes through one background event loop",
    "a duplicate in flight waits (10 s, then 423)",
    "no caller in the key without a scope=",
    "headers in a dict",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("idemkit")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("idemkit", "WSGIIdempotencyMiddleware")
    return flask.within(partial(middleware, backend=make_backend(backend, url), **documented))
