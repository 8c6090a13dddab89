"""The contract suite on the Django backend: SQLite, PostgreSQL, and MySQL where a server is available."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connections

from open_idempotency.backend import Backend
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.conformance import ManualClock
from tests import mariadb_server
from tests.backends.django_orm import on_django
from tests.backends.test_contract import _InEachMode
from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def sqlite_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = on_django.sqlite(tmp_path_factory.mktemp("django"), CONN_MAX_AGE=None)
    with on_django.aliased(settings) as alias:
        with connections[alias].cursor() as cursor:
            # The setting stays in the file, and saves a flush in each write. An unread result would keep its lock.
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.fetchone()
        yield alias


@pytest.fixture(scope="session")
def postgres_alias(postgres18: PostgresServer) -> Iterator[str]:
    postgres18.create_database("django_contract")
    with on_django.aliased(on_django.postgresql(postgres18, "django_contract", CONN_MAX_AGE=None)) as alias:
        yield alias


@pytest.fixture(scope="session")
def mysql_alias() -> Iterator[str]:
    with on_django.aliased(on_django.mysql(mariadb_server.url())) as alias:
        yield alias


class _OnDjango(_InEachMode):
    database: str

    @pytest.fixture
    def made(self, clock: ManualClock, request: pytest.FixtureRequest) -> Iterator[Backend]:
        alias: str = request.getfixturevalue(f"{self.database}_alias")
        backend = DjangoBackend(on_django.emptied(alias), timeout=10, clock=clock)
        yield backend
        backend.close()


class TestSqlite(_OnDjango):
    """B-12 on a project's SQLite."""

    database = "sqlite"


class TestPostgres(_OnDjango):
    """B-12 on a project's PostgreSQL."""

    database = "postgres"


if mariadb_server.IN_USE:

    class TestMysql(_OnDjango):
        """B-12 on a project's MySQL or MariaDB; async calls are made in threads, as on the other databases."""

        database = "mysql"

        @pytest.fixture
        def mode(self) -> str:
            return "sync"
