"""The model test on the backends in an application's own database: Django's and SQLAlchemy's."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from open_idempotency.backend import Backend
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.conformance import ManualClock
from tests import mariadb_server
from tests.backends import sql_databases
from tests.backends.django_orm import on_django
from tests.postgres_server import PostgresServer
from tests.property.test_backends import check

#: shares of the histories of other backends: opening these is slow, and async calls cross threads
SHARES = {"sync": 0.25, "asyncio": 0.2}


@pytest.fixture(params=["sqlite", "postgresql", *["mysql"] * mariadb_server.IN_USE])
def alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A Django database, with its tables."""
    if request.param == "sqlite":
        settings = on_django.sqlite(tmp_path, CONN_MAX_AGE=None)
    elif request.param == "mysql":
        settings = on_django.mysql(mariadb_server.url())
    else:
        server: PostgresServer = request.getfixturevalue("postgres18")
        name = f"django_model_{secrets.token_hex(4)}"
        server.create_database(name)
        settings = on_django.postgresql(server, name, CONN_MAX_AGE=None)
    with on_django.aliased(settings) as made:
        if request.param == "sqlite":
            with connections[made].cursor() as cursor:
                cursor.execute("PRAGMA journal_mode = WAL")
                cursor.fetchone()
        yield made


@pytest.mark.parametrize("mode", SHARES)
def test_djangos_databases_keep_to_the_model(mode: str, alias: str) -> None:
    """B-12: the real statements, on tables that are emptied for each history."""

    def make(clock: ManualClock) -> Backend:
        return DjangoBackend(on_django.emptied(alias), timeout=10, clock=clock)

    check(make, mode, SHARES[mode])


@pytest.mark.parametrize("mode", SHARES)
@pytest.mark.parametrize("kind", sql_databases.KINDS)
def test_sqlalchemys_databases_keep_to_the_model(mode: str, kind: str, request: pytest.FixtureRequest) -> None:
    """B-12: the real statements, through SQLAlchemy."""
    url = sql_databases.url_of(kind, request)

    def make(clock: ManualClock) -> Backend:
        sql_databases.make_tables(url)
        return SqlalchemyBackend(f"sqlalchemy+{url}", timeout=10, clock=clock)

    check(make, mode, SHARES[mode])
