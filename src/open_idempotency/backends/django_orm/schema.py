"""Applying the application's migrations from outside of ``manage.py``, as ``open-idempotency migrate`` does."""

from __future__ import annotations

from collections.abc import Sequence

import django
from django.apps import apps
from django.core.management import call_command
from django.db import Error, connections
from django.db.migrations.recorder import MigrationRecorder

from open_idempotency.backends.django_orm import failures

LABEL = "open_idempotency"


def migrate(alias: str) -> Sequence[str]:
    """Apply what the database has not had; the names. Raises ``BackendUnavailable``."""
    if not apps.ready:
        django.setup()
    try:
        before = _applied(alias)
        call_command("migrate", LABEL, database=alias, interactive=False, verbosity=0)
        return sorted(_applied(alias) - before)
    except Error as error:
        raise failures.wrapped(error, alias, connections[alias].vendor) from error


def _applied(alias: str) -> set[str]:
    applied = MigrationRecorder(connections[alias]).applied_migrations()
    return {name for label, name in applied if label == LABEL}
