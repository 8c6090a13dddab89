"""The PostgreSQL backend beyond the contract: costs, durability, restarts, poolers, waiting, migrations."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import psycopg
import pytest

from open_idempotency import ConfigurationError, open_backend
from open_idempotency.backend import (
    Busy,
    Claim,
    Complete,
    Fail,
    Finished,
    Get,
    Lease,
    Leased,
    Release,
    Renew,
    Renewal,
    Reserve,
    Reserved,
    SaveStage,
    Stage,
    Wait,
)
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.postgres.backend import migrate, migrations
from open_idempotency.backends.postgres.verbs import Statement
from open_idempotency.cli import main as command
from open_idempotency.conformance import ManualClock
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from tests.backends.impatient import retried
from tests.backends.postgres.on_postgres import emptied
from tests.postgres_server import PostgresServer

NEVER = 100.0
SOON = 20.0


ENDS: dict[str, Callable[[PostgresBackend, Lease], object]] = {
    "complete": lambda backend, lease: backend.complete(Complete(lease, b"response")),
    "fail": lambda backend, lease: backend.fail(Fail(lease)),
    "release": lambda backend, lease: backend.release(Release(lease)),
    "delete": lambda backend, lease: backend.delete(lease.record_id),
}


def claim_of(record_id: bytes | None = None, **fields: Any) -> Claim:
    """A claim of a new record."""
    times = {"lease": 30.0, "ttl": 600.0, **fields}
    return Claim(record_id or secrets.token_bytes(32), b"fingerprint", os.urandom(16), **times)


def leased(backend: PostgresBackend, claim: Claim) -> Lease:
    """The lease of a successful claim."""
    result = backend.claim(claim)
    assert isinstance(result, Leased), result
    return result.lease


def asked(backend: PostgresBackend, statement: str, *values: Any) -> list[Any]:
    """The rows of a statement on one of the backend's connections."""
    return backend._executor._of_process.get().connections.rows(Statement(statement), values)


@pytest.fixture
def backend(postgres18: PostgresServer) -> Iterator[PostgresBackend]:
    """A backend on the shared server."""
    backend = PostgresBackend(postgres18.url(), timeout=10)
    yield backend
    backend.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server for this test alone, with default durability."""
    server = PostgresServer(18).start()
    try:
        migrate(PostgresBackend(server.url()).options)
        yield server
    finally:
        server.stop()


def next_transaction(server: PostgresServer) -> int:
    """The number of the next writing transaction; reading it uses none up."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])


