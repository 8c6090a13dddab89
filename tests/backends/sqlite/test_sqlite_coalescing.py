"""Group commit on SQLite: commands that wait for a transaction share the next one; each has its own result."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from open_idempotency.backend import (
    Busy,
    Complete,
    Completed,
    Fail,
    Finished,
    Get,
    Leased,
    Mismatch,
    Renew,
    Renewal,
    SaveStage,
    StageSaved,
    Status,
)
from open_idempotency.backends.sqlite import SqliteBackend, verbs
from open_idempotency.backends.sqlite.transactions import Request
from open_idempotency.conformance.support import stage_of
from open_idempotency.exceptions import AlreadyCompleted, BackendUnavailable, LeaseLost, RecordUnreadable
from tests.backends.impatient import retried
from tests.backends.sqlite.together import (
    FIRST,
    PATIENCE,
    OnALoop,
    OnThreads,
    claim_of,
    commits,
    lease_of,
    lock,
    unlock,
)

ROOT = Path(__file__).resolve().parents[3]
RECORDS = "open_idempotency_records"
Ask = Callable[..., list[Any]]


def nothing() -> None:
    """Do nothing while all commands wait."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "records.db")


@pytest.fixture
def backend(path: str) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(path, timeout=PATIENCE)  # durable: with "normal" threads do not coalesce
    yield backend
    backend.close()


@pytest.fixture(params=[OnThreads, OnALoop])
def together(request: pytest.FixtureRequest, backend: SqliteBackend, path: str) -> Ask:
    """``together((verb, command), ...)``: the results of commands in one transaction, on threads and on a loop."""
    callers = request.param(backend)

    def ask(*commands: tuple[str, Any], meanwhile: Callable[[], None] = nothing) -> list[Any]:
        results: list[Any] = callers.results(path, commands, meanwhile)
        return results

    return ask


def rows_of(path: str) -> set[bytes]:
    connection = sqlite3.connect(path, timeout=PATIENCE)
    found = {record_id for (record_id,) in connection.execute(f"SELECT record_id FROM {RECORDS}")}
    connection.close()
    return found


def test_what_waits_shares_one_transaction(together: Ask, path: str, backend: SqliteBackend) -> None:
    """LIMITS: claims and completions; one transaction for the first command, one for all others."""
    done = lease_of(backend, b"done")
    before = commits(path)
    keys = [b"key-%d" % number for number in range(20)]
    results = together(*(("claim", claim_of(key)) for key in keys), ("complete", Complete(done, b"response")))
    assert [type(result) for result in results] == [Leased] * 20 + [Completed]
    assert commits(path) - before == 2
    assert rows_of(path) == {FIRST, b"done", *keys}
    assert backend.claim(claim_of(b"done", b"another")) == Finished(b"response")


def test_without_coalescing_each_has_a_transaction(path: str) -> None:
    """``coalesce=no``: four concurrent writers, four transactions."""
    backend = SqliteBackend.from_url(f"sqlite:///{path}?coalesce=no&synchronous=normal&timeout=20")
    lease_of(backend, b"schema")
    before = commits(path)

    async def at_once() -> None:
        await asyncio.gather(*(backend.to_async().claim(claim_of(b"%d" % number)) for number in range(4)))

    asyncio.run(asyncio.wait_for(at_once(), PATIENCE))
    assert commits(path) - before == 4
    backend.close()


@pytest.mark.parametrize("mode", ["sync", "asyncio"])
def test_who_is_alone_waits_for_nobody(backend: SqliteBackend, path: str, mode: str) -> None:
    """LIMITS: no timer; a claim and its completion have one transaction each."""
    lease_of(backend, b"schema")
    before = commits(path)

    async def pair() -> None:
        result = await backend.to_async().claim(claim_of(b"alone"))
        assert isinstance(result, Leased)
        await backend.to_async().complete(Complete(result.lease, b"response"))

    if mode == "sync":
        backend.complete(Complete(lease_of(backend, b"alone"), b"response"))
    else:
        asyncio.run(pair())
    assert commits(path) - before == 2


def test_of_two_with_one_key_in_a_transaction_one_wins(together: Ask) -> None:
    """B-01: the second claim finds the uncommitted record of the first."""
    one, two = together(("claim", claim_of(b"key", b"one")), ("claim", claim_of(b"key", b"two")))
    assert isinstance(one, Leased)
    assert isinstance(two, Busy)


