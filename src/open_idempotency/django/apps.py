"""The Django application: it has no models, and brings the system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from open_idempotency.django import checks


class OpenIdempotencyConfig(AppConfig):
    """Registers the system checks; ``"open_idempotency.django"`` in ``INSTALLED_APPS`` finds it."""

    name = "open_idempotency.django"
    label = "open_idempotency"
    verbose_name = "Open Idempotency"

    def ready(self) -> None:
        """Register the checks."""
        for check in checks.CHECKS:
            register(check)
