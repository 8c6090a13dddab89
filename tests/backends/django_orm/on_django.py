"""Databases for the Django backend: an alias for each test, with tables made by the migrations."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.django_project import set_up

set_up()

from django.core.management import call_command
from django.db import connections

from tests import mariadb_server
from tests.postgres_server import PostgresServer


@contextmanager
def aliased(settings: dict[str, Any], *, migrated: bool = True) -> Iterator[str]:
    """A new alias of DATABASES with these settings; its name."""
    alias = f"records_{secrets.token_hex(4)}"
    connections.settings[alias] = connections.configure_settings({"default": {}, alias: settings})[alias]
    try:
        if migrated:
            call_command("migrate", "open_idempotency", database=alias, verbosity=0, skip_checks=True)
            connections[alias].close()
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def sqlite(folder: Path, **more: Any) -> dict[str, Any]:
    """A SQLite file in the folder."""
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "records.db"), **more}


def postgresql(server: PostgresServer, database: str, **more: Any) -> dict[str, Any]:
    """A new database on the server."""
    where = {"HOST": "127.0.0.1", "PORT": str(server.port), "USER": "postgres", "NAME": database}
    return {"ENGINE": "django.db.backends.postgresql", **where, **more}


def mysql(url: str, **more: Any) -> dict[str, Any]:
    """The database of this test process, on the server of the URL."""
    mariadb_server.for_django()
    parts = urlsplit(url)
    where = {"HOST": parts.hostname or "127.0.0.1", "PORT": str(parts.port or 3306)}
    who = {"USER": unquote(parts.username or ""), "PASSWORD": unquote(parts.password or "")}
    settings = {"ENGINE": "django.db.backends.mysql", **where, **who, "NAME": parts.path[1:]}
    own = f"{parts.path[1:]}_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    with aliased(settings, migrated=False) as alias, connections[alias].cursor() as cursor:
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS {own} CHARACTER SET utf8mb4")
    return {**settings, "NAME": own, **more}


def emptied(alias: str) -> str:
    """The alias, with empty tables."""
    with connections[alias].cursor() as cursor:
        for table in ("records", "stages", "reservations", "scopes"):
            cursor.execute(f"DELETE FROM open_idempotency_django_{table}")
    connections[alias].close()
    return alias