def test_a_replay_and_a_409_only_read(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-11b: they use no transaction number, so nothing is written or flushed."""
    running, done = claim_of(), claim_of()
    leased(backend, running)
    backend.complete(Complete(leased(backend, done), b"response"))
    before = next_transaction(postgres18)
    for _ in range(3):
        assert isinstance(backend.claim(claim_of(running.record_id)), Busy)
        assert backend.claim(claim_of(done.record_id)) == Finished(b"response")
    assert next_transaction(postgres18) == before


def test_nothing_of_a_session_is_held(backend: PostgresBackend) -> None:
    """B-11a: no session lock, no setting, no LISTEN on a pooled connection. Other tests cover prepared statements."""
    lease = leased(backend, claim_of())
    backend.save_stage(SaveStage(lease, Stage("stage", "", b"frame")))
    backend.wait(Wait(lease.record_id, 0.01, 0.01))
    rows = asked(
        backend,
        "SELECT (SELECT count(*) FROM pg_listening_channels()),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
        " current_setting('synchronous_commit'), current_setting('lock_timeout')",
    )
    assert rows == [(0, 0, "on", "0")]


def test_a_completion_and_a_renewal_write_no_index(own_server: PostgresServer) -> None:
    """LIMITS: attempts change no indexed column, so updates are HOT except on full pages."""
    backend = PostgresBackend(own_server.url(), timeout=10)
    for _ in range(5):
        lease = leased(backend, claim_of())
        assert backend.renew(Renew([lease])) == [Renewal.OWNED]
        backend.complete(Complete(lease, b"response"))
    backend.close()
    deadline = time.monotonic() + SOON
    with own_server.connect() as connection:
        # There may be more than ten: a slow claim corrects its time, which is not indexed either.
        while (counts := connection.execute(_UPDATES).fetchone()) is None or counts[0] < 10:
            assert time.monotonic() < deadline, counts
            time.sleep(0.01)
    assert counts[0] == counts[1]


_UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'records'"


def test_an_attempt_that_outlives_its_ttl_is_not_purged(postgres18: PostgresServer) -> None:
    """B-05: a purge reads the earliest moment of expiry, and a renewed record expires later."""
    clock = ManualClock()
    backend = PostgresBackend(emptied(postgres18), timeout=10, clock=clock)
    lease = leased(backend, claim_of(ttl=10.0))
    for _ in range(10):
        clock.advance(20)
        assert backend.renew(Renew([lease])) == [Renewal.OWNED]
    assert backend.purge() == 0
    backend.complete(Complete(lease, b"response"))
    clock.advance(9)
    assert backend.purge() == 0
    clock.advance(2)
    assert backend.purge() == 1
    backend.close()


def test_one_of_many_claims_at_once_wins(backend: PostgresBackend) -> None:
    """I1, O-02: 32 claims of one record, on all connections."""
    record_id = secrets.token_bytes(32)
    start = threading.Barrier(16)

    def contend() -> str:
        start.wait(SOON)
        return type(backend.claim(claim_of(record_id))).__name__

    with ThreadPoolExecutor(16) as pool:
        results = [future.result(SOON) for future in [pool.submit(contend) for _ in range(16)]]
    assert sorted(results) == ["Busy"] * 15 + ["Leased"]


def test_renewals_of_the_same_leases_in_another_order_do_not_wait_for_each_other(backend: PostgresBackend) -> None:
    """B-04: no deadlock."""
    leases = [leased(backend, claim_of()) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        orders = [leases, leases[::-1]] * 10
        results = list(pool.map(lambda order: list(backend.renew(Renew(order))), orders, timeout=SOON))
    assert all(result == [Renewal.OWNED] * 40 for result in results)


def test_an_acknowledged_write_survives_a_crash_of_the_server(own_server: PostgresServer) -> None:
    """B-01, I2: the server is killed and recovers; the backend reconnects."""
    backend = PostgresBackend(own_server.url(), timeout=5)
    running, done = claim_of(), claim_of()
    lease = leased(backend, running)
    backend.save_stage(SaveStage(lease, Stage("charge", "", b"frame")))
    backend.complete(Complete(leased(backend, done), b"response"))
    own_server.kill()
    with pytest.raises(BackendUnavailable):
        backend.claim(claim_of())
    own_server.start()
    assert backend.claim(claim_of(done.record_id)) == Finished(b"response")
    record = backend.get(Get(running.record_id))
    assert record is not None
    assert record.stages == (Stage("charge", "", b"frame"),)
    backend.complete(Complete(lease, b"late"))
    backend.close()


def test_broken_connections_are_replaced_within_one_call(own_server: PostgresServer) -> None:
    """B-10: the second call does not notice a restart before it."""
    backend = PostgresBackend(own_server.url(), timeout=5)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: backend.claim(claim_of()), range(32)))
    own_server.kill()
    own_server.start()
    for _ in range(8):
        leased(backend, claim_of())
    backend.close()


def test_a_server_that_does_not_reply_is_given_up(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-10: a locked row simulates silence; the call ends in time."""
    claim = claim_of(lease=0.001)
    lease = leased(backend, claim)
    impatient = PostgresBackend(postgres18.url(), timeout=0.5)
    with psycopg.connect(postgres18.url()) as locker:
        locker.execute("SELECT 1 FROM open_idempotency.records WHERE record_id = %b FOR UPDATE", (claim.record_id,))
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match="no response in time"):
            impatient.complete(Complete(lease, b"response"))
        assert time.monotonic() - started <= impatient.call_timeout + 1
    retried(lambda: impatient.complete(Complete(lease, b"response")))
    impatient.close()


