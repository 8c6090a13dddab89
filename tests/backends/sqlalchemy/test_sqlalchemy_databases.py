"""The SQLAlchemy backend beyond the contract: locks, limits, races, and errors."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text, update

from open_idempotency import open_backend
from open_idempotency.backend import (
    Busy,
    Claim,
    Complete,
    Fail,
    Finished,
    Get,
    Lease,
    Leased,
    Mismatch,
    Renew,
    Renewal,
    Reserve,
    Reserved,
    SaveStage,
    Stage,
)
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend, metadata
from open_idempotency.backends.sqlalchemy.statements import records, stages
from open_idempotency.conformance import ManualClock
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from tests.backends.sql_databases import KINDS, make_tables, postgres_url, url_of
from tests.faults.proxy import FaultProxy
from tests.postgres_server import PostgresServer

SOON = 20.0


def claim_of(record_id: bytes | None = None, **fields: Any) -> Claim:
    """A claim of a new record."""
    given = {"fingerprint": b"fingerprint", "lease": 30.0, "ttl": 600.0, **fields}
    return Claim(record_id or secrets.token_bytes(32), owner=os.urandom(16), **given)


def leased(backend: SqlalchemyBackend, claim: Claim) -> Lease:
    """The lease of a successful claim."""
    result = backend.claim(claim)
    assert isinstance(result, Leased), result
    return result.lease


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return url_of(request.param, request)


@pytest.fixture
def backend(url: str) -> Iterator[SqlalchemyBackend]:
    """A backend on each kind of database, with the database's own clock."""
    backend = SqlalchemyBackend(f"sqlalchemy+{url}", timeout=10)
    yield backend
    backend.close()


def test_what_only_reads_waits_for_no_writer(backend: SqlalchemyBackend, url: str) -> None:
    """B-11b: a replay, a 409 and a 422 are returned while another transaction holds the rows."""
    running, done, failed = claim_of(), claim_of(), claim_of()
    leased(backend, running)
    backend.complete(Complete(leased(backend, done), b"response"))
    backend.fail(Fail(leased(backend, failed), final=True, response=b"no"))
    other = create_engine(url)
    started = time.monotonic()
    with other.connect() as connection:
        if other.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.execute(update(records).values(attempt=records.c.attempt))
        assert isinstance(backend.claim(claim_of(running.record_id)), Busy)
        assert backend.claim(claim_of(done.record_id)) == Finished(b"response")
        assert backend.claim(claim_of(done.record_id, fingerprint=b"other")) == Mismatch()
        assert backend.get(Get(failed.record_id)) is not None
        connection.rollback()
    other.dispose()
    assert time.monotonic() - started < backend.options.timeout


def test_a_row_that_stays_locked_is_unavailable_in_time(url: str) -> None:
    """B-10, I11: within call_timeout, with SQLAlchemy's error as the cause; afterwards calls succeed."""
    impatient = SqlalchemyBackend(f"sqlalchemy+{url}", timeout=0.2)
    lease = leased(impatient, claim_of())
    other = create_engine(url)
    with other.connect() as connection:
        connection.execute(update(records).values(attempt=records.c.attempt))
        started = time.monotonic()
        with pytest.raises(BackendUnavailable) as caught:
            impatient.complete(Complete(lease, b"response"))
        assert time.monotonic() - started < impatient.call_timeout + 1
        connection.rollback()
    other.dispose()
    assert caught.value.__cause__ is not None
    impatient.complete(Complete(lease, b"response"))
    impatient.close()


def test_of_many_claims_at_once_one_wins(backend: SqlalchemyBackend) -> None:
    """I1: an insert that comes second reads again, from any thread or connection."""
    record_id, start = secrets.token_bytes(32), threading.Barrier(16, timeout=SOON)

    def contend(_: int) -> str:
        start.wait()
        return type(backend.claim(claim_of(record_id))).__name__

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(contend, range(16), timeout=SOON))
    assert sorted(results) == ["Busy"] * 15 + ["Leased"]


def test_renewals_in_another_order_do_not_wait_for_each_other(backend: SqlalchemyBackend) -> None:
    """B-04: heartbeats do not deadlock, in any order of their leases."""
    leases = [leased(backend, claim_of()) for _ in range(20)]
    with ThreadPoolExecutor(4) as threads:
        orders = [leases, leases[::-1]] * 5
        results = list(threads.map(lambda order: list(backend.renew(Renew(order))), orders, timeout=SOON))
    assert all(result == [Renewal.OWNED] * 20 for result in results)


