"""Concurrent calls of the async front share batches, and each caller gets its own reply.

Calls begin while the server is stopped, which makes them concurrent; the server counts what it was sent.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import redis
from redis.exceptions import ResponseError

from open_idempotency.backend import Busy, Claim, Complete, Finished, Get, Lease, Leased, Release
from open_idempotency.backends.redis import AsyncRedisBackend, RedisBackend
from open_idempotency.conformance.support import claim_of
from open_idempotency.exceptions import BackendUnavailable
from tests.backends.redis.on_redis import SOON, server
from tests.conftest import SERVER_KINDS
from tests.servers import Server
from tests.topologies import Cluster, replicated

#: concurrent calls, and the number of their batches: two single calls, and one for the rest
MANY, BATCHES = 64, 4
#: seconds that a server may be stopped for
LONG = 20.0
both_loops = pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])


@pytest.fixture(params=SERVER_KINDS, scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server for these tests alone; leave it running, with its default settings."""
    with server(kind=request.param) as own:
        yield own


@asynccontextmanager
async def _opened(url: str, **options: Any) -> AsyncIterator[AsyncRedisBackend]:
    """A connected backend, on a server that has the scripts."""
    backend = RedisBackend(url, **{"timeout": LONG, "eviction": "ignore", **options}).to_async()
    try:
        lease = await _lease(backend, b"warm")
        await backend.complete(Complete(lease, b""))
        await backend.get(Get(b"warm"))
        await backend.delete(b"warm")
        yield backend
    finally:
        await backend.close()


def _run(steps: Callable[[], Awaitable[None]], uvloop: bool = False) -> None:
    async def main() -> None:
        with anyio.fail_after(SOON):
            await steps()

    anyio.run(main, backend_options={"use_uvloop": uvloop})


async def _lease(backend: AsyncRedisBackend, record_id: bytes) -> Lease:
    result = await backend.claim(claim_of(record_id, owner=os.urandom(16)))
    assert isinstance(result, Leased), result
    return result.lease


