"""Backends with notifications: waiting ends by a message rather than by polling, or after a pause without one."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
import redis

from open_idempotency.backend import Backend, Complete, Fail, Finished, Lease, Release, Wait
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.redis import RedisBackend, listening
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from tests.servers import Server

RECORD = b"\x01\xff record"
#: no test passes by waiting for so long
NEVER = 100.0
SOON = 20.0
PAUSE = 0.02
#: waits until the end is reported
UNREPORTED = Wait(RECORD, NEVER, NEVER)
#: ended by a pause without a message
POLLED = Wait(RECORD, NEVER, PAUSE)

ENDS: dict[str, Callable[[AsyncVerbs, Lease], Awaitable[object]]] = {
    "complete": lambda verbs, lease: verbs.complete(Complete(lease, b"response")),
    "fail": lambda verbs, lease: verbs.fail(Fail(lease)),
    "release": lambda verbs, lease: verbs.release(Release(lease)),
    "delete": lambda verbs, lease: verbs.delete(lease.record_id),
}


@pytest.fixture(params=["sync", "asyncio", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def _on(url: str) -> RedisBackend:
    return RedisBackend(url, prefix=f"t{secrets.token_hex(8)}:", timeout=10)


@pytest.fixture
def backend(server_url: str) -> Iterator[RedisBackend]:
    backend = _on(server_url)
    yield backend
    backend.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server for this test alone, which may change its connections and users."""
    server = Server("valkey").start()
    yield server
    server.stop()


@pytest.fixture
def plain(server_url: str) -> Iterator[redis.Redis]:
    """A plain client for direct access to the server."""
    with redis.Redis.from_url(server_url, socket_timeout=10, protocol=2) as client:
        yield client


def _run(mode: str, backend: Backend, steps: Callable[[AsyncVerbs], Awaitable[None]]) -> None:
    """Run steps in one mode, on a new event loop, within a bounded time."""

    async def main() -> None:
        verbs = AsyncVerbs(backend if mode == "sync" else backend.to_async())
        with anyio.fail_after(SOON):
            await steps(verbs)
        await verbs.close()

    anyio.run(main, backend="asyncio" if mode == "sync" else mode)


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the run bounds the wait."""
    while not condition():
        await anyio.sleep(0.001)


def _subscribers(plain: redis.Redis, backend: RedisBackend) -> int:
    return int(plain.pubsub_numsub(backend.options.keys.record(RECORD))[0][1])


@pytest.mark.parametrize("verb", ENDS)
def test_memory_notifies_waiting_duplicates(mode: str, verb: str) -> None:
    """O-04: at once, sync and async, after every kind of end."""
    backend = MemoryBackend()

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(verbs.wait, UNREPORTED)
            await _until(lambda: len(backend._table._here.get().waiters._waiting.get(RECORD, ())) == 5)
            await ENDS[verb](verbs, lease)
        assert not backend._table._here.get().waiters

    _run(mode, backend, steps)


@pytest.mark.parametrize("verb", ENDS)
def test_the_server_notifies_waiting_duplicates(
    mode: str, verb: str, backend: RedisBackend, plain: redis.Redis
) -> None:
    """O-04: through one connection of the process, which is subscribed only while a duplicate waits."""

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(verbs.wait, UNREPORTED)
            await _until(lambda: _subscribers(plain, backend) == 1)
            await ENDS[verb](verbs, lease)
        await _until(lambda: _subscribers(plain, backend) == 0)

    _run(mode, backend, steps)


def test_another_process_is_heard(mode: str, backend: RedisBackend, plain: redis.Redis) -> None:
    """O-04: the owner runs behind another backend with its own connections."""
    elsewhere = RedisBackend(
        f"redis://{backend.options.where.partition('//')[2]}", prefix=backend.options.prefix.decode(), timeout=10
    )

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(AsyncVerbs(elsewhere), RECORD)
        async with anyio.create_task_group() as group:
            group.start_soon(verbs.wait, UNREPORTED)
            await _until(lambda: _subscribers(plain, backend) == 1)
            elsewhere.complete(Complete(lease, b"response"))
        assert await verbs.claim(claim_of(RECORD)) == Finished(b"response")

    _run(mode, backend, steps)
    elsewhere.close()


def test_an_end_before_the_subscription_is_seen(mode: str, backend: RedisBackend) -> None:
    """O-04: its message was missed, so the record is read when the subscription is confirmed."""

    async def steps(verbs: AsyncVerbs) -> None:
        await verbs.complete(Complete(await lease_of(verbs, RECORD), b"response"))
        await verbs.wait(UNREPORTED)

    _run(mode, backend, steps)


def test_waiting_costs_one_call_and_a_subscription(mode: str, backend: RedisBackend, plain: redis.Redis) -> None:
    """For any duration; counted by the server."""
    # the call and the release are scripts that read the record; the latter publishes
    names = ("evalsha", "publish", "hget", "subscribe", "unsubscribe")

    def calls() -> dict[str, int]:
        stats = plain.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names}

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        await verbs.release(Release(lease))  # so that the server knows the scripts
        await verbs.wait(UNREPORTED)
        await _until(lambda: _subscribers(plain, backend) == 0)
        lease = await lease_of(verbs, RECORD)
        before = calls()
        async with anyio.create_task_group() as group:
            group.start_soon(verbs.wait, UNREPORTED)
            await _until(lambda: calls()["hget"] > before["hget"])
            await verbs.release(Release(lease))
        await _until(lambda: calls()["unsubscribe"] > before["unsubscribe"])
        after = calls()
        assert {name: after[name] - before[name] for name in names} == dict.fromkeys(names, 1) | {
            "evalsha": 2,
            "hget": 3,
        }

    _run(mode, backend, steps)


def test_a_task_that_stops_waiting_stops_listening(backend: RedisBackend, plain: redis.Redis) -> None:
    """I11: no subscription outlives a client that left."""

    async def steps(verbs: AsyncVerbs) -> None:
        await lease_of(verbs, RECORD)
        async with anyio.create_task_group() as group:
            group.start_soon(verbs.wait, UNREPORTED)
            await _until(lambda: _subscribers(plain, backend) == 1)
            group.cancel_scope.cancel()
        await _until(lambda: _subscribers(plain, backend) == 0)

    for library in ("asyncio", "trio"):
        _run(library, backend, steps)
        backend.delete(RECORD)


def test_a_connection_that_breaks_ends_the_waiting(mode: str, own_server: Server) -> None:
    """O-04, B-10: the duplicate claims again, polls for a while, and then subscribes again."""
    backend = _on(own_server.url)

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        with own_server.connect() as plain:
            async with anyio.create_task_group() as group:
                group.start_soon(verbs.wait, UNREPORTED)
                await _until(lambda: _subscribers(plain, backend) == 1)
                assert plain.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
            await verbs.wait(POLLED)
            backend.listener._resting_until = 0.0  # the pause of the listener is over
            async with anyio.create_task_group() as group:
                group.start_soon(verbs.wait, UNREPORTED)
                await _until(lambda: _subscribers(plain, backend) == 1)
                await verbs.complete(Complete(lease, b"response"))

    _run(mode, backend, steps)


def test_a_user_without_channels_waits_by_polling(mode: str, own_server: Server) -> None:
    """B-11a: a completion is recorded even if publishing is forbidden."""
    rules = ["on", ">secret", "~*", "resetchannels", "-@all", "+@hash", "+@scripting", "+@keyspace", "+time"]
    rules += ["+subscribe"]
    with own_server.connect() as plain:
        plain.execute_command("ACL", "SETUSER", "app", *rules)
    backend = _on(own_server.url.replace("//", "//app:secret@"))

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        for _ in range(3):
            await verbs.wait(POLLED)
        await verbs.complete(Complete(lease, b"response"))
        assert await verbs.claim(claim_of(RECORD)) == Finished(b"response")

    _run(mode, backend, steps)
    with own_server.connect() as plain:
        refused = [entry for entry in plain.acl_log() if entry["reason"] == "channel"]
    assert [entry["count"] for entry in refused if entry["context"] == "toplevel"] == [1]


@pytest.mark.parametrize("refuses", [False, True], ids=["silent", "refusing"])
def test_a_server_that_is_away_ends_the_waiting(mode: str, refuses: bool) -> None:
    """O-04: waiting raises nothing; the claim that follows raises."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if not refuses:
            nobody.listen()
        backend = RedisBackend(f"redis://127.0.0.1:{nobody.getsockname()[1]}", timeout=0.1)

        async def steps(verbs: AsyncVerbs) -> None:
            started = time.monotonic()
            await verbs.wait(Wait(RECORD, 1.0, PAUSE))
            await verbs.wait(Wait(RECORD, 1.0, PAUSE))
            assert time.monotonic() - started < SOON / 2

        _run(mode, backend, steps)


