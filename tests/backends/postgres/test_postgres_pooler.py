"""PostgreSQL behind a pooler in transaction mode, with the default options of a URL."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from open_idempotency.backend import Backend, Complete, Finished, Lease, Leased, Wait
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.postgres.backend import migrate, migrations
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import claim_of
from tests.backends.test_contract import _InEachMode
from tests.poolers import POOLERS, SIZE, PgBouncer, Pooler
from tests.postgres_server import PostgresServer

SOON = 20.0
NEVER = 100.0


class TestPooler(_InEachMode):
    """B-11a, B-12: the whole contract, sync and async; under trio calls are those of the sync front."""

    @pytest.fixture(params=["sync", "asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, pooler: Pooler | PgBouncer, postgres18: PostgresServer) -> Backend:
        with postgres18.connect() as connection:
            connection.execute("DELETE FROM open_idempotency.records")
            connection.execute("DELETE FROM open_idempotency.reservations")
        return PostgresBackend(pooler.url, timeout=10, clock=clock)


@pytest.fixture
def backend(pooler: Pooler | PgBouncer) -> Iterator[PostgresBackend]:
    """A backend behind the pooler."""
    backend = PostgresBackend(pooler.url, timeout=10)
    yield backend
    backend.close()


def leased(backend: PostgresBackend, record_id: bytes) -> Lease:
    """The lease of a successful claim."""
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased), result
    return result.lease


def test_a_pooler_of_these_tests_keeps_no_session(pooler: Pooler | PgBouncer) -> None:
    """B-11a: session state is not preserved here: two clients share the sessions in turn."""
    with (
        psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as client,
        psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as other,
    ):
        client.execute("PREPARE mine AS SELECT 1")
        with other.transaction():  # takes the next session, or the previous one
            other.execute("SELECT 1")
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                _everywhere(client, "EXECUTE mine")
        assert client.execute("SELECT pg_backend_pid()").fetchone() != (client.info.backend_pid,)


def _everywhere(client: psycopg.Connection[tuple[object, ...]], statement: str) -> None:
    for _ in range(SIZE):
        client.execute(statement.encode())


def test_more_callers_than_sessions_are_served(backend: PostgresBackend) -> None:
    """I1: one of 32 claims of a record wins, although all share a few sessions."""
    record_id = secrets.token_bytes(32)
    with ThreadPoolExecutor(16) as callers:
        results = list(callers.map(lambda _: type(backend.claim(claim_of(record_id))).__name__, range(32)))
    assert sorted(results) == ["Busy"] * 31 + ["Leased"]


def test_who_waits_behind_a_pooler_polls_and_listens_on_no_session(
    backend: PostgresBackend, postgres18: PostgresServer
) -> None:
    """O-04, B-11a: the backend detects that notifications cannot arrive, before it sends LISTEN on a shared session."""
    lease = leased(backend, secrets.token_bytes(32))
    started = time.monotonic()
    for _ in range(5):
        backend.wait(Wait(lease.record_id, NEVER, 0.05))
    assert time.monotonic() - started < SOON
    for thread in threading.enumerate():
        if thread.name == "open-idempotency-listener":
            thread.join(SOON)
            assert not thread.is_alive()
    assert not backend.listener._listening
    with postgres18.connect() as connection:
        last = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND pid <> pg_backend_pid()"
        assert connection.execute(last).fetchone() == (0,)


def test_a_session_that_the_server_ended_is_replaced(
    backend: PostgresBackend, pooler: Pooler | PgBouncer, postgres18: PostgresServer
) -> None:
    """B-10: by the pooler; a call on the old session is repeated."""
    lease = leased(backend, secrets.token_bytes(32))
    with postgres18.connect() as operator:
        # The message of the simulated pooler, and of PgBouncer.
        ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = ANY (%s)"
        assert operator.execute(ended, (["pooler", "open-idempotency"],)).fetchall()
    backend.complete(Complete(lease, b"response"))
    assert backend.claim(claim_of(lease.record_id)) == Finished(b"response")


@pytest.mark.parametrize("kind", POOLERS)
def test_migrations_may_go_through_it(kind: str, postgres18: PostgresServer) -> None:
    """B-11a: the migration's lock belongs to its transaction."""
    name = f"d{secrets.token_hex(8)}"
    postgres18.create_database(name)
    with POOLERS[kind](postgres18.port, name) as pooler:
        assert migrate(PostgresBackend(pooler.url).options) == list(migrations())
        assert migrate(PostgresBackend(pooler.url).options) == []
