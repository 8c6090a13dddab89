"""The Django application: the tables of ``django://`` and of the ledger, and the admin pages."""

from __future__ import annotations

from django.apps import AppConfig


class OpenIdempotencyConfig(AppConfig):
    """The application ``"open_idempotency.django"``. Importing the package registers its checks."""

    name = "open_idempotency.django"
    label = "open_idempotency"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Open Idempotency"
