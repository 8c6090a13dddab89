"""The Redis backend beyond the contract: one round trip, bounded calls, and faulty servers."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import redis

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Busy,
    Complete,
    Fail,
    Finished,
    Get,
    Lease,
    Leased,
    Release,
    Renew,
    Renewal,
    SaveStage,
)
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs, ManualClock
from open_idempotency.conformance.support import claim_of, lease_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError, RecordUnreadable
from tests.servers import Server

RECORD = b"\x01\xff record"


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(8)}:"


@pytest.fixture
def backend(server_url: str, prefix: str) -> Iterator[RedisBackend]:
    backend = RedisBackend(server_url, prefix=prefix, timeout=10)
    yield backend
    backend.close()


@pytest.fixture
def plain(server_url: str) -> Iterator[redis.Redis]:
    """A plain client for direct access to the server."""
    with redis.Redis.from_url(server_url, socket_timeout=10, protocol=2) as client:
        yield client


@pytest.fixture
def key(prefix: str) -> bytes:
    return prefix.encode() + RECORD.hex().encode()


@pytest.fixture(params=["sync", "asyncio", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@contextmanager
def _server(*options: str, kind: str = "valkey") -> Iterator[Server]:
    server = Server(kind, *options).start()
    try:
        yield server
    finally:
        server.stop()


def _run(mode: str, backend: RedisBackend, steps: Callable[[AsyncVerbs], Awaitable[None]]) -> None:
    """Run steps in one mode, on a new event loop."""

    async def main() -> None:
        chosen: Backend | AsyncBackend = backend if mode == "sync" else backend.to_async()
        verbs = AsyncVerbs(chosen)
        try:
            await steps(verbs)
        finally:
            await verbs.close()

    anyio.run(main, backend="asyncio" if mode == "sync" else mode)


def _lease(backend: Backend, record_id: bytes = RECORD) -> Lease:
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased)
    return result.lease


VERBS: dict[str, Callable[[AsyncVerbs, Lease], Awaitable[object]]] = {
    "claim": lambda verbs, lease: verbs.claim(claim_of(secrets.token_bytes(8))),
    "busy": lambda verbs, lease: verbs.claim(claim_of(lease.record_id)),
    "renew": lambda verbs, lease: verbs.renew(Renew([lease] * 100)),
    "save_stage": lambda verbs, lease: verbs.save_stage(SaveStage(lease, stage_of("reserve"))),
    "complete": lambda verbs, lease: verbs.complete(Complete(lease, b"response")),
    "fail": lambda verbs, lease: verbs.fail(Fail(lease)),
    "release": lambda verbs, lease: verbs.release(Release(lease)),
    "get": lambda verbs, lease: verbs.get(Get(lease.record_id)),
    "delete": lambda verbs, lease: verbs.delete(lease.record_id),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_one_round_trip(backend: RedisBackend, plain: redis.Redis, mode: str, verb: str) -> None:
    """B-01: the server counts the scripts that clients call."""

    def calls() -> tuple[int, int]:
        stats = plain.info("commandstats")
        return (
            sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")),
            int(plain.info("stats")["total_connections_received"]),
        )

    async def steps(verbs: AsyncVerbs) -> None:
        # The first use of each verb connects and may have to send the script's text.
        await VERBS[verb](verbs, await lease_of(verbs, secrets.token_bytes(8)))
        lease = await lease_of(verbs, RECORD)
        before = calls()
        await VERBS[verb](verbs, lease)
        assert calls() == (before[0] + 1, before[1])

    _run(mode, backend, steps)


def test_a_verb_sends_no_other_command(backend: RedisBackend, plain: redis.Redis) -> None:
    """No PING, SELECT or CLIENT besides the script."""
    _lease(backend)
    seen: list[str] = []
    with plain.monitor() as monitor:
        backend.claim(claim_of(RECORD))
        plain_marker = redis.Redis(connection_pool=plain.connection_pool)
        plain_marker.echo("end")
        port = None
        while True:
            command = monitor.next_command()
            if command["command"].startswith("ECHO end"):
                break
            if RECORD.hex() in command["command"] and command["client_type"] != "lua":
                port = command["client_port"]
            if command["client_type"] != "lua" and port == command["client_port"]:
                seen.append(command["command"].split()[0])
    assert seen == ["EVALSHA"]


def test_the_key_outlives_the_record(backend: RedisBackend, plain: redis.Redis, key: bytes) -> None:
    """The key's expiry is lease and ttl, or ttl, and a margin; never the lease alone."""
    lease = _lease(backend)
    assert 30_000 + 3_600_000 <= plain.pttl(key) + 1000 <= 30_000 + 3_600_000 + 2500
    backend.complete(Complete(lease, b"response"))
    assert 3_600_000 <= plain.pttl(key) + 1000 <= 3_600_000 + 2500


