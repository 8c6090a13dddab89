"""The contract suite on PostgreSQL: the oldest and the newest release on PyPI, in batches and without."""

from __future__ import annotations

import pytest

from open_idempotency.backend import Backend
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.conformance import ManualClock
from tests.backends.postgres.on_postgres import BatchingPostgres, emptied
from tests.backends.test_contract import _InEachMode
from tests.postgres_server import PostgresServer


class TestPostgres18(_InEachMode):
    """B-12 on PostgreSQL 18."""

    @pytest.fixture
    def made(self, clock: ManualClock, postgres18: PostgresServer) -> Backend:
        return PostgresBackend(emptied(postgres18), timeout=10, clock=clock)


class TestPostgres16OneByOne(_InEachMode):
    """B-12 on PostgreSQL 16 without coalescing; under trio calls are those of the sync front."""

    @pytest.fixture(params=["sync", "asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, postgres16: PostgresServer) -> Backend:
        return PostgresBackend(emptied(postgres16), timeout=10, coalesce=False, clock=clock)


class TestPostgresBatches(_InEachMode):
    """B-12 on PostgreSQL with every claim, stage and completion in a batch."""

    @pytest.fixture(params=["sync"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, postgres16: PostgresServer) -> Backend:
        return BatchingPostgres(emptied(postgres16), timeout=10, clock=clock)