@contextmanager
def _stopped(server: Server) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def _begin(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[asyncio.Task[Any]]:
    """Let each call reach the point at which it waits for its reply."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def _at_once(server: Server, calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results and errors of calls that begin while the server is stopped."""
    with _stopped(server):
        tasks = await _begin(calls)
    return await asyncio.gather(*tasks, return_exceptions=True)


class _Count:
    """What the server has read, run and accepted since then, without the reading of these counters."""

    def __init__(self, plain: redis.Redis) -> None:
        self._plain = plain
        self._looks = 0
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        said = self._plain.info("all")
        calls = {name: said.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha", "wait")}
        return {
            "reads": said["total_reads_processed"],
            "connections": said["total_connections_received"],
            "scripts": calls["eval"] + calls["evalsha"],
            "waits": calls["wait"],
        }

    def __call__(self) -> dict[str, int]:
        self._looks += 1
        since = {name: number - self._before[name] for name, number in self._now().items()}
        return {**since, "reads": since["reads"] - self._looks}


@contextmanager
def _counting(server: Server) -> Iterator[_Count]:
    with server.connect() as plain:
        yield _Count(plain)


@both_loops
def test_what_is_asked_at_once_is_few_writes_on_one_connection(own: Server, uvloop: bool) -> None:
    """B-01: claims and completions of many keys; each is one script."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            keys = [os.urandom(8) for _ in range(MANY)]
            with _counting(own) as count:
                leases = await _at_once(own, [_lease(backend, key) for key in keys])
                await _at_once(own, [backend.complete(Complete(lease, lease.record_id)) for lease in leases])
                found = count()
            assert (found["scripts"], found["connections"]) == (2 * MANY, 0)
            assert found["reads"] <= 2 * BATCHES
            results = await asyncio.gather(*(backend.claim(claim_of(key)) for key in keys))
            assert results == [Finished(key) for key in keys]

    _run(steps, uvloop)


def test_without_coalescing_each_call_has_a_connection(own: Server) -> None:
    """``coalesce=no`` disables what the test above counts."""

    async def steps() -> None:
        async with _opened(f"{own.url}?coalesce=no") as backend:
            with _counting(own) as count:
                await _at_once(own, [_lease(backend, os.urandom(8)) for _ in range(8)])
                found = count()
            assert found["reads"] >= 8
            assert found["connections"] >= 7

    _run(steps)


def test_a_large_response_holds_nobody_up(own: Server) -> None:
    """I11: it has its own connection, so that other calls do not wait behind it."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            large, small = [await _lease(backend, os.urandom(8)) for _ in range(2)]
            with _counting(own) as count:
                await backend.complete(Complete(small, b"x" * 1000))
                assert count()["connections"] == 0
                await backend.complete(Complete(large, b"x" * 200_000))
                assert count()["connections"] == 1
            assert await backend.claim(claim_of(large.record_id)) == Finished(b"x" * 200_000)

    _run(steps)


def test_alone_a_call_waits_for_nobody(own: Server) -> None:
    """Sequential calls are one write each."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            with _counting(own) as count:
                for _ in range(5):
                    await backend.complete(Complete(await _lease(backend, os.urandom(8)), b"response"))
                found = count()
            assert found == {"scripts": 10, "reads": 10, "connections": 0, "waits": 0}

    _run(steps)


def test_of_one_key_in_one_batch_one_owner_wins(own: Server) -> None:
    """I1: by tokens and owners, not only by the replies."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            key = os.urandom(8)
            claims = [claim_of(key, owner=os.urandom(16)) for _ in range(MANY)]
            with _counting(own) as count:
                results = await _at_once(own, [backend.claim(claim) for claim in claims])
                assert count()["reads"] <= BATCHES
            winners = [(c, a.lease) for c, a in zip(claims, results, strict=True) if isinstance(a, Leased)]
            ((claim, lease),) = winners
            assert sum(isinstance(result, Busy) for result in results) == MANY - 1
            record = await backend.get(Get(key))
            assert record is not None
            assert (record.owner, record.token, record.attempt) == (claim.owner, lease.token, 1)

    _run(steps)


def test_a_claim_that_is_sent_again_in_one_batch_is_one_lease(own: Server) -> None:
    """B-08: the same owner gets the same lease each time."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            mine, theirs = claim_of(os.urandom(8), owner=b"me"), claim_of(b"other", owner=b"me")
            claims: list[Claim] = [mine, theirs] * (MANY // 2)
            results = await _at_once(own, [backend.claim(claim) for claim in claims])
            assert all(isinstance(result, Leased) for result in results)
            assert len({(result.lease.record_id, result.lease.token) for result in results}) == 2
            await backend.delete(b"other")

    _run(steps)


@both_loops
def test_a_caller_that_leaves_takes_nobody_along(own: Server, uvloop: bool) -> None:
    """Cancelled in flight and in the queue; the connection stays, and others get their own replies."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            keys = [os.urandom(8) for _ in range(MANY)]
            with _counting(own) as count:
                with _stopped(own):
                    tasks = await _begin([_lease(backend, key) for key in keys])
                    # The first two are in flight, each alone; all others wait.
                    left = [tasks[0], tasks[1], *tasks[10::2]]
                    for task in left:
                        task.cancel()
                    stayed = [key for key, task in zip(keys, tasks, strict=True) if task not in left]
                    await asyncio.wait(left)
                    later = await _begin([_lease(backend, b"later")])
                leases = await asyncio.gather(*(task for task in tasks if task not in left), *later)
                found = count()
            assert [lease.record_id for lease in leases] == [*stayed, b"later"]
            assert all(task.cancelled() for task in left)
            assert (found["scripts"], found["connections"]) == (len(stayed) + 1 + 2, 0)
            await backend.release(Release(leases[-1]))

    _run(steps, uvloop)


def test_what_the_server_refuses_is_refused_to_its_caller_alone(own: Server) -> None:
    """B-10, B-11b: at the memory limit claims fail, and completions of the same batch succeed."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            held = [await _lease(backend, os.urandom(8)) for _ in range(4)]
            with own.connect() as plain:
                plain.config_set("maxmemory", 1)
            try:
                pairs = [(backend.claim(claim_of(os.urandom(8))), _done(backend, lease)) for lease in held]
                calls: list[Coroutine[Any, Any, Any]] = [call for pair in pairs for call in pair]
                results = await _at_once(own, calls)
            finally:
                with own.connect() as plain:
                    plain.config_set("maxmemory", 0)
            assert results[1::2] == [True] * 4
            assert all(isinstance(error, BackendUnavailable) for error in results[::2])
            assert all(isinstance(error.__cause__, ResponseError) for error in results[::2])
            assert len({id(error) for error in results[::2]}) == 4

    _run(steps)


async def _done(backend: AsyncRedisBackend, lease: Lease) -> bool:
    return not (await backend.complete(Complete(lease, b"response"))).recreated


def test_scripts_that_the_server_forgot_are_sent_again_for_a_batch(own: Server) -> None:
    """B-10: after SCRIPT FLUSH, on the same connection; each caller gets its reply."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            keys = [os.urandom(8) for _ in range(MANY)]
            with own.connect() as plain:
                plain.script_flush()
            with _counting(own) as count:
                leases = await _at_once(own, [_lease(backend, key) for key in keys])
                assert count()["connections"] == 0
            assert [lease.record_id for lease in leases] == keys

    _run(steps)


def test_a_silent_server_is_refused_in_time_by_all(own: Server) -> None:
    """B-10: calls in flight and in the queue; afterwards calls succeed."""

    async def steps() -> None:
        async with _opened(own.url, timeout=0.4) as backend:
            with _stopped(own):
                started = asyncio.get_running_loop().time()
                tasks = await _begin([_lease(backend, os.urandom(8)) for _ in range(MANY)])
                errors = await asyncio.gather(*tasks, return_exceptions=True)
                assert asyncio.get_running_loop().time() - started < backend.call_timeout
            assert {type(error) for error in errors} == {BackendUnavailable}
            assert await _lease(backend, os.urandom(8))

    _run(steps)


def test_a_connection_that_ends_costs_a_batch_nothing(own: Server) -> None:
    """B-10, B-08: its commands are sent again on another connection."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            keys = [os.urandom(8) for _ in range(MANY)]
            with _stopped(own):
                tasks = await _begin([_lease(backend, key) for key in keys])
                backend._calls.client()._batches._connection._stream._writer.transport.abort()
                await _begin([])
            leases = await asyncio.gather(*tasks)
            assert [lease.record_id for lease in leases] == keys

    _run(steps)


def test_a_backend_that_is_closed_ends_every_wait(own: Server) -> None:
    """B-10: with a typed error; the backend can be used again."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            with _stopped(own):
                tasks = await _begin([_lease(backend, os.urandom(8)) for _ in range(MANY)])
                await backend.close()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(error) for error in errors} == {BackendUnavailable}
            assert await _lease(backend, os.urandom(8))

    _run(steps)


def test_a_connection_that_ends_before_its_first_use_holds_nobody_up(own: Server) -> None:
    """B-10: no reply would come over it. Until Python 3.12, the task that connects ends a turn before the exchange."""

    async def steps() -> None:
        async with _opened(own.url) as backend:
            stream = await backend._calls.client()._batches._connection._connected()
            stream.connection_lost(None)
            with pytest.raises(redis.exceptions.ConnectionError, match="before it was used"):
                stream.exchange([b"PING\r\n"], LONG)
            assert await backend.get(Get(b"key")) is None

    _run(steps)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="nothing comes between the connection and its first use")
