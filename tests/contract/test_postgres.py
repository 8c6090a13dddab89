"""The shipped contract suite on PostgreSQL, the oldest and the newest that pip brings."""

from __future__ import annotations

import pytest

from open_idempotency.backend import Backend
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.conformance import ManualClock
from tests.contract.test_contract import _Coloured
from tests.postgres_server import PostgresServer


class _OnPostgres(_Coloured):
    version: int

    @pytest.fixture
    def made(self, clock: ManualClock, request: pytest.FixtureRequest) -> Backend:
        server: PostgresServer = request.getfixturevalue(f"postgres{self.version}")
        with server.connect() as connection:
            connection.execute("DELETE FROM open_idempotency.records")
            connection.execute("DELETE FROM open_idempotency.reservations")
        return PostgresBackend(server.url(), timeout=10, clock=clock)


class TestPostgres16(_OnPostgres):
    """B-12 on PostgreSQL 16."""

    version = 16


class TestPostgres18(_OnPostgres):
    """B-12 on PostgreSQL 18."""

    version = 18
