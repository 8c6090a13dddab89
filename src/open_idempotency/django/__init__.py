"""Idempotency keys for Django: a sync and async middleware, and the decorators ``idempotent`` and ``exempt``.

``MIDDLEWARE`` takes ``"open_idempotency.django.IdempotencyMiddleware"``, ``INSTALLED_APPS`` takes
``"open_idempotency.django"`` (its tables and admin pages). Importing this package registers its system checks, which
warn a project that uses only the decorators that nothing is protected. The settings ``IDEMPOTENCY_...`` are read
when the middleware is made, not when this package is imported.
"""

from __future__ import annotations

from open_idempotency.exceptions import MissingExtra
from open_idempotency.rules import exempt

try:
    from open_idempotency.django import checks
    from open_idempotency.django.middleware import IdempotencyMiddleware
    from open_idempotency.django.views import idempotent
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("django", "asgiref"):
        raise
    raise MissingExtra(
        "open_idempotency.django needs the django package: pip install 'open-idempotency[django]'"
    ) from error

checks.register_all()

__all__ = ["IdempotencyMiddleware", "exempt", "idempotent"]
