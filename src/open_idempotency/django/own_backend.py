"""The ``django://`` backend of the settings, for code that manages its records: admin, checks, commands."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from django.conf import settings

from open_idempotency.backends.django_orm import AsyncDjangoBackend, DjangoBackend
from open_idempotency.backends.registry import open_backend

SCHEME = "django://"


@contextmanager
def opened() -> Generator[DjangoBackend | None, None, None]:
    """Open the backend, and close it afterwards unless it is the project's own object; None for another kind of
    backend.

    Raises ``ConfigurationError``.
    """
    named: Any = getattr(settings, "IDEMPOTENCY_BACKEND", None)
    if isinstance(named, DjangoBackend | AsyncDjangoBackend):
        found = open_backend(named)
        yield found if isinstance(found, DjangoBackend) else None
    elif isinstance(named, str) and named.lower().startswith(SCHEME):
        backend = DjangoBackend.from_url(named)
        try:
            yield backend
        finally:
            backend.close()
    else:
        yield None
