"""The Django application: the tables of ``django://`` and of the ledger, the admin pages, and the system checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from open_idempotency.django import checks


class OpenIdempotencyConfig(AppConfig):
    """Registers the system checks; ``"open_idempotency.django"`` in ``INSTALLED_APPS`` finds it."""

    name = "open_idempotency.django"
    label = "open_idempotency"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Open Idempotency"

    def ready(self) -> None:
        """Register the checks."""
        for check in checks.CHECKS:
            register(check)
