"""The endpoint in Django under WSGI; layer and package are Django middleware, the floor wraps the application."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.django_project import make_wsgi
from benchmarks.interface import App, Style

STYLE: Style = "wsgi"


def bare() -> App:
    """The application alone, without any middleware."""
    return make_wsgi()


def layer() -> App:
    """Behind a middleware that does nothing."""
    return make_wsgi(["benchmarks.apps.django_layers.layer"])


def ours(backend_url: str, **documented: Any) -> App:
    """Protected by the middleware."""
    fields = {f"IDEMPOTENCY_{name.upper()}": value for name, value in documented.items()}
    return make_wsgi(["open_idempotency.django.IdempotencyMiddleware"], IDEMPOTENCY_BACKEND=backend_url, **fields)
