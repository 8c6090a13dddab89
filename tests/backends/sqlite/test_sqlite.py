"""The SQLite backend beyond the contract: reads without locks, and checks of its file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from open_idempotency.backend import (
    Busy,
    Complete,
    Fail,
    Finished,
    Get,
    Leased,
    Mismatch,
    Refused,
    Renew,
    Renewal,
    SaveStage,
)
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import claim_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError, RecordUnreadable
from tests.backends.impatient import retried

RECORDS = "open_idempotency_records"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "records.db")


@pytest.fixture
def backend(path: str) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(path, synchronous="normal", timeout=20)
    yield backend
    backend.close()


@pytest.fixture
def other(path: str, backend: SqliteBackend) -> Iterator[sqlite3.Connection]:
    """A connection that is not the backend's; the schema exists."""
    backend.get(Get(b"none"))
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    yield connection
    connection.close()


def _lease(backend: SqliteBackend, record_id: bytes = b"a"):
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased)
    return result.lease


def test_refused_duplicates_take_no_write_lock(backend: SqliteBackend, other: sqlite3.Connection) -> None:
    """B-11b: a replay, a 409 and a 422 only read, so another writer does not delay them."""
    _lease(backend, b"running")
    backend.complete(Complete(_lease(backend, b"completed"), b"response"))
    backend.fail(Fail(_lease(backend, b"final"), final=True))
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    assert isinstance(backend.claim(claim_of(b"running")), Busy)
    assert backend.claim(claim_of(b"completed")) == Finished(b"response")
    assert backend.claim(claim_of(b"completed", fingerprint=b"other")) == Mismatch()
    assert isinstance(backend.claim(claim_of(b"final")), Refused)
    assert backend.get(Get(b"completed")) is not None
    # One of them waiting would have taken the busy timeout of 20 seconds.
    assert time.monotonic() - started < 5
    other.execute("ROLLBACK")


def test_a_locked_database_is_unavailable_in_time(path: str, other: sqlite3.Connection) -> None:
    """B-10: within call_timeout, with the driver's error as the cause."""
    impatient = SqliteBackend(path, timeout=0.05)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        impatient.claim(claim_of(b"a"))
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert time.monotonic() - started < impatient.call_timeout + 1
    other.execute("ROLLBACK")
    claim = claim_of(b"a")
    assert isinstance(retried(lambda: impatient.claim(claim)), Leased)
    impatient.close()


@pytest.mark.parametrize("coalesce", [True, False])
def test_threads_of_one_process_queue_for_the_write_lock(path: str, coalesce: bool) -> None:
    """B-10: the error distinguishes a slow writer of this process from a lock of another one."""
    inside, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(20)
        return 1_800_000_000.0

    backend = SqliteBackend(path, timeout=0.05, coalesce=coalesce, clock=clock)
    thread = threading.Thread(target=lambda: backend.claim(claim_of(b"a")))
    thread.start()
    assert inside.wait(20)
    with pytest.raises(BackendUnavailable, match=r"no turn to write|took no further calls"):
        backend.claim(claim_of(b"b"))
    go_on.set()
    thread.join(20)
    claim = claim_of(b"b")
    assert isinstance(retried(lambda: backend.claim(claim)), Leased)
    backend.close()


def test_two_processes_never_both_win(path: str) -> None:
    """B-01: several processes on one file."""
    script = Path(__file__).with_name("race_script.py")
    command = [sys.executable, str(script), f"sqlite:///{path}?synchronous=normal&timeout=20"]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
    results = []
    for racer in racers:
        assert racer.stdout is not None
        results.append(racer.stdout.read().split())
        racer.stdout.close()
        assert racer.wait(30) == 0
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["Busy", "Leased"]] * 20


@pytest.mark.parametrize(
    "damage",
    [
        "record_version = 2",
        "record_version = 'x'",
        "status = 0",
        "status = 7",
        "owner = 'text'",
        "token = 'x'",
        "fingerprint = 1",
        "expires_at = 'x'",
        "final = 2",
        "response = 'text', status = 2",
    ],
)
def test_a_row_that_cannot_be_read_is_left_alone(
    backend: SqliteBackend, other: sqlite3.Connection, damage: str
) -> None:
    """B-08b: corrupt, foreign or newer; no verb runs or overwrites it."""
    lease = _lease(backend)
    other.execute(f"UPDATE {RECORDS} SET {damage}")
    before = other.execute(f"SELECT * FROM {RECORDS}").fetchall()
    for attempt in (
        lambda: backend.claim(claim_of(b"a")),
        lambda: backend.get(Get(b"a")),
        lambda: list(backend.scan()) or backend.get(Get(b"a")),
    ):
        with pytest.raises(RecordUnreadable):
            attempt()
    if "response" not in damage:
        for attempt in (
            lambda: backend.complete(Complete(lease, b"response")),
            lambda: backend.save_stage(SaveStage(lease, stage_of("late"))),
            lambda: backend.fail(Fail(lease)),
        ):
            with pytest.raises(RecordUnreadable):
                attempt()
    assert other.execute(f"SELECT * FROM {RECORDS}").fetchall() == before