def test_purging_in_parallel_deletes_each_record_once(url: str) -> None:
    """B-09: purges neither block each other nor count a record twice; stages are deleted too."""
    clock = ManualClock()
    backend = SqlalchemyBackend(f"sqlalchemy+{url}", timeout=10, clock=clock)
    for _ in range(60):
        backend.save_stage(SaveStage(leased(backend, claim_of()), Stage("charge", "", b"frame")))
    scope = secrets.token_bytes(32)
    assert isinstance(backend.reserve(Reserve(scope, b"key", 5, 30.0, 600.0)), Reserved)
    clock.advance(100_000)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: backend.purge(1000), range(4), timeout=SOON))
    # Rows that one purge has locked are skipped by the others, and may remain.
    assert sum(found) + backend.purge(1000) == 61
    backend.close()
    engine = create_engine(url)
    with engine.connect() as connection:
        left = [connection.execute(table.select()).all() for table in metadata.sorted_tables]
    engine.dispose()
    assert left == [[], [], [], []]


def test_claims_purge_expired_records(url: str) -> None:
    """I11: the tables stay in proportion to the live records without a separate purge."""
    clock = ManualClock()
    backend = SqlalchemyBackend(f"sqlalchemy+{url}", timeout=10, clock=clock)
    for _ in range(20):
        leased(backend, claim_of())
    clock.advance(100_000)
    for _ in range(16):
        leased(backend, claim_of())
    backend.close()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert len(connection.execute(records.select()).all()) <= 16
    engine.dispose()


def test_the_databases_clock_decides(backend: SqlalchemyBackend, url: str) -> None:
    """L-07: in seconds since 1970, in any time zone of the session."""
    lease = leased(backend, claim_of())
    record = backend.get(Get(lease.record_id))
    assert record is not None
    # Both are on this machine.
    assert abs(record.claimed_at - time.time()) < SOON
    assert record.lease_end == pytest.approx(record.claimed_at + 30.0)


def test_for_ever_is_kept(backend: SqlalchemyBackend) -> None:
    """B-05: also on databases without an infinity; a renewal does not overflow."""
    lease = leased(backend, claim_of(ttl=float("inf")))
    assert list(backend.renew(Renew([lease]))) == [Renewal.OWNED]
    record = backend.get(Get(lease.record_id))
    assert record is not None
    assert (record.ttl, record.expires_at) == (float("inf"), float("inf"))


def test_a_record_that_was_deleted_by_hand_takes_its_stages_along(backend: SqlalchemyBackend, url: str) -> None:
    """Stages of a deleted record are never replayed."""
    lease = leased(backend, claim_of())
    backend.save_stage(SaveStage(lease, Stage("charge", "", b"old")))
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(records.delete())
    engine.dispose()
    second = leased(backend, claim_of(lease.record_id))
    assert backend.save_stage(SaveStage(second, Stage("charge", "", b"new"))).frame == b"new"
    backend.fail(Fail(second))
    third = backend.claim(claim_of(lease.record_id))
    assert isinstance(third, Leased)
    assert [stage.frame for stage in third.stages] == [b"new"]


@pytest.mark.parametrize("damage", [{"record_version": 2}, {"status": 0}, {"status": 7}, {"final": 2}])
def test_a_row_that_cannot_be_read_is_left_alone(
    backend: SqlalchemyBackend, url: str, damage: dict[str, object]
) -> None:
    """B-08b: corrupt, foreign or newer; no verb runs or overwrites it; an operator can delete it."""
    lease, sound = leased(backend, claim_of()), leased(backend, claim_of())
    engine = create_engine(url)
    this = records.c.record_id == lease.record_id
    with engine.begin() as connection:
        connection.execute(update(records).where(this).values(damage))
        before = connection.execute(records.select().where(this)).all()
    for attempt in (
        lambda: backend.claim(claim_of(lease.record_id)),
        lambda: backend.get(Get(lease.record_id)),
        lambda: backend.complete(Complete(lease, b"response")),
        lambda: backend.save_stage(SaveStage(lease, Stage("late", "", b""))),
        lambda: backend.fail(Fail(lease)),
    ):
        with pytest.raises(RecordUnreadable):
            attempt()
    assert list(backend.renew(Renew([lease, sound]))) == [Renewal.LOST, Renewal.OWNED]
    with engine.connect() as connection:
        assert connection.execute(records.select().where(this)).all() == before
    engine.dispose()
    assert backend.delete(lease.record_id)
    leased(backend, claim_of(lease.record_id))