def test_closing_ends_the_waiting(mode: str, backend: RedisBackend, plain: redis.Redis) -> None:
    """B-11: the backend may be used again."""

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(verbs.wait, UNREPORTED)
                await _until(lambda: _subscribers(plain, backend) == 1)
                await anyio.to_thread.run_sync(backend.listener.close)
            # The server may still count the old subscriber, which must not be taken for the next one.
            await _until(lambda: _subscribers(plain, backend) == 0)
        await verbs.complete(Complete(lease, b"response"))

    _run(mode, backend, steps)


def test_the_thread_ends_when_nobody_waits(
    backend: RedisBackend, plain: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I11: no idle thread or connection stays; the next waiter starts another one."""
    monkeypatch.setattr(listening, "IDLE", 0.01)
    threads = set(threading.enumerate())

    async def steps(verbs: AsyncVerbs) -> None:
        lease = await lease_of(verbs, RECORD)
        for _ in range(2):
            await verbs.wait(Wait(RECORD, 0.05, 0.05))
            await _until(lambda: not [t for t in set(threading.enumerate()) - threads if "listener" in t.name])
        async with anyio.create_task_group() as group:
            group.start_soon(verbs.wait, UNREPORTED)
            await _until(lambda: _subscribers(plain, backend) == 1)
            await verbs.complete(Complete(lease, b"response"))

    _run("asyncio", backend, steps)


def test_where_no_thread_can_start_waiting_is_polling(backend: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: a process at its limit of threads still waits."""

    def refuse(*_: object) -> None:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", refuse)
        assert backend.listener.enter(b"channel", threading.Event(), threading.Event()) is None
        backend.wait(POLLED)


def test_sqlite_polls(mode: str, tmp_path: Path) -> None:
    """O-04: it has no notifications, so waiting ends after each pause, without a thread for each task."""
    backend = SqliteBackend(str(tmp_path / "records.db"), synchronous="normal", timeout=20)

    async def steps(verbs: AsyncVerbs) -> None:
        await lease_of(verbs, RECORD)
        threads = threading.active_count()
        async with anyio.create_task_group() as group:
            for _ in range(50 if mode != "sync" else 1):
                group.start_soon(verbs.wait, POLLED)
            await anyio.sleep(0)
            # Far fewer than there are tasks: threads of other tests may start and end at any time.
            assert mode == "sync" or threading.active_count() < threads + 10

    _run(mode, backend, steps)
