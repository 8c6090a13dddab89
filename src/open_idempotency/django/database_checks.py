"""System checks of the ``django://`` backend: whether its database can do what is wanted of it.

What makes a backend impossible (an unknown alias, a database of another kind, the application not installed) is a wrong
setting, which ``checks`` reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections, router

from open_idempotency.backends.django_orm.connections import lives_in_one_connection
from open_idempotency.django import own_backend
from open_idempotency.exceptions import ConfigurationError

_IN_MEMORY = "mode=memory"


def check_database(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E004: no migration reaches the database. W004, W005: it is SQLite, in memory, or with ATOMIC_REQUESTS."""
    try:
        with own_backend.opened() as backend:
            alias = None if backend is None else backend.alias
    except ConfigurationError:
        return []  # E001
    return [] if alias is None else list(_check(alias))


def _check(alias: str) -> Iterator[CheckMessage]:
    if not router.allow_migrate(alias, "open_idempotency", model_name="record"):
        message = f"DATABASE_ROUTERS keep the tables of django://{alias} out of that database."
        hint = f'Let allow_migrate("{alias}", "open_idempotency") be true.'
        yield Error(message, hint=hint, id="open_idempotency.E004")
    settings = connections.settings[alias]
    if connections[alias].vendor != "sqlite":
        return
    name = str(settings["NAME"])
    if lives_in_one_connection(name) or _IN_MEMORY in name:
        yield Warning(
            f"django://{alias} is SQLite in memory, which no other process shares.",
            hint="Give it a file, or take memory:// where one process is all there is.",
            id="open_idempotency.W004",
        )
    if settings["ATOMIC_REQUESTS"]:
        yield Warning(
            f"django://{alias} is SQLite with ATOMIC_REQUESTS: while a view's transaction writes, nobody else can, "
            "so neither its stages nor its lease can be recorded.",
            hint=f'Record stages with tx="{alias}", or keep the records in another database.',
            id="open_idempotency.W005",
        )