@pytest.mark.anyio
async def test_a_server_that_does_not_reply_is_given_up_in_the_other_kind_too(
    backend: PostgresBackend, postgres18: PostgresServer
) -> None:
    """B-10."""
    lease = leased(backend, claim_of())
    impatient = PostgresBackend(postgres18.url(), timeout=0.5).to_async()
    with psycopg.connect(postgres18.url()) as locker:
        locker.execute("SELECT 1 FROM open_idempotency.records WHERE record_id = %b FOR UPDATE", (lease.record_id,))
        with anyio.fail_after(impatient.call_timeout + 1), pytest.raises(BackendUnavailable):
            await impatient.complete(Complete(lease, b"response"))
    await impatient.close()


def test_a_database_that_was_not_prepared_says_what_to_do(postgres18: PostgresServer) -> None:
    """O-34: the message has the command, and `open-idempotency purge` fails."""
    url = postgres18.create_database(f"d{secrets.token_hex(8)}")
    backend = PostgresBackend(url)
    with pytest.raises(BackendUnavailable, match="open-idempotency migrate"):
        backend.claim(claim_of())
    backend.close()
    assert command(["purge", url]) == 7


def test_migrations_at_the_same_moment_are_applied_once(postgres18: PostgresServer) -> None:
    """A deployment may start several processes."""
    url = postgres18.create_database(f"d{secrets.token_hex(8)}")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: migrate(PostgresBackend(url).options), range(4)))
    assert sorted(map(len, done)) == [0, 0, 0, len(migrations())]


