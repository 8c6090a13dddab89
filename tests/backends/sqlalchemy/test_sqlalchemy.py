"""The contract suite on the databases of the SQLAlchemy backend, through sync and async drivers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from open_idempotency.backend import Backend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.conformance import ManualClock
from tests.backends.sql_databases import KINDS, make_tables, url_of, without_disk
from tests.backends.test_contract import _InEachMode


class TestSqlite(_InEachMode):
    """B-12 on SQLite through the standard library's driver, which is sync only."""

    @pytest.fixture
    def mode(self) -> str:
        return "sync"

    @pytest.fixture
    def made(self, clock: ManualClock, tmp_path: Path) -> Backend:
        url = f"sqlite:///{tmp_path / 'records.db'}"
        make_tables(url)
        engine = create_engine(url)
        event.listen(engine, "connect", without_disk)
        return SqlalchemyBackend(engine, timeout=20, clock=clock)


class TestAiosqlite(_InEachMode):
    """B-12 on SQLite through an async driver, from an engine."""

    @pytest.fixture
    def mode(self) -> str:
        return "asyncio"

    @pytest.fixture
    def made(self, clock: ManualClock, tmp_path: Path) -> Backend:
        path = tmp_path / "records.db"
        make_tables(f"sqlite:///{path}")
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        event.listen(engine.sync_engine, "connect", without_disk)
        return SqlalchemyBackend(engine, timeout=20, clock=clock)


class _OnServer(_InEachMode):
    """Drivers that are sync and async; under trio calls are those of the sync front, which one test covers."""

    kind: str
    driver = ""

    @pytest.fixture(params=["sync", "asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, request: pytest.FixtureRequest) -> Backend:
        url = url_of(self.kind, request)
        url = re.sub(r"\+\w+:", f"+{self.driver}:", url) if self.driver else url
        return SqlalchemyBackend(f"sqlalchemy+{url}", timeout=10, clock=clock)


class TestPostgres(_OnServer):
    """B-12 on PostgreSQL through psycopg, sync and async."""

    kind = "postgresql"


class TestAsyncpg(_InEachMode):
    """B-12 on PostgreSQL through a driver that is async only."""

    @pytest.fixture
    def mode(self) -> str:
        return "asyncio"

    @pytest.fixture
    def made(self, clock: ManualClock, request: pytest.FixtureRequest) -> Backend:
        url = url_of("postgresql", request).replace("+psycopg:", "+asyncpg:")
        return SqlalchemyBackend(f"sqlalchemy+{url}", timeout=10, clock=clock)


if "mysql" in KINDS:

    class TestMysql(_OnServer):
        """B-12 on MySQL or MariaDB through PyMySQL, which is sync only."""

        kind = "mysql"

        @pytest.fixture
        def mode(self) -> str:
            return "sync"

    class TestAsyncmy(_OnServer):
        """B-12 on MySQL or MariaDB through a driver that is async only."""

        kind = "mysql"
        driver = "asyncmy"

        @pytest.fixture
        def mode(self) -> str:
            return "asyncio"
