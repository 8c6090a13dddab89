"""The examination of a database of a Django project: migrations, settings of the server, and purging (P-17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django
from django.apps import apps
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings
from open_idempotency.backends._shared.findings import MOST_COUNTED
from open_idempotency.backends.django_orm.dialects import how_to_migrate

_EXPIRED = """
    SELECT count(*), min(expires_at) FROM (
        SELECT expires_at FROM open_idempotency_django_records WHERE expires_at <= %s LIMIT %s
    ) expired
"""


def examine(alias: str, label: str, now: Callable[[], float]) -> list[Finding]:
    """Look at the database of an alias. Raises Django's errors, and what ``now`` raises.

    ``label``: of the application with the migrations. ``now``: the clock that decides.
    """
    if not apps.ready:
        django.setup()
    connection: Any = connections[alias]
    with connection.cursor():  # opens it
        version: tuple[int, ...] = getattr(connection, "get_database_version", tuple)()
    found = [
        findings.server(f"{connection.display_name} {'.'.join(map(str, version))}, by Django {django.get_version()}")
    ]
    missing = _missing(connection, label)
    found.append(findings.migrations(missing, how_to_migrate(alias)))
    found += _settings(connection)
    if missing:
        return found
    with connection.cursor() as cursor:
        moment = now()
        cursor.execute(_EXPIRED, [moment, MOST_COUNTED + 1])
        count, first = cursor.fetchone()
    return [*found, findings.purging(int(count), 0.0 if first is None else moment - float(first))]


def _missing(connection: Any, label: str) -> list[str]:
    executor = MigrationExecutor(connection)
    targets = [node for node in executor.loader.graph.leaf_nodes() if node[0] == label]
    return [f"{migration.app_label}.{migration.name}" for migration, _ in executor.migration_plan(targets)]


def _settings(connection: Any) -> Iterator[Finding]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_is_in_recovery(), current_setting('synchronous_commit')")
            recovering, commit = cursor.fetchone()
            if recovering:
                yield findings.replica("the server is in recovery, so it only reads")
            if commit == "off":
                found = "synchronous_commit is off for this user: a crash forgets the last keys, which run again"
                yield Finding("durability", Level.WARNING, found, "ALTER ROLE ... SET synchronous_commit = on")
        elif connection.vendor == "mysql":
            cursor.execute("SELECT @@read_only, @@innodb_flush_log_at_trx_commit")
            read_only, flush = map(int, cursor.fetchone())
            if read_only:
                yield findings.replica("the server is read-only")
            if flush != 1:
                found = f"innodb_flush_log_at_trx_commit is {flush}: a crash forgets the last keys, which run again"
                yield Finding("durability", Level.WARNING, found, "set innodb_flush_log_at_trx_commit = 1")
        elif connection.vendor == "sqlite":
            cursor.execute("PRAGMA journal_mode")
            (mode,) = cursor.fetchone()
            if mode not in ("wal", "memory"):
                cure = "PRAGMA journal_mode=wal, once; the file keeps it"
                yield Finding("journal", Level.WARNING, f"journal_mode is {mode}, so readers hold up writers", cure)
