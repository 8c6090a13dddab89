"""The endpoint in Django under WSGI; the layer and ours are Django middleware, the floor wraps the application."""

from __future__ import annotations

from benchmarks.apps.django_project import make_wsgi
from benchmarks.interface import App, Style

STYLE: Style = "wsgi"


def bare() -> App:
    """The application alone, without any middleware."""
    return make_wsgi()


def layer() -> App:
    """Behind a middleware that does nothing."""
    return make_wsgi(["benchmarks.apps.django_layers.layer"])


def ours(backend_url: str) -> App:
    """Protected by the middleware."""
    return make_wsgi(["open_idempotency.django.IdempotencyMiddleware"], IDEMPOTENCY_BACKEND=backend_url)