def test_a_stage_that_cannot_be_read_is_left_alone(backend: SqliteBackend, other: sqlite3.Connection) -> None:
    """B-08b: an attempt that cannot see its stages must not run."""
    lease = _lease(backend)
    backend.save_stage(SaveStage(lease, stage_of("reserve")))
    backend.fail(Fail(lease))
    other.execute("UPDATE open_idempotency_stages SET name = X'FF'")
    with pytest.raises(RecordUnreadable):
        backend.claim(claim_of(b"a"))


def test_an_operator_can_delete_what_cannot_be_read(backend: SqliteBackend, other: sqlite3.Connection) -> None:
    """B-09: the remedy for B-08b."""
    _lease(backend)
    other.execute(f"UPDATE {RECORDS} SET record_version = 2")
    assert backend.delete(b"a")
    _lease(backend)


def test_a_newer_schema_is_left_alone(path: str, backend: SqliteBackend, other: sqlite3.Connection) -> None:
    """B-08b: a database of a later release."""
    other.execute("UPDATE open_idempotency_schema SET version = 3")
    later = SqliteBackend(path)
    with pytest.raises(RecordUnreadable, match="schema version"):
        later.claim(claim_of(b"a"))
    assert other.execute(f"SELECT count(*) FROM {RECORDS}").fetchone() == (0,)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """B-08b: another program's file is not overwritten."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are notes, not records " * 100)
    before = path.read_bytes()
    backend = SqliteBackend(str(path))
    with pytest.raises(RecordUnreadable) as caught:
        backend.claim(claim_of(b"a"))
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert path.read_bytes() == before


def test_an_applications_own_database_can_hold_the_records(path: str) -> None:
    """The tables have a prefix, and the application's own ones do not change."""
    theirs = sqlite3.connect(path)
    with theirs:
        theirs.execute("CREATE TABLE records (name TEXT)")
        theirs.execute("PRAGMA user_version = 99")
    backend = SqliteBackend(path)
    assert isinstance(backend.claim(claim_of(b"a")), Leased)
    assert theirs.execute("PRAGMA user_version").fetchone() == (99,)
    backend.close()
    theirs.close()


def test_one_damaged_record_does_not_stop_the_heartbeat(backend: SqliteBackend, other: sqlite3.Connection) -> None:
    """B-04, B-08b: other leases are renewed."""
    from open_idempotency.backend import Renew, Renewal

    damaged, sound = _lease(backend, b"damaged"), _lease(backend, b"sound")
    other.execute(f"UPDATE {RECORDS} SET record_version = 2 WHERE record_id = ?", (b"damaged",))
    assert list(backend.renew(Renew([damaged, sound]))) == [Renewal.LOST, Renewal.OWNED]


def test_claims_purge_expired_records(path: str, tmp_path: Path) -> None:
    """I11: the file stays in proportion to the live records, stages included."""
    clock = ManualClock()
    backend = SqliteBackend(path, synchronous="normal", clock=clock)
    for number in range(20):
        backend.save_stage(SaveStage(_lease(backend, b"old-%d" % number), stage_of("reserve")))
    clock.advance(100_000)
    for number in range(5):
        _lease(backend, b"new-%d" % number)
    backend.close()
    connection = sqlite3.connect(path)
    tables = (RECORDS, "open_idempotency_stages")
    counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    connection.close()
    assert counts == [5, 0]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_durability_is_what_was_asked_for(path: str, synchronous: str, level: int) -> None:
    """FULL survives a power failure; write-ahead logging is always on."""
    backend = SqliteBackend(path, synchronous=synchronous)

    def pragmas(connection: sqlite3.Connection) -> list[object]:
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]

    assert backend._connections.read(pragmas) == [level, "wal"]
    backend.close()


def test_constructing_opens_nothing(path: str) -> None:
    """B-11: a preloading server has no file to inherit."""
    SqliteBackend(path)
    assert not Path(path).exists()


@pytest.mark.parametrize("wrong", ["", ":memory:"])
def test_records_in_memory_are_another_backends(wrong: str) -> None:
    """In-memory SQLite is refused: each thread would have its own database."""
    with pytest.raises(ConfigurationError, match="memory://"):
        SqliteBackend(wrong)


def test_another_file_is_another_backend(tmp_path: Path) -> None:
    """Two workers with different files both let the request run."""
    for name in ("one", "other"):
        backend = SqliteBackend(str(tmp_path / f"{name}.db"))
        assert isinstance(backend.claim(claim_of(b"r" * 32)), Leased)
        backend.close()