def test_a_claim_that_is_sent_twice_into_a_transaction_is_owned(together: Ask) -> None:
    """B-08: the same owner gets a lease twice, with the same token."""
    one, two = together(("claim", claim_of(b"key", b"me")), ("claim", claim_of(b"key", b"me")))
    assert isinstance(one, Leased)
    assert isinstance(two, Leased)
    assert (one.lease.token, one.lease.attempt) == (two.lease.token, two.lease.attempt)


def test_another_request_with_the_key_of_a_transaction_is_reported(together: Ask) -> None:
    """O-05: a mismatch, even before the first claim is committed."""
    one, two = together(("claim", claim_of(b"key")), ("claim", claim_of(b"key", b"two", fingerprint=b"other")))
    assert isinstance(one, Leased)
    assert two == Mismatch()


def test_what_one_is_refused_is_no_business_of_the_others(together: Ask, path: str, backend: SqliteBackend) -> None:
    """B-03, B-08b: only their own callers get LeaseLost, AlreadyCompleted and RecordUnreadable, which write nothing."""
    stale, done, damaged, sound = (lease_of(backend, key) for key in (b"stale", b"done", b"damaged", b"sound"))
    backend.fail(Fail(stale))
    owner = lease_of(backend, b"stale")
    backend.complete(Complete(done, b"response"))
    connection = sqlite3.connect(path, timeout=PATIENCE)
    with connection:
        connection.execute(f"UPDATE {RECORDS} SET record_version = 9 WHERE record_id = ?", (b"damaged",))
    before = commits(path)
    results = together(
        ("complete", Complete(stale, b"stale")),
        ("save_stage", SaveStage(sound, stage_of("reserve"))),
        ("save_stage", SaveStage(done, stage_of("late"))),
        ("complete", Complete(damaged, b"damaged")),
        ("renew", Renew([damaged, owner])),
        ("fail", Fail(stale)),
        ("claim", claim_of(b"new")),
    )
    assert [type(result) for result in results] == [
        LeaseLost, StageSaved, AlreadyCompleted, RecordUnreadable, list, LeaseLost, Leased
    ]  # fmt: skip
    assert results[4] == [Renewal.LOST, Renewal.OWNED]
    assert commits(path) - before == 2
    kept = backend.get(Get(b"stale"))
    assert kept is not None
    assert (kept.status, kept.token, kept.response) == (Status.IN_PROGRESS, owner.token, None)
    assert connection.execute("SELECT count(*) FROM open_idempotency_stages").fetchone() == (1,)
    connection.close()


def test_what_cannot_be_written_takes_nobody_with_it(together: Ask, path: str) -> None:
    """B-10: a value that SQLite refuses rolls the transaction back; then each command is written alone."""
    results = together(
        ("claim", claim_of(b"one")), ("claim", claim_of(b"bad", ttl=float("nan"))), ("claim", claim_of(b"two"))
    )
    assert [type(result) for result in results] == [Leased, BackendUnavailable, Leased]
    assert isinstance(results[1].__cause__, sqlite3.IntegrityError)
    assert rows_of(path) == {FIRST, b"one", b"two"}


def test_a_command_that_makes_no_sense_takes_nobody_with_it(together: Ask, path: str) -> None:
    """B-10: a wrong command fails alone."""
    results = together(
        ("claim", claim_of(b"one")), ("claim", claim_of(b"bad", ttl="soon")), ("claim", claim_of(b"two"))
    )
    assert [type(result) for result in results] == [Leased, TypeError, Leased]
    assert rows_of(path) == {FIRST, b"one", b"two"}


def test_a_look_that_fails_takes_nobody_with_it(backend: SqliteBackend) -> None:
    """B-10: also for reads, of which a loop sends several at once."""
    lease_of(backend, b"running")
    claims = [claim_of(b"new"), claim_of(b"running", fingerprint="text"), claim_of(b"running", b"other")]
    commands = [Request(verbs.CLAIM, claim, PATIENCE) for claim in claims]
    assert [type(result) for result in backend._transactions.look(commands)] == [type(None), TypeError, Busy]
    no_id = claim_of(b"")
    no_id.record_id = {}
    commands = [Request(verbs.CLAIM, claim, PATIENCE) for claim in (no_id, claims[2], claims[0])]
    assert [type(result) for result in backend._transactions.look(commands)] == [BackendUnavailable, Busy, type(None)]


