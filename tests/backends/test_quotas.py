"""Quotas beyond the contract: what is read, what is bounded, and what fails closed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from open_idempotency.backend import Backend, Complete, Finished, Leased, OverQuota, Reserve, Reserved, Unreserve
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import LEASE, TTL, claim_of
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from tests.conftest import SERVER_KINDS
from tests.servers import Server
from tests.unit.builders import eventually

SCOPE = b"s" * 32
KEY = b"oi:quota:" + SCOPE.hex().encode()
RESERVATIONS = "open_idempotency_reservations"


def _place(number: int = 0, *, limit: int = 2, scope_id: bytes = SCOPE, ttl: float = TTL) -> Reserve:
    return Reserve(scope_id, b"record %d" % number, limit, LEASE, ttl)


def _fill(backend: Backend) -> None:
    assert [backend.reserve(_place(number)) for number in range(2)] == [Reserved()] * 2


def test_in_memory_reservations_are_bounded_like_records() -> None:
    """I11: live ones are never evicted; existing ones continue."""
    clock = ManualClock()
    backend = MemoryBackend(max_records=2, clock=clock)
    _fill(backend)
    with pytest.raises(BackendUnavailable, match="full: 2 reservations"):
        backend.reserve(_place(scope_id=b"other"))
    assert backend.reserve(_place(1)) == Reserved()
    backend.unreserve(Unreserve(SCOPE, b"record 0"))
    assert backend.reserve(_place(scope_id=b"other")) == Reserved()
    clock.advance(2 * LEASE + TTL)
    assert [backend.reserve(_place(number, scope_id=b"third")) for number in range(2)] == [Reserved()] * 2


def test_in_memory_expired_reservations_do_not_pile_up() -> None:
    """I11: also those of callers that never come back."""
    clock = ManualClock()
    backend = MemoryBackend(clock=clock)
    for number in range(3000):
        backend.reserve(_place(scope_id=b"%d" % number, ttl=LEASE))
        clock.advance(1)
    # 90 are live at any moment; the rest had expired and is gone or soon will be.
    clock.advance(10 * LEASE)
    assert backend.purge(10_000) < 250


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "records.db")


@contextmanager
def _on(path: str, clock: ManualClock | None = None) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(path, synchronous="normal", timeout=20, clock=clock)
    yield backend
    backend.close()


@contextmanager
def _behind(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that is not the backend's."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    yield connection
    connection.close()


def test_on_sqlite_a_repeat_and_a_refusal_take_no_write_lock(path: str) -> None:
    """B-11b, I10: a caller over its quota does not delay the writers of others."""
    with _on(path) as backend, _behind(path) as other:
        _fill(backend)
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        assert backend.reserve(_place(1)) == Reserved()
        assert isinstance(backend.reserve(_place(2)), OverQuota)
        # One of them waiting would have taken the busy timeout of 20 seconds.
        assert time.monotonic() - started < 5
        other.execute("ROLLBACK")


def test_on_sqlite_what_was_read_is_read_again_before_it_is_written(path: str) -> None:
    """A slot that another caller takes in between counts."""
    with _on(path) as backend, _behind(path) as other, ThreadPoolExecutor(1) as threads:
        backend.unreserve(Unreserve(SCOPE, b"none"))
        other.execute("BEGIN IMMEDIATE")
        waiting = threads.submit(backend.reserve, _place(limit=1))
        turn = backend._connections.turn

        def is_taken() -> bool:
            free = turn.acquire(0)
            turn.release()
            return not free

        eventually(is_taken)  # it has read, and waits for the write lock
        other.execute(f"INSERT INTO {RESERVATIONS} VALUES (?, ?, ?)", (SCOPE, b"theirs", time.time() + 1000))
        other.execute("COMMIT")
        assert isinstance(waiting.result(20), OverQuota)


def test_on_sqlite_expired_reservations_do_not_pile_up(path: str) -> None:
    """I11: each new one deletes a few, of any caller."""
    clock = ManualClock()
    with _on(path, clock) as backend, _behind(path) as other:
        for number in range(20):
            backend.reserve(_place(number, limit=100))
        clock.advance(2 * LEASE + TTL)
        for number in range(5):
            backend.reserve(_place(number, scope_id=b"other", limit=100))
        assert other.execute(f"SELECT count(*) FROM {RESERVATIONS}").fetchone() == (5,)


def test_on_sqlite_a_reservation_that_cannot_be_read_is_left_alone(path: str) -> None:
    """B-08b: typed error, no overwrite."""
    with _on(path) as backend, _behind(path) as other:
        _fill(backend)
        other.execute(f"UPDATE {RESERVATIONS} SET ends = 'soon' WHERE record_id = ?", (b"record 0",))
        before = other.execute(f"SELECT * FROM {RESERVATIONS}").fetchall()
        with pytest.raises(RecordUnreadable):
            backend.reserve(_place(0))
        assert other.execute(f"SELECT * FROM {RESERVATIONS}").fetchall() == before


def test_a_database_of_the_first_schema_is_brought_up(path: str) -> None:
    """B-08: its records stay, and quotas count from then on."""
    with _on(path) as backend:
        result = backend.claim(claim_of(b"old"))
        assert isinstance(result, Leased)
        backend.complete(Complete(result.lease, b"response"))
    with _behind(path) as other:
        other.execute(f"DROP TABLE {RESERVATIONS}")
        other.execute("UPDATE open_idempotency_schema SET version = 1")
    with _on(path) as backend:
        assert backend.claim(claim_of(b"old")) == Finished(b"response")
        _fill(backend)
        assert isinstance(backend.reserve(_place(2)), OverQuota)


@contextmanager
def _server(*options: str, kind: str = "valkey") -> Iterator[tuple[RedisBackend, redis.Redis]]:
    server = Server(kind, *options).start()
    try:
        backend = RedisBackend(server.url, timeout=10)
        with server.connect() as plain:
            yield backend, plain
        backend.close()
    finally:
        server.stop()


@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_at_the_memory_limit_a_new_key_is_not_counted(kind: str) -> None:
    """B-11b: it fails closed and writes nothing; counted keys, refusals and releases continue."""
    with _server("--maxmemory-policy", "noeviction", kind=kind) as (backend, plain):
        _fill(backend)
        plain.zadd(KEY, {b"expired": 1})
        plain.config_set("maxmemory", "1")
        with pytest.raises(BackendUnavailable) as caught:
            backend.reserve(_place(2, limit=3))
        assert "maxmemory" in str(caught.value.__cause__)
        assert plain.zcard(KEY) == 3
        assert backend.reserve(_place(1)) == Reserved()
        assert isinstance(backend.reserve(_place(2)), OverQuota)
        backend.unreserve(Unreserve(SCOPE, b"record 0"))
        assert plain.zcard(KEY) == 2


def test_on_redis_reserving_is_one_call_on_one_key_under_the_acl_of_the_docs() -> None:
    """B-11a: one script, one key, and only commands of the documented ACL."""
    with _server() as (_, plain):
        rules = ["on", ">secret", "~oi:*", "-@all", "+evalsha", "+eval", "+time", "+pexpire"]
        rules += ["+zscore", "+zcount", "+zrangebyscore", "+zadd", "+zrem", "+pttl"]
        plain.execute_command("ACL", "SETUSER", "app", *rules)
        port = plain.connection_pool.connection_kwargs["port"]
        backend = RedisBackend(f"redis://app:secret@127.0.0.1:{port}", timeout=10)
        _fill(backend)
        before = _calls(plain)
        assert isinstance(backend.reserve(_place(2)), OverQuota)
        backend.unreserve(Unreserve(SCOPE, b"record 0"))
        backend.unreserve(Unreserve(SCOPE, b"record 1"))
        assert _calls(plain) == before + 4  # the server did not know the second script, so its text was sent
        assert plain.dbsize() == 0
        backend.close()


def _calls(plain: redis.Redis) -> int:
    stats = plain.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


def test_on_redis_the_key_outlives_every_reservation_in_it() -> None:
    """I11: no key lives for ever, and a short reservation does not shorten a long one."""
    with _server() as (backend, plain):
        backend.reserve(_place(0, ttl=10 * TTL))
        backend.reserve(_place(1, ttl=LEASE))
        assert 0 <= 2 * LEASE * 1000 + 10 * TTL * 1000 + 1000 - plain.pttl(KEY) < 20_000


@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_on_redis_expired_reservations_do_not_pile_up(kind: str) -> None:
    """I11: each new one deletes expired ones of its caller."""
    with _server(kind=kind) as (backend, plain):
        plain.zadd(KEY, {b"old %d" % number: number for number in range(150)})
        _fill(backend)
        assert plain.zcard(KEY) == 2


def test_on_redis_a_key_of_another_program_is_left_alone() -> None:
    """B-08b: typed error, no overwrite, and a purge skips it."""
    with _server() as (backend, plain):
        plain.set(KEY, b"theirs")
        for attempt in (lambda: backend.reserve(_place()), lambda: backend.unreserve(Unreserve(SCOPE, b"record 0"))):
            with pytest.raises(RecordUnreadable):
                attempt()
        assert backend.purge() == 0
        assert plain.get(KEY) == b"theirs"