def test_a_record_of_a_newer_version_is_left_alone(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-08b: typed error; no run, no overwrite."""
    lease = leased(backend, claim_of())
    with postgres18.connect() as connection:
        connection.execute(
            "UPDATE open_idempotency.records SET record_version = 2 WHERE record_id = %b", (lease.record_id,)
        )
    for call in (
        lambda: backend.claim(claim_of(lease.record_id)),
        lambda: backend.complete(Complete(lease, b"response")),
        lambda: backend.save_stage(SaveStage(lease, Stage("a", "", b"frame"))),
        lambda: backend.fail(Fail(lease)),
        lambda: backend.get(Get(lease.record_id)),
    ):
        with pytest.raises(RecordUnreadable):
            call()
    assert backend.renew(Renew([lease])) == [Renewal.LOST]


def test_purges_at_the_same_moment_share_the_work(postgres18: PostgresServer) -> None:
    """B-09: none waits for another, and no record counts twice."""
    now = [1000.0]
    backend = PostgresBackend(postgres18.create_database(f"d{secrets.token_hex(8)}"), timeout=10, clock=lambda: now[0])
    backend.migrate()
    for _ in range(60):
        leased(backend, claim_of(ttl=1.0, lease=1.0))
    now[0] += 1000
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: backend.purge(30), range(4))) <= 60
    backend.purge(100)
    assert list(backend.scan()) == []
    backend.close()


def waiting_until_notified(backend: PostgresBackend, lease: Lease) -> threading.Thread:
    """A thread that waits for the attempt, and has subscribed to its end."""
    # The first waiter is not notified, since the backend does not listen yet.
    deadline = time.monotonic() + SOON
    while not backend.listener._listening and time.monotonic() < deadline:
        backend.wait(Wait(lease.record_id, 0.05, 0.05))
    assert backend.listener._listening
    waiter = threading.Thread(target=backend.wait, args=(Wait(lease.record_id, NEVER, NEVER),))
    waiter.start()
    while not awaited(backend, lease) and time.monotonic() < deadline:
        time.sleep(0.01)
    return waiter


def awaited(backend: PostgresBackend, lease: Lease) -> bool:
    """Whether a waiter has subscribed to the end of the attempt."""
    rows = asked(backend, "SELECT awaited FROM open_idempotency.records WHERE record_id = {bytea}", lease.record_id)
    return bool(rows and rows[0][0])


@pytest.mark.parametrize("end", ENDS)
def test_a_waiting_duplicate_is_notified(backend: PostgresBackend, postgres18: PostgresServer, end: str) -> None:
    """O-04: by the backend of another process."""
    other = PostgresBackend(postgres18.url(), timeout=10)
    lease = leased(backend, claim_of())
    waiter = waiting_until_notified(backend, lease)
    ENDS[end](other, lease)
    waiter.join(SOON)
    assert not waiter.is_alive()
    other.close()


def test_without_listening_it_polls(postgres18: PostgresServer) -> None:
    """O-04, B-11a: behind a pooler no connection listens for notifications."""
    backend = PostgresBackend(f"{postgres18.url()}?listen=no", timeout=10)
    lease = leased(backend, claim_of())
    started = time.monotonic()
    backend.wait(Wait(lease.record_id, NEVER, 0.01))
    assert time.monotonic() - started < SOON
    assert not awaited(backend, lease)
    backend.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://localhost/db?timeout=0", "timeout"),
        ("postgresql://localhost/db?max_connections=0", "max_connections"),
        ("postgresql://localhost/db?listen=perhaps", "listen"),
        ("postgresql://localhost/db?coalesce=perhaps", "coalesce"),
        ("postgresql://localhost/db?nonsense=1", "nonsense"),
        ("postgresql://localhost:port/db", "port"),
        ("postgresql://[::1/db", "malformed"),
    ],
)
def test_a_wrong_url_is_refused_at_start(url: str, message: str) -> None:
    """Bad input: the error names the wrong setting."""
    with pytest.raises(ConfigurationError, match=message):
        open_backend(url)


def test_without_a_host_libpq_looks_for_its_own_socket() -> None:
    """B-10: as in every client with libpq."""
    found = PostgresBackend("postgresql:///shop?host=/run/postgresql&timeout=3").options.conninfo
    assert "dbname=shop host=/run/postgresql " in found
    assert "host" not in PostgresBackend("postgresql:///shop").options.conninfo


def test_of_several_hosts_the_one_that_writes_is_taken(postgres18: PostgresServer) -> None:
    """B-10: never a replica, which may lack a claim."""
    backend = PostgresBackend(f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{postgres18.port}/postgres")
    leased(backend, claim_of())
    assert asked(backend, "SELECT pg_is_in_recovery()") == [(False,)]
    assert "target_session_attrs=read-write" in backend.options.conninfo
    backend.close()


def test_what_is_libpqs_is_handed_on_as_it_is(postgres18: PostgresServer) -> None:
    """B-10: in a URL libpq takes a plus literally, and %20 as a space."""
    url = f"{postgres18.url()}?options=-c%20work_mem%3D5MB&timeout=9&application_name=a+b"
    backend = PostgresBackend(url)
    rows = asked(backend, "SELECT current_setting('work_mem'), current_setting('application_name')")
    backend.close()
    assert rows == [("5MB", "a+b")]
    assert backend.options.timeout == 9


def test_claims_that_meet_under_a_higher_default_isolation_get_a_response(postgres18: PostgresServer) -> None:
    """B-10, I1: a serialization error is retried, and does not count as a failed backend."""
    url = f"{postgres18.url()}?options=-c%20default_transaction_isolation%3Dserializable"
    backend = PostgresBackend(url, timeout=10)
    record_ids = [secrets.token_bytes(32) for _ in range(10)]

    def claimed(record_id: bytes) -> type[object]:
        return type(backend.claim(claim_of(record_id)))

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(claimed, [record_id for record_id in record_ids for _ in range(8)]))
    backend.close()
    assert (results.count(Leased), results.count(Busy)) == (10, 70)


def test_what_others_make_in_the_callers_search_path_is_not_called(postgres18: PostgresServer) -> None:
    """A user's function with a better-matching signature than the server's own is not called."""
    url = postgres18.create_database("searched")
    migrate(PostgresBackend(url).options)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE 'called'; END $$"
        )
    backend = PostgresBackend(url, timeout=10)
    result = backend.reserve(Reserve(secrets.token_bytes(32), secrets.token_bytes(32), 5, 30.0, 600.0))
    backend.close()
    assert result == Reserved()


def test_no_message_repeats_the_password() -> None:
    backend = open_backend("postgresql://user:hush@127.0.0.1:1/db?timeout=0.2")
    assert "hush" not in repr(backend)
    with pytest.raises(BackendUnavailable) as caught:
        backend.claim(claim_of())
    assert "hush" not in str(caught.value)
    backend.close()