def test_many_are_looked_for_at_once(backend: SqliteBackend) -> None:
    """B-11b: any number of reads, each with the result of its own record."""
    for number in range(0, 300, 50):
        lease_of(backend, b"%d" % number)
    commands = [Request(verbs.CLAIM, claim_of(b"%d" % number, b"o"), PATIENCE) for number in range(300)]
    results = backend._transactions.look(commands)
    assert [number for number, result in enumerate(results) if isinstance(result, Busy)] == list(range(0, 300, 50))
    assert results.count(None) == 294


def test_what_waited_too_long_is_not_written(backend: SqliteBackend, path: str) -> None:
    """B-10: its caller gets an error; the others succeed."""
    late, in_time = (Request(verbs.CLAIM, claim_of(key), left) for key, left in ((b"late", -1.0), (b"new", PATIENCE)))
    results = backend._transactions.execute_all([late, in_time])
    assert [type(result) for result in results] == [BackendUnavailable, Leased]
    assert rows_of(path) == {b"new"}


def test_a_full_disk_refuses_all_of_a_transaction(together: Ask, path: str, backend: SqliteBackend) -> None:
    """B-10, O-12: a typed error at once, and nothing is written; calls succeed when there is room."""

    def set_limit(connection: sqlite3.Connection, more: int) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + more}")

    lease = lease_of(backend, b"big")
    # The limit of the only connection, which is closed after the error.
    backend._connections.read(set_limit, 2)
    results = together(("claim", claim_of(b"one")), ("complete", Complete(lease, bytes(1_000_000))))
    assert [type(result) for result in results] == [BackendUnavailable, BackendUnavailable]
    assert all("full" in str(result.__cause__) for result in results)
    assert b"one" not in rows_of(path)
    assert isinstance(backend.claim(claim_of(b"one")), Leased)
    assert backend.complete(Complete(lease, bytes(1_000_000))) == Completed()


@pytest.mark.parametrize("mode", ["sync", "asyncio"])
def test_while_the_database_is_locked_all_are_refused_in_time(path: str, mode: str, backend: SqliteBackend) -> None:
    """B-10, I11: within call_timeout, for any number of calls; nothing is written later."""
    lease_of(backend, b"schema")
    impatient = SqliteBackend(path, synchronous="normal", timeout=0.2)
    holder = lock(path)
    claims = [claim_of(b"%d" % number) for number in range(20)]

    async def at_once(claim: Callable[..., Any]) -> list[Any]:
        return await asyncio.gather(*(claim(c) for c in claims), return_exceptions=True)

    async def in_thread(claim: Any) -> Any:
        return await asyncio.to_thread(impatient.claim, claim)

    started = time.monotonic()
    results = asyncio.run(at_once(in_thread if mode == "sync" else impatient.to_async().claim))
    waited = time.monotonic() - started
    assert {type(result) for result in results} == {BackendUnavailable}
    # The threads of the executor are fewer than the claims, so some begin when others have ended.
    assert waited < impatient.call_timeout * (4 if mode == "sync" else 1) + 2
    unlock(holder)
    assert rows_of(path) == {b"schema"}
    assert isinstance(retried(lambda: impatient.claim(claims[0])), Leased)
    impatient.close()


def test_a_replay_waits_for_no_writer_of_its_loop(path: str, backend: SqliteBackend) -> None:
    """B-11b: nor do a 409 and a 422, while a claim of the same loop waits for the write lock."""
    lease_of(backend, b"running")
    backend.complete(Complete(lease_of(backend, b"done"), b"response"))
    aio = backend.to_async()

    async def test() -> None:
        holder = lock(path)
        writer = asyncio.create_task(aio.claim(claim_of(b"new")))
        await asyncio.sleep(0)
        others = [claim_of(b"done", b"o"), claim_of(b"running", b"o"), claim_of(b"running", b"o", fingerprint=b"x")]
        replay, busy, mismatch = await asyncio.wait_for(asyncio.gather(*map(aio.claim, others)), PATIENCE / 2)
        assert replay == Finished(b"response")
        assert isinstance(busy, Busy)
        assert mismatch == Mismatch()
        assert not writer.done()
        unlock(holder)
        assert isinstance(await writer, Leased)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_replay_in_a_batch_with_writers_is_returned_before_the_write(path: str, backend: SqliteBackend) -> None:
    """B-11b: also a replay that comes between two batches."""
    backend.complete(Complete(lease_of(backend, b"done"), b"response"))

    async def test() -> None:
        awaited = backend.to_async()

        async def then_replay(key: bytes) -> Any:
            await awaited.claim(claim_of(key))
            holders.append(lock(path))
            return await awaited.claim(claim_of(b"done", b"other"))

        async def then_write(key: bytes) -> Any:
            await awaited.claim(claim_of(key))
            return await awaited.claim(claim_of(key + b" again"))

        holders: list[sqlite3.Connection] = []
        tasks = [asyncio.ensure_future(each) for each in (then_replay(b"a"), then_write(b"b"), then_write(b"c"))]
        # The first goes alone, the others in one batch; the database is locked before their next commands are written.
        assert await asyncio.wait_for(tasks[0], PATIENCE) == Finished(b"response")
        assert not all(task.done() for task in tasks[1:])
        unlock(*holders)
        assert [type(result) for result in await asyncio.gather(*tasks[1:])] == [Leased] * 2

    asyncio.run(asyncio.wait_for(test(), 2 * PATIENCE))


