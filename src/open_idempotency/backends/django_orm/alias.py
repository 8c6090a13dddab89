"""An alias of DATABASES: which database it names, checked when a backend is made, and the migrations of its tables."""

from __future__ import annotations

from collections.abc import Sequence

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import Error, connections
from django.db.migrations.recorder import MigrationRecorder

from open_idempotency.backends.django_orm import errors
from open_idempotency.backends.django_orm.dialects import DIALECTS, Dialect
from open_idempotency.backends.django_orm.errors import how_to_migrate
from open_idempotency.exceptions import ConfigurationError

APP = "open_idempotency.django"
LABEL = "open_idempotency"


def dialect_of(alias: str) -> Dialect:
    """The dialect of the alias's database. Raises ``ConfigurationError``; connects to nothing."""
    try:
        known = list(connections)
    except (ImproperlyConfigured, ImportError) as error:
        raise ConfigurationError(
            f"backend: django:// needs Django's settings; set DJANGO_SETTINGS_MODULE ({error})"
        ) from error
    if alias not in known:
        raise ConfigurationError(f"backend: DATABASES has no {alias!r}; it has {', '.join(sorted(known))}")
    # A program that has not set Django up, such as the command line, has no applications.
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


def file_of(alias: str) -> str | None:
    """The file of an SQLite database, which connecting to it would create; None for any other database."""
    connection = connections[alias]
    name = str(connection.settings_dict["NAME"])
    return None if connection.vendor != "sqlite" or name.startswith((":memory:", "file:")) else name


def migrate(alias: str) -> Sequence[str]:
    """Apply the migrations that the database lacks, as ``open-idempotency migrate`` does without ``manage.py``; their
    names. Raises ``BackendUnavailable``.
    """
    if not apps.ready:
        django.setup()
    try:
        before = _applied(alias)
        call_command("migrate", LABEL, database=alias, interactive=False, verbosity=0)
        return sorted(_applied(alias) - before)
    except Error as error:
        raise errors.wrapped(error, alias, connections[alias].vendor) from error


def _applied(alias: str) -> set[str]:
    applied = MigrationRecorder(connections[alias]).applied_migrations()
    return {name for label, name in applied if label == LABEL}
