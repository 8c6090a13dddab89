"""Which database an alias names, looked at when a backend is made: what is wrong is told at start."""

from __future__ import annotations

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from open_idempotency.backends.django_orm.dialects import DIALECTS, Dialect
from open_idempotency.backends.django_orm.failures import how_to_migrate
from open_idempotency.exceptions import ConfigurationError

APP = "open_idempotency.django"


def dialect_of(alias: str) -> Dialect:
    """How the alias's database is spoken to. Raises ``ConfigurationError``; connects to nothing."""
    try:
        known = list(connections)
    except ImproperlyConfigured as error:
        raise ConfigurationError(
            f"backend: django:// needs Django's settings; set DJANGO_SETTINGS_MODULE ({error})"
        ) from error
    if alias not in known:
        raise ConfigurationError(f"backend: DATABASES has no {alias!r}; it has {', '.join(sorted(known))}")
    # A program that has not set Django up, such as ours, does without applications.
    if apps.ready and not apps.is_installed(APP):
        raise ConfigurationError(f'backend: django:// needs "{APP}" in INSTALLED_APPS; then {how_to_migrate(alias)}')
    vendor = _vendor(alias)
    if vendor not in DIALECTS:
        raise ConfigurationError(f"backend: django:// knows {', '.join(sorted(DIALECTS))}; {alias!r} is {vendor}")
    return DIALECTS[vendor]


def _vendor(alias: str) -> str:
    try:
        return connections[alias].vendor
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"backend: Django's database {alias!r}: {error}") from error