def test_a_cancelled_claim_is_written_before_its_release(path: str, backend: SqliteBackend) -> None:
    """L-04: a cancelled call ends before its cancellation is raised, so the release comes after it."""
    aio = backend.to_async()

    async def test() -> None:
        await aio.get(Get(b"schema"))
        holder = lock(path)
        task = asyncio.create_task(aio.claim(claim_of(b"key")))
        await asyncio.sleep(0)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        unlock(holder)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(test(), PATIENCE))
    assert rows_of(path) == {b"key"}


def test_the_loops_of_a_process_meet(backend: SqliteBackend) -> None:
    """B-11: with three concurrent loops, each key has one winner."""
    winners: list[bytes] = []

    async def race() -> None:
        results = await asyncio.gather(
            *(backend.to_async().claim(claim_of(b"%d" % number, os.urandom(16))) for number in range(30))
        )
        winners.extend(result.lease.record_id for result in results if isinstance(result, Leased))

    threads = [threading.Thread(target=lambda: asyncio.run(race())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(winners) == sorted(b"%d" % number for number in range(30))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("callers", ["OnThreads", "OnALoop"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_that_dies_at_a_commit_has_sent_no_response(path: str, callers: str, moment: str) -> None:
    """I1, I5: killed before COMMIT nothing of the transaction is stored, killed after it everything is."""
    command = [sys.executable, "-m", "tests.backends.sqlite.killed_commit_script", path, callers, moment]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (killed.returncode, killed.stderr) == (-9, b"")
    # The first command may have died before it reported its result.
    assert killed.stdout in (b"", b"first\n")
    keys = {b"key-%d" % number for number in range(10)}
    assert rows_of(path) == ({FIRST} if moment == "before" else {FIRST, *keys})
    backend = SqliteBackend(path, clock=lambda: time.time() + 100)
    attempts = {backend.claim(claim_of(key, b"next")).lease.attempt for key in keys}
    assert attempts == ({1} if moment == "before" else {2})
    backend.close()


_WRITERS = 24
_ROUNDS = 25
_WITHIN = 0.05


def _ended(complete: Callable[[], Any]) -> Any:
    """Complete as the engine does: again while the backend is unavailable; any other error is raised."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return complete()
        except BackendUnavailable:
            assert time.monotonic() < deadline


def test_no_completion_is_lost_while_the_database_is_locked_for_longer_than_the_timeout(path: str) -> None:
    """B-10b: threads time out at about the moment of the unlock; each completion is written, or tried again."""
    backend = SqliteBackend(path, timeout=_WITHIN)
    ended: list[Any] = []

    def write(number: int, together: threading.Barrier) -> None:
        try:
            for turn in range(_ROUNDS):
                lease = _ended(lambda turn=turn: backend.claim(claim_of(b"%d of %d" % (turn, number)))).lease
                together.wait(PATIENCE)
                ended.append(_ended(lambda lease=lease: backend.complete(Complete(lease, b"response"))))
        except Exception as error:
            ended.append(error)
            together.abort()

    _ended(lambda: backend.get(Get(b"the schema is made")))
    together = threading.Barrier(_WRITERS + 1)
    writers = [threading.Thread(target=write, args=(number, together)) for number in range(_WRITERS)]
    for writer in writers:
        writer.start()
    for turn in range(_ROUNDS):
        if together.broken:
            break
        holder = lock(path)
        unlocking = threading.Timer(_WITHIN * (1 + turn % 10 / 10), unlock, (holder,))
        unlocking.start()
        with suppress(threading.BrokenBarrierError):
            together.wait(PATIENCE)
        unlocking.join(PATIENCE)
    for writer in writers:
        writer.join(PATIENCE)
    backend.close()
    assert ended == [Completed()] * _WRITERS * _ROUNDS
