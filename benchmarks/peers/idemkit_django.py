"""idemkit's WSGI middleware, around Django."""

from __future__ import annotations

from typing import Any

from benchmarks.apps import django_wsgi
from benchmarks.interface import App, BackendName
from benchmarks.peers.idemkit_backends import make_backend
from benchmarks.peers.idemkit_flask import BACKENDS, LACKS, NAME, ROWS, STYLE, available
from benchmarks.peers.loading import named

__all__ = ["BACKENDS", "LACKS", "NAME", "ROWS", "STYLE", "available"]

FRAMEWORK = "django_wsgi"


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("idemkit", "WSGIIdempotencyMiddleware")
    return middleware(django_wsgi.bare(), backend=make_backend(backend, url), **documented)
