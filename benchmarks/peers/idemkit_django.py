"""idemkit's WSGI middleware, around Django."""

from __future__ import annotations

from benchmarks.apps import django_wsgi
from benchmarks.interface import App, BackendName
from benchmarks.peers.idemkit_backends import make_backend
from benchmarks.peers.idemkit_flask import BACKENDS, COLOUR, LACKS, NAME, ROWS, available
from benchmarks.peers.loading import named

__all__ = ["BACKENDS", "COLOUR", "LACKS", "NAME", "ROWS", "available"]

FRAMEWORK = "django_wsgi"


def make(backend: BackendName, url: str) -> App:
    """See ``interface.Peer``."""
    (middleware,) = named("idemkit", "WSGIIdempotencyMiddleware")
    return middleware(django_wsgi.bare(), backend=make_backend(backend, url))