def test_values_of_other_types_are_left_alone(request: pytest.FixtureRequest) -> None:
    """B-08b: SQLite stores any type in any column, and none is converted to a valid value."""
    url = url_of("sqlite", request)
    backend = SqlalchemyBackend(f"sqlalchemy+{url}")
    engine = create_engine(url)
    for damage in ("fingerprint = 1", "fingerprint = 'text'", "owner = 'text'", "token = 'x'", "expires_at = 'x'"):
        lease = leased(backend, claim_of())
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {records.name} SET {damage}"))
        for claim in (claim_of(lease.record_id), claim_of(lease.record_id, fingerprint=b"\x00")):
            with pytest.raises(RecordUnreadable):
                backend.claim(claim)
        with engine.begin() as connection:
            connection.execute(records.delete())
    lease = leased(backend, claim_of())
    backend.save_stage(SaveStage(lease, Stage("charge", "", b"frame")))
    backend.fail(Fail(lease))
    with engine.begin() as connection:
        connection.execute(update(stages).values(name=b"\xff"))
    with pytest.raises(RecordUnreadable):
        backend.claim(claim_of(lease.record_id))
    engine.dispose()
    backend.close()


def test_broken_connections_in_the_pool_are_replaced(postgres18: PostgresServer) -> None:
    """B-10: as after a restart of the server; no call fails."""
    url = postgres_url(postgres18)
    make_tables(url)
    backend = SqlalchemyBackend(f"sqlalchemy+{url}?application_name=to_be_ended", timeout=10)
    claim = claim_of()
    leased(backend, claim)
    with postgres18.connect() as connection:
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'to_be_ended'"
        ).fetchone()
    assert ended is not None
    assert ended[0] >= 1
    leased(backend, claim)
    backend.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("mode", ["sync", "asyncio"])
async def test_a_silent_server_is_unavailable_in_time(postgres18: PostgresServer, mode: str) -> None:
    """B-10: no packet arrives, on open connections and on new ones."""
    url = postgres_url(postgres18)
    make_tables(url)
    with FaultProxy(postgres18.port) as proxy:
        through = url.replace(f":{postgres18.port}/", f":{proxy.port}/")
        backend = SqlalchemyBackend(f"sqlalchemy+{through}", timeout=0.5)
        verbs: Any = backend if mode == "sync" else backend.to_async()

        async def claim() -> object:
            result = verbs.claim(claim_of())
            return result if mode == "sync" else await result

        assert isinstance(await claim(), Leased)
        proxy.swallow()
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await claim()
            assert time.monotonic() - started < backend.call_timeout + 1
        await backend.to_async().close()


def test_a_replay_takes_no_transaction_number_and_no_session_state(postgres18: PostgresServer) -> None:
    """B-11a, B-11b: nothing is written, and no session state is left for a pooler's next client."""
    url = postgres_url(postgres18)
    make_tables(url)
    backend = SqlalchemyBackend(f"sqlalchemy+{url}?application_name=looked_at", timeout=10)
    done = claim_of()
    for _ in range(8):  # psycopg would prepare a statement that it has seen five times
        lease = leased(backend, claim_of())
    backend.complete(Complete(leased(backend, done), b"response"))
    xmax = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
    with postgres18.connect() as connection:
        before = connection.execute(xmax).fetchone()
        for _ in range(3):
            assert backend.claim(claim_of(done.record_id)) == Finished(b"response")
            assert isinstance(backend.claim(claim_of(lease.record_id)), Busy)
        assert connection.execute(xmax).fetchone() == before
    state = "SELECT (SELECT count(*) FROM pg_prepared_statements), current_setting('lock_timeout')"
    found = backend._runner.call(lambda each: each.exec_driver_sql(state).one(), "read")
    assert tuple(found) == (0, "0")
    backend.close()


def test_missing_tables_are_reported_from_a_missing_database(tmp_path: Path, postgres18: PostgresServer) -> None:
    """B-10: the message says what to do; ``migrate`` does it, once, even if run concurrently."""
    empty = postgres18.create_database(f"empty_{secrets.token_hex(4)}").replace(
        "postgresql://", "postgresql+psycopg://"
    )
    for url in (f"sqlalchemy+sqlite:///{tmp_path / 'new.db'}", f"sqlalchemy+{empty}"):
        backend = open_backend(url, timeout=10)
        with pytest.raises(BackendUnavailable, match="open-idempotency migrate"):
            backend.claim(claim_of())
        with ThreadPoolExecutor(3) as threads:
            made = list(threads.map(lambda backend: backend.migrate(), [backend] * 3, timeout=60))
        assert sorted({name for names in made for name in names}) == sorted(metadata.tables)
        assert list(backend.migrate()) == []
        assert isinstance(backend.claim(claim_of()), Leased)
        backend.close()