def test_every_write_sets_an_expiry(backend: RedisBackend, plain: redis.Redis, key: bytes) -> None:
    """I11: no key lives for ever, recreated ones included."""
    lease = _lease(backend)
    steps: list[Callable[[], object]] = [
        lambda: backend.renew(Renew([lease])),
        lambda: backend.save_stage(SaveStage(lease, stage_of("reserve"))),
        lambda: plain.delete(key) and backend.save_stage(SaveStage(lease, stage_of("again"))),
        lambda: backend.release(Release(lease)),
        lambda: plain.delete(key) and backend.complete(Complete(lease, b"response")),
    ]
    for step in steps:
        step()
        assert plain.pttl(key) > 3_000_000
    plain.delete(key)
    backend.fail(Fail(_lease(backend)))
    assert plain.pttl(key) > 3_000_000


def test_the_servers_clock_decides(backend: RedisBackend, plain: redis.Redis) -> None:
    """B-01, L-07: without a test's clock the server's own is used."""
    seconds, micros = plain.time()
    token = _lease(backend).token
    assert 0 <= token - (seconds * 1_000_000 + micros) < 60_000_000


def test_a_lease_really_ends(backend: RedisBackend) -> None:
    """L-02: in real time, by polling."""
    backend.claim(claim_of(RECORD, lease=0.05))
    deadline = time.monotonic() + 20
    result = backend.claim(claim_of(RECORD))
    while isinstance(result, Busy) and time.monotonic() < deadline:
        time.sleep(0.01)
        result = backend.claim(claim_of(RECORD))
    assert isinstance(result, Leased)
    assert result.lease.attempt == 2


def _spliced(place: int, other: bytes) -> Callable[[redis.Redis, bytes], object]:
    """The packed value of field m, with other bytes at one offset."""

    def damage(plain: redis.Redis, key: bytes) -> object:
        packed: Any = plain.hget(key, b"m")
        return plain.hset(key, b"m", packed[:place] + other + packed[place + len(other) :])

    return damage


def _cut(length: int) -> Callable[[redis.Redis, bytes], object]:
    def damage(plain: redis.Redis, key: bytes) -> object:
        packed: Any = plain.hget(key, b"m")
        return plain.hset(key, b"m", (packed + bytes(length))[:length])

    return damage