@pytest.mark.parametrize("closed", [False, True], ids=["lost", "closed"])
def test_a_call_whose_connection_ends_before_its_first_use_is_not_held_up(own: Server, closed: bool) -> None:
    """B-10: it gets another connection, or an error if the backend was closed."""

    async def steps() -> None:
        backend = RedisBackend(own.url, timeout=LONG, eviction="ignore").to_async()
        task = asyncio.ensure_future(backend.get(Get(b"key")))
        await asyncio.sleep(0)
        connection = backend._calls.client()._batches._connection
        while connection._stream is None:
            await asyncio.sleep(0)
        assert not connection._stream._in_flight
        if closed:
            await backend.close()
            with pytest.raises(BackendUnavailable, match="was closed"):
                await task
        else:
            connection._stream.connection_lost(None)
            assert await task is None
            await backend.close()

    _run(steps)


def test_what_nobody_asked_for_ends_the_connection() -> None:
    """I6: a surplus reply would be taken for that of the next command."""

    async def steps() -> None:
        said = asyncio.Event()

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(65536):
                    writer.write(b"*1\r\n:4\r\n" + b":7\r\n" * (not said.is_set()))
                    said.set()
            finally:
                writer.close()

        listening = await asyncio.start_server(speak, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        backend = RedisBackend(f"redis://127.0.0.1:{port}", timeout=LONG, eviction="ignore").to_async()
        # The first connection sends a surplus reply; the second command goes over another one.
        for _ in range(2):
            assert type(await backend.claim(claim_of(b"key"))).__name__ == "Mismatch"
        await backend.close()
        listening.close()
        await listening.wait_closed()

    _run(steps)


def test_replicas_confirm_a_batch_at_once() -> None:
    """I8: one WAIT for all writes of a batch."""

    async def steps(primary: Server) -> None:
        async with _opened(primary.url, min_replicas=1) as backend:
            keys = [os.urandom(8) for _ in range(MANY)]
            with _counting(primary) as count:
                leases = await _at_once(primary, [_lease(backend, key) for key in keys])
                claimed = count()
                await _at_once(primary, [_done(backend, lease) for lease in leases])
                completed = count()
            assert (claimed["scripts"], completed["scripts"]) == (2 * MANY, 3 * MANY)
            assert 1 <= claimed["waits"] <= 2 * BATCHES
            assert completed["waits"] <= claimed["waits"] + BATCHES

    with replicated(1) as (primary, _):
        _run(lambda: steps(primary))


def test_on_a_cluster_each_node_has_batches_of_its_own(cluster: Cluster) -> None:
    """B-11a: only commands for a stopped node wait for it."""

    async def steps() -> None:
        async with _opened(cluster.url, prefix=os.urandom(4).hex()) as backend:
            keys = [os.urandom(8) for _ in range(3 * MANY)]
            # Afterwards each node has the scripts and a connection.
            await asyncio.gather(*(_lease(backend, key) for key in keys))
            await asyncio.gather(*(backend.get(Get(key)) for key in keys))
            stopped = cluster.nodes[0]
            with ExitStack() as stack:
                counts = [stack.enter_context(_counting(node)) for node in cluster.nodes]
                with _stopped(stopped):
                    tasks = await _begin([backend.get(Get(key)) for key in keys])
                    await asyncio.wait_for(_until_done(tasks, MANY), LONG)
                    assert not all(task.done() for task in tasks)
                records = await asyncio.gather(*tasks)
                found = [count() for count in counts]
            assert [record.record_id for record in records] == keys
            assert sum(node["scripts"] for node in found) == len(keys)
            assert sum(node["reads"] for node in found) < len(keys) // 3

    _run(steps)


async def _until_done(tasks: list[asyncio.Task[Any]], number: int) -> None:
    while sum(task.done() for task in tasks) < number:
        await asyncio.sleep(0.01)


def test_commands_that_could_not_be_written_take_nobody_elses_replies(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-10a: the write fails without memory. Later commands get their own replies, at once."""

    def write(*_: object) -> None:
        raise MemoryError

    async def steps() -> None:
        async with _opened(own.url) as backend:
            lease = await _lease(backend, os.urandom(32))
            with monkeypatch.context() as patched:
                patched.setattr("asyncio.selector_events._SelectorSocketTransport.write", write)
                with pytest.raises(BackendUnavailable):
                    await backend.complete(Complete(lease, b"response"))
            calls = [backend.complete(Complete(lease, b"response")), backend.get(Get(lease.record_id))]
            completed, record = await asyncio.gather(*calls)
            assert not completed.recreated
            assert record.record_id == lease.record_id

    _run(steps)