def test_a_missing_directory_is_found_at_start(tmp_path: Path) -> None:
    """The error at start names the directory."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        SqliteBackend(str(tmp_path / "missing" / "records.db"))
    with pytest.raises(ConfigurationError, match="is a directory"):
        SqliteBackend(str(tmp_path))


def test_an_attempt_that_outlives_its_ttl_is_not_purged(path: str) -> None:
    """B-05: a purge reads the earliest moment of expiry, and a renewed record expires later."""
    clock = ManualClock()
    backend = SqliteBackend(path, synchronous="normal", clock=clock)
    result = backend.claim(claim_of(b"long", ttl=10.0))
    assert isinstance(result, Leased)
    for _ in range(10):
        clock.advance(20)
        assert backend.renew(Renew([result.lease])) == [Renewal.OWNED]
    assert backend.purge() == 0
    backend.complete(Complete(result.lease, b"response"))
    clock.advance(9)
    assert backend.purge() == 0
    clock.advance(2)
    assert backend.purge() == 1
    backend.close()


def test_a_relative_path_is_fixed_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that changes its directory keeps its records."""
    monkeypatch.chdir(tmp_path)
    backend = SqliteBackend.from_url("sqlite:///records.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    backend.get(Get(b"a"))
    backend.close()
    assert (tmp_path / "records.db").exists()


def test_a_turn_to_write_is_given_back_only_by_who_has_it(path: str) -> None:
    """B-10: it is always released, even if a signal handler raises right after the acquisition."""
    turn = SqliteBackend(path)._connections.turn
    with ThreadPoolExecutor(1) as another:
        assert another.submit(turn.acquire, 0).result(20)
        assert not turn.acquire(0)
        turn.release()
        assert not turn.acquire(0)
        another.submit(turn.release).result(20)
    assert turn.acquire(0)
    turn.release()


def test_what_goes_on_after_a_fork_lets_go_of_its_own_lock_alone(path: str) -> None:
    """B-11: even if the backend was closed, and used again, while another thread forked."""
    backend = SqliteBackend(path, synchronous="normal", timeout=20)
    backend.get(Get(b"schema"))
    resume = backend._connections.pause()
    backend.close()
    backend.get(Get(b"again"))
    opened_since = backend._connections._pools.get()
    assert opened_since.writing.acquire(0)
    resume()
    with ThreadPoolExecutor(1) as another:
        assert not another.submit(opened_since.writing.acquire, 0).result(20)
    opened_since.writing.release()
    assert isinstance(backend.claim(claim_of(b"a")), Leased)
    backend.close()


def test_no_connection_is_opened_while_the_process_forks(path: str) -> None:
    """B-11: the child would inherit it."""
    backend = SqliteBackend(path, synchronous="normal", timeout=20)
    backend.get(Get(b"schema"))
    opened = threading.Event()
    resume = backend._connections.pause()
    thread = threading.Thread(target=lambda: backend._connections.read(lambda _: opened.set()))
    thread.start()
    # Without waiting, it would be open within a millisecond.
    assert not opened.wait(0.1)
    resume()
    assert opened.wait(20)
    thread.join(20)
    backend.close()


def test_what_waits_for_a_fork_does_not_wait_for_ever(path: str) -> None:
    """B-10, I11: the wait is bounded."""
    backend = SqliteBackend(path, synchronous="normal", timeout=0.05)
    resume = backend._connections.pause()
    for call in (lambda: backend.get(Get(b"a")), lambda: backend.claim(claim_of(b"a"))):
        with pytest.raises(BackendUnavailable):
            call()
    resume()
    claim = claim_of(b"a")
    assert isinstance(retried(lambda: backend.claim(claim)), Leased)
    backend.close()


def test_purging_goes_on_when_the_clock_is_put_back(path: str) -> None:
    """L-07: the next purge does not wait until the old time has come again."""
    clock, right = ManualClock(), ManualClock()
    backend, other = (SqliteBackend(path, synchronous="normal", clock=each) for each in (clock, right))
    clock.advance(1_000_000)
    _lease(backend, b"future")
    _lease(other, b"old")
    clock.advance(-900_000)
    _lease(backend, b"now")
    backend.close()
    other.close()
    connection = sqlite3.connect(path)
    assert connection.execute(f"SELECT record_id FROM {RECORDS} ORDER BY 1").fetchall() == [(b"future",), (b"now",)]
    connection.close()


def test_the_stages_of_a_record_that_was_deleted_by_hand_are_not_taken_over(
    backend: SqliteBackend, other: sqlite3.Connection
) -> None:
    """B-06: a new record begins without stages, also for later attempts."""
    backend.save_stage(SaveStage(_lease(backend), stage_of("reserve")))
    other.execute(f"DELETE FROM {RECORDS}")
    backend.fail(Fail(_lease(backend)))
    result = backend.claim(claim_of(b"a"))
    assert isinstance(result, Leased)
    assert (result.lease.attempt, result.stages) == (2, ())


def test_more_threads_than_idle_connections_are_closed_after_use(path: str) -> None:
    """I11: idle connections are bounded, whatever the number of threads was."""
    backend = SqliteBackend(path, synchronous="normal", timeout=20)
    barrier = threading.Barrier(24, timeout=20)

    def use() -> None:
        backend._connections.read(lambda _: barrier.wait())

    threads = [threading.Thread(target=use) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    pool = backend._connections._pools.get()
    assert (len(pool.idle), len(pool.calls)) == (8, 0)
    backend.close()