DAMAGE: dict[str, Callable[[redis.Redis, bytes], object]] = {
    "string": lambda plain, key: plain.delete(key) and plain.set(key, b"text"),
    "list": lambda plain, key: plain.delete(key) and plain.rpush(key, b"text"),
    "foreign hash": lambda plain, key: plain.delete(key) and plain.hset(key, b"name", b"value"),
    "newer version": _spliced(0, b"\x02"),
    "status 0": _spliced(1, b"\x00"),
    "status 9": _spliced(1, b"\x09"),
    "token": _spliced(11, b"\xff" * 8),
    "expiry": _spliced(43, b"\x00\x20" + bytes(6)),
    "nothing in it": _cut(0),
    "the version alone": _cut(1),
    "no owner": _cut(51),
    "an owner longer than the rest": _spliced(51, b"\xff" * 4),
    "something behind the fingerprint": _cut(200),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_key_that_cannot_be_read_is_left_alone(
    backend: RedisBackend, plain: redis.Redis, key: bytes, damage: str
) -> None:
    """B-08b: corrupt, foreign or newer; no verb runs or overwrites it."""
    lease = _lease(backend)
    DAMAGE[damage](plain, key)
    before = plain.dump(key)
    attempts: list[Callable[[], object]] = [
        lambda: backend.claim(claim_of(RECORD)),
        lambda: backend.get(Get(RECORD)),
        lambda: backend.complete(Complete(lease, b"response")),
        lambda: backend.save_stage(SaveStage(lease, stage_of("late"))),
        lambda: backend.fail(Fail(lease)),
        lambda: backend.release(Release(lease)),
        lambda: list(backend.scan()),
    ]
    for attempt in attempts:
        with pytest.raises(RecordUnreadable):
            attempt()
    assert backend.purge() == 0
    assert plain.dump(key) == before
    assert backend.delete(RECORD)


@pytest.mark.parametrize("frame", [None, b"", b"\x00\x00\x00\xff", b"\x00\x00\x00\x05\x00\x00\x00\x01\xffk"])
def test_a_stage_that_cannot_be_read_stops_the_attempt(
    backend: RedisBackend, plain: redis.Redis, key: bytes, frame: bytes | None
) -> None:
    """B-08b: an attempt that cannot see its stages must not run."""
    lease = _lease(backend)
    backend.save_stage(SaveStage(lease, stage_of("reserve")))
    backend.fail(Fail(lease))
    _ = plain.hdel(key, b"S1") if frame is None else plain.hset(key, b"S1", frame)
    with pytest.raises(RecordUnreadable):
        backend.claim(claim_of(RECORD))


def test_a_completion_without_its_response_is_not_replayed(
    backend: RedisBackend, plain: redis.Redis, key: bytes
) -> None:
    """B-08b: and does not run again."""
    backend.complete(Complete(_lease(backend), b"response"))
    plain.hdel(key, b"r")
    for attempt in (lambda: backend.claim(claim_of(RECORD)), lambda: backend.get(Get(RECORD))):
        with pytest.raises(RecordUnreadable):
            attempt()


def test_one_damaged_record_does_not_stop_the_heartbeat(backend: RedisBackend, plain: redis.Redis, key: bytes) -> None:
    """B-04, B-08b: other leases are renewed."""
    damaged, sound = _lease(backend), _lease(backend, b"sound")
    DAMAGE["string"](plain, key)
    assert list(backend.renew(Renew([damaged, sound]))) == [Renewal.LOST, Renewal.OWNED]


def test_a_scan_skips_keys_of_other_programs(backend: RedisBackend, plain: redis.Redis, prefix: str) -> None:
    """B-09: keys under the prefix that are not named like a record."""
    _lease(backend)
    plain.set(prefix + "settings", b"theirs")
    assert [record.record_id for record in backend.scan()] == [RECORD]
    assert backend.purge() == 0


def test_two_prefixes_do_not_meet(server_url: str, backend: RedisBackend, prefix: str) -> None:
    """I10: applications that share a server."""
    _lease(backend)
    other = RedisBackend(server_url, prefix=f"other:{prefix}", timeout=10)
    assert other.get(Get(RECORD)) is None
    assert list(other.scan()) == []
    other.close()


def test_a_prefix_is_no_pattern(server_url: str, prefix: str) -> None:
    """I10, B-09: a prefix may have any characters, and a scan finds its own keys only."""
    other = RedisBackend(server_url, prefix=f"{prefix}abc:", timeout=10)
    globbing = RedisBackend(server_url, prefix=f"{prefix}a[b]?\\*:", timeout=10)
    matching = RedisBackend(server_url, prefix=f"{prefix}*:", timeout=10)
    _lease(other)
    _lease(globbing, b"mine")
    assert [record.record_id for record in globbing.scan()] == [b"mine"]
    assert list(matching.scan()) == []
    for backend in (other, globbing, matching):
        backend.close()


def test_nothing_of_an_expired_record_stays(server_url: str, plain: redis.Redis, prefix: str, key: bytes) -> None:
    """I11: a record that its owner recreates has no old stages."""
    clock = ManualClock()
    backend = RedisBackend(server_url, prefix=prefix, timeout=10, clock=clock)
    lease = _lease(backend)
    backend.save_stage(SaveStage(lease, stage_of("reserve")))
    clock.advance(100_000)
    assert backend.complete(Complete(lease, b"response")).recreated
    assert [name for name in plain.hkeys(key) if name[:1] in (b"S", b"I")] == []
    backend.close()


def test_scripts_that_the_server_forgot_are_sent_again(backend: RedisBackend, plain: redis.Redis, mode: str) -> None:
    """B-10: after SCRIPT FLUSH, as after a restart or a failover."""

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        plain.script_flush()
        await verbs.complete(Complete(lease, b"response"))
        assert await verbs.claim(claim_of(RECORD)) == Finished(b"response")

    _run(mode, backend, steps)


def test_after_a_crash_of_the_server_the_backend_works_again(mode: str) -> None:
    """B-10: with every write on disk no record is lost, and clients reconnect."""
    with _server("--appendonly", "yes", "--appendfsync", "always") as server:

        async def steps(verbs: AsyncVerbs) -> None:
            running = await lease_of(verbs, b"running")
            await verbs.complete(Complete(await lease_of(verbs, b"completed"), b"response"))
            server.kill()
            with pytest.raises(BackendUnavailable):
                await verbs.claim(claim_of(b"new"))
            server.start()
            assert await verbs.claim(claim_of(b"completed")) == Finished(b"response")
            assert isinstance(await verbs.claim(claim_of(b"running")), Busy)
            await verbs.complete(Complete(running, b"finished"))

        _run(mode, RedisBackend(server.url, timeout=10), steps)


def test_a_restart_between_two_calls_goes_unnoticed(mode: str) -> None:
    """B-10: a broken pooled connection fails no call."""
    with _server("--appendonly", "yes", "--appendfsync", "always") as server:

        async def steps(verbs: AsyncVerbs) -> None:
            await lease_of(verbs, b"running")
            server.kill()
            server.start()
            assert isinstance(await verbs.claim(claim_of(b"running")), Busy)

        _run(mode, RedisBackend(server.url, timeout=10), steps)


def test_a_server_that_is_down_is_unavailable_in_time(mode: str) -> None:
    """B-10: within call_timeout, with the driver's error as the cause."""
    with socket.socket() as nobody:
        # Bound and not listening: every connection is refused.
        nobody.bind(("127.0.0.1", 0))
        backend = RedisBackend(f"redis://127.0.0.1:{nobody.getsockname()[1]}", timeout=0.2)
        _expect_unavailable(mode, backend, redis.exceptions.ConnectionError)


def test_a_server_that_says_nothing_is_unavailable_in_time(mode: str) -> None:
    """B-10: the backend's own timeouts bound a silent partition, and not the driver's."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        backend = RedisBackend(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        _expect_unavailable(mode, backend, redis.exceptions.TimeoutError)


def _expect_unavailable(mode: str, backend: RedisBackend, cause: type[Exception]) -> None:
    async def steps(verbs: AsyncVerbs) -> None:
        started = time.monotonic()
        with pytest.raises(BackendUnavailable) as caught:
            await verbs.claim(claim_of(RECORD))
        assert time.monotonic() - started < verbs.call_timeout
        assert isinstance(caught.value.__cause__, cause)

    _run(mode, backend, steps)


def test_when_all_connections_are_taken_a_call_gives_up(mode: str) -> None:
    """B-10, I11: the pool is bounded, and so is waiting for it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        backend = RedisBackend(url, timeout=0.2, max_connections=1)

        async def steps(verbs: AsyncVerbs) -> None:
            started = time.monotonic()
            if mode == "sync":
                with pytest.raises(BackendUnavailable):
                    await verbs.claim_at_once([claim_of(RECORD) for _ in range(4)])
            else:
                failures = 0
                async with anyio.create_task_group() as group:

                    async def one() -> None:
                        nonlocal failures
                        with pytest.raises(BackendUnavailable):
                            await verbs.claim(claim_of(RECORD))
                        failures += 1

                    for _ in range(4):
                        group.start_soon(one)
                assert failures == 4
            assert time.monotonic() - started < verbs.call_timeout + 1

        _run(mode, backend, steps)


def test_wrong_credentials_are_unavailable_and_not_repeated() -> None:
    """B-10: the cause is kept; no text contains the password."""
    with _server() as server:
        with server.connect() as plain:
            plain.config_set("requirepass", "right")
        backend = RedisBackend(server.url.replace("//", "//:wr0ng-secret@"), timeout=10)
        with pytest.raises(BackendUnavailable) as caught:
            backend.claim(claim_of(RECORD))
        assert "wr0ng-secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_one_backend_serves_several_event_loops(backend: RedisBackend) -> None:
    """B-11: in turn, each with its own connections."""
    names = [b"%d" % number for number in range(4)]

    async def claim(name: bytes) -> None:
        both = backend.to_async()
        assert isinstance(await both.claim(claim_of(name)), Leased)
        await both.close()

    for name in names:
        asyncio.run(claim(name))
    anyio.run(claim, b"trio", backend="trio")
    assert {record.record_id for record in backend.scan()} == {*names, b"trio"}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_clients_of_closed_loops_are_forgotten(backend: RedisBackend) -> None:
    """B-11, I11: even if the backend was not closed before the loop ended."""
    both = backend.to_async()

    async def use() -> None:
        assert await both.get(Get(RECORD)) is None

    for _ in range(5):
        asyncio.run(use())
    assert len(both._calls._clients) == 1
    asyncio.run(both.close())
    both._calls._clients.clear()
    gc.collect()


def test_a_loop_that_was_made_before_a_fork_has_a_client_in_each_process(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-11: the child neither uses nor drops the parent's client."""
    calls, parent = backend.to_async()._calls, os.getpid()

    async def use() -> None:
        parents = calls.client()
        monkeypatch.setattr(os, "getpid", lambda: parent + 1)
        childs = calls.client()
        assert childs is not parents
        assert calls.client() is childs
        await calls.close()
        monkeypatch.setattr(os, "getpid", lambda: parent)
        assert calls.client() is parents
        await calls.close()

    asyncio.run(use())


@pytest.mark.parametrize("wrong", [{"timeout": 0.0}, {"timeout": float("nan")}, {"max_connections": 0}])
def test_wrong_settings_are_refused_at_start(wrong: dict[str, float]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RedisBackend("redis://localhost", **wrong)


def test_closing_ends_calls_that_are_under_way(server_url: str, prefix: str) -> None:
    """B-10, B-11: at once and with a typed error, whatever redis-py raises for a closed connection."""
    timeout = 60
    backend = RedisBackend(server_url, prefix=prefix, timeout=timeout)
    ended = threading.Event()
    others: list[BaseException] = []
    refused: list[float] = []

    def call() -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                backend.claim(claim_of(secrets.token_bytes(8)))
            except BackendUnavailable:
                refused.append(time.monotonic() - began)
            except BaseException as error:
                others.append(error)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        backend.get(Get(RECORD))
        backend.close()
    ended.set()
    for thread in threads:
        thread.join(2 * timeout)
    backend.close()
    assert others == []
    assert refused
    assert max(refused) < timeout
    assert _lease(backend, b"afterwards")
    backend.close()
