"""The endpoint in Django under ASGI; layer and package are Django middleware, the floor wraps the application."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.django_project import make_asgi
from benchmarks.interface import App, Style

STYLE: Style = "asgi"


def bare() -> App:
    """The application alone, without any middleware."""
    return make_asgi()


def layer() -> App:
    """Behind a middleware that does nothing."""
    return make_asgi(["benchmarks.apps.django_layers.layer"])


def ours(backend_url: str, **documented: Any) -> App:
    """Protected by the middleware."""
    fields = {f"IDEMPOTENCY_{name.upper()}": value for name, value in documented.items()}
    return make_asgi(["open_idempotency.django.IdempotencyMiddleware"], IDEMPOTENCY_BACKEND=backend_url, **fields)
