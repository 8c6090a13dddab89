"""Redis Cluster: each key on its own node, one round trip of renewals for each node, and moving slots."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest
import redis
from redis.crc import key_slot

from open_idempotency.backend import Complete, Finished, Lease, Record, Renew, Renewal, Wait
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.backends.redis.cluster import AsyncClusterClient
from open_idempotency.backends.redis.topology import AsyncClient
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from open_idempotency.exceptions import BackendUnavailable
from tests.backends.redis.on_redis import SOON, claimed_again, run
from tests.conftest import SERVER_KINDS
from tests.topologies import Cluster, until

RECORDS = [b"%d" % number for number in range(30)]


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture
def backend(cluster: Cluster) -> Iterator[RedisBackend]:
    backend = RedisBackend(cluster.url, prefix=f"t{secrets.token_hex(8)}:", timeout=10)
    yield backend
    backend.close()


def _calls(cluster: Cluster, *names: str) -> list[int]:
    """The number of calls to each primary."""
    found: list[int] = []
    for node in cluster.nodes[:3]:
        with node.connect() as plain:
            stats = plain.info("commandstats")
        found.append(sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names))
    return found


def test_the_records_are_spread_and_all_are_found(mode: str, backend: RedisBackend, cluster: Cluster) -> None:
    """B-09, B-11a: scans and purges go to all primaries."""

    async def steps(verbs: AsyncVerbs) -> None:
        for name in RECORDS:
            await lease_of(verbs, name)
        for node in cluster.nodes:
            with node.connect() as plain:
                assert list(plain.scan_iter(match=backend.options.keys.pattern(), count=1000))
        found: list[Record] = [record async for record in verbs.scan()]
        assert sorted(record.record_id for record in found) == sorted(RECORDS)
        assert await verbs.purge() == 0

    run(mode, backend, steps)


def test_many_leases_are_renewed_in_one_round_trip_for_each_node(
    mode: str, backend: RedisBackend, cluster: Cluster
) -> None:
    """B-04: no script may use keys of two slots, so a node gets one for each slot, all at once."""

    async def steps(verbs: AsyncVerbs) -> None:
        leases = [await lease_of(verbs, secrets.token_bytes(8)) for _ in range(200)]
        await verbs.renew(Renew(leases))
        reads, scripts = _reads(cluster), _calls(cluster, "evalsha", "eval")
        assert set(await verbs.renew(Renew(leases))) == {Renewal.OWNED}
        assert sum(_calls(cluster, "evalsha", "eval")) - sum(scripts) <= len(leases)
        # The server may read one write in several events, and INFO adds some; but never 200.
        assert all(after - before < 20 for before, after in zip(reads, _reads(cluster), strict=True))

    run(mode, backend, steps)


def _reads(cluster: Cluster) -> list[int]:
    found: list[int] = []
    for node in cluster.nodes[:3]:
        with node.connect() as plain:
            found.append(int(plain.info("stats")["total_reads_processed"]))
    return found


def test_leases_of_one_slot_are_renewed_by_one_script(mode: str, cluster: Cluster) -> None:
    """B-04: a prefix with a hash tag keeps an application on one node, as on a single server."""
    backend = RedisBackend(cluster.url, prefix=f"{{{secrets.token_hex(8)}}}:", timeout=10)

    async def steps(verbs: AsyncVerbs) -> None:
        leases = [await lease_of(verbs, name) for name in RECORDS]
        await verbs.renew(Renew(leases))
        before = _calls(cluster, "evalsha", "eval")
        assert list(await verbs.renew(Renew(leases))) == [Renewal.OWNED] * len(RECORDS)
        assert sum(_calls(cluster, "evalsha", "eval")) == sum(before) + 1

    run(mode, backend, steps)


def test_renewals_keep_their_order(mode: str, backend: RedisBackend) -> None:
    """B-04: the results are in the order of the leases, whichever nodes replied."""

    async def steps(verbs: AsyncVerbs) -> None:
        leases: list[Lease] = [await lease_of(verbs, name) for name in RECORDS]
        for number, name in enumerate(RECORDS):
            if number % 3 == 0:
                await verbs.delete(name)
        expected = [Renewal.VANISHED if number % 3 == 0 else Renewal.OWNED for number in range(len(RECORDS))]
        assert list(await verbs.renew(Renew(leases))) == expected

    run(mode, backend, steps)


@pytest.fixture(scope="module")
def whole() -> Iterator[Cluster]:
    """A Cluster with a replica for each primary."""
    cluster = Cluster("valkey", 3, 1)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_slot_is_followed_while_it_moves_and_afterwards(mode: str, replicas: int, whole: Cluster) -> None:
    """B-10, B-11a: for a single call, for renewals, and for a WAIT on the same connection."""
    tag = secrets.token_hex(8)
    slot = key_slot(tag.encode())
    backend = RedisBackend(whole.url, prefix=f"{{{tag}}}:", timeout=10, min_replicas=replicas)

    async def life(verbs: AsyncVerbs, name: bytes) -> None:
        lease = await lease_of(verbs, name)
        assert list(await verbs.renew(Renew([lease]))) == [Renewal.OWNED]
        await verbs.complete(Complete(lease, b"response"))
        assert await verbs.claim(claim_of(name)) == Finished(b"response")
        assert await verbs.delete(name)

    async def steps(verbs: AsyncVerbs) -> None:
        owner = whole.owner_of(slot)
        other = (owner + 1) % 3
        try:
            await life(verbs, b"before")
            whole.begin_to_move(slot, other)
            await life(verbs, b"meanwhile")
            whole.move(slot, other)
            await life(verbs, b"afterwards")
        finally:
            whole.move(slot, owner)

    run(mode, backend, steps)


def test_leases_of_a_slot_that_has_half_moved_are_renewed(mode: str, whole: Cluster) -> None:
    """L-13: both nodes refuse a script for keys on both, so each lease is renewed separately."""
    tag = secrets.token_hex(8)
    slot = key_slot(tag.encode())
    backend = RedisBackend(whole.url, prefix=f"{{{tag}}}:", timeout=10)
    owner = whole.owner_of(slot)
    other = (owner + 1) % 3

    async def steps(verbs: AsyncVerbs) -> None:
        leases = [await lease_of(verbs, b"%d" % number) for number in range(6)]
        expected = [Renewal.VANISHED if number == 1 else Renewal.OWNED for number in range(6)]
        try:
            whole.begin_to_move(slot, other)
            moved = [backend.options.keys.record(lease.record_id) for lease in leases[::2]]
            for key in moved:
                whole.ask(owner, "MIGRATE", "127.0.0.1", whole.nodes[other].port, key, 0, 5000)
            await verbs.delete(b"1")
            assert list(await verbs.renew(Renew(leases))) == expected
        finally:
            for key in (backend.options.keys.record(lease.record_id) for lease in leases):
                whole.ask(owner, "MIGRATE", "127.0.0.1", whole.nodes[other].port, key, 0, 5000)
            whole.move(slot, other)
            assert list(await verbs.renew(Renew(leases))) == expected
            for lease in leases:
                await verbs.delete(lease.record_id)
            whole.move(slot, owner)

    run(mode, backend, steps)


@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_after_a_failover_the_backend_works_again_by_itself(kind: str) -> None:
    """B-10: sync and async; calls before are refused in time, and then all nodes are found."""
    cluster = Cluster(kind, 3, 1)

    async def steps(verbs: AsyncVerbs) -> None:
        both = [verbs, AsyncVerbs(verbs.to_sync())]
        leases = [await lease_of(each, b"%d" % number) for number, each in enumerate(both * 15)]
        for number in range(3):
            with cluster.nodes[number].connect() as plain:
                assert plain.wait(1, 10_000) == 1
        cluster.nodes[0].kill()
        for each in both:
            for name in RECORDS:
                await claimed_again(each, b"new " + name + secrets.token_bytes(2))
            assert set(await each.renew(Renew(leases))) == {Renewal.OWNED}

    try:
        run("asyncio", RedisBackend(cluster.start().url, timeout=2), steps)
    finally:
        cluster.stop()


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
def test_silence_is_unavailable_in_time(mode: str, connected: bool, cluster: Cluster) -> None:
    """B-10: whatever the client library tries, for one call and for many."""

    async def steps(verbs: AsyncVerbs) -> None:
        if connected:
            await lease_of(verbs, secrets.token_bytes(8))
        for node in cluster.nodes:
            node.freeze()
        try:
            started = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await verbs.claim(claim_of(b"new"))
            assert time.monotonic() - started < verbs.call_timeout
        finally:
            for node in cluster.nodes:
                node.thaw()
        await claimed_again(verbs, secrets.token_bytes(8))

    run(mode, RedisBackend(cluster.url, prefix=f"t{secrets.token_hex(8)}:", timeout=0.2), steps)


def test_many_threads_meet_silence_in_time(cluster: Cluster) -> None:
    """B-10, I11: they also wait for the thread that discovers the nodes."""
    backend = RedisBackend(cluster.url, prefix=f"t{secrets.token_hex(8)}:", timeout=0.3)
    took: list[float] = []

    def call() -> None:
        started = time.monotonic()
        with suppress(BackendUnavailable):
            backend.claim(claim_of(secrets.token_bytes(8)))
        took.append(time.monotonic() - started)

    call()
    for node in cluster.nodes:
        node.freeze()
    try:
        threads = [threading.Thread(target=call) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    finally:
        for node in cluster.nodes:
            node.thaw()
    assert len(took) == 13
    assert max(took) < backend.call_timeout
    backend.close()


def test_any_node_notifies_a_waiting_duplicate(mode: str, backend: RedisBackend, cluster: Cluster) -> None:
    """O-04, B-11a: nodes forward messages, so listening at one of them is enough."""

    def subscribed() -> int:
        keys = [backend.options.keys.record(name) for name in RECORDS]
        return sum(_subscribers(node.connect(), key) for node in cluster.nodes for key in keys)

    async def steps(verbs: AsyncVerbs) -> None:
        leases = [await lease_of(verbs, name) for name in RECORDS]
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                for name in RECORDS:
                    group.start_soon(verbs.wait, Wait(name, 100.0, 100.0))
                while subscribed() < len(RECORDS):
                    await anyio.sleep(0.01)
                for lease in leases:
                    await verbs.complete(Complete(lease, b"response"))

    run(mode, backend, steps)


def _subscribers(plain: redis.Redis, channel: bytes) -> int:
    with plain:
        return int(plain.pubsub_numsub(channel)[0][1])


def test_a_server_that_is_no_cluster_is_reported(mode: str, valkey_url: str) -> None:
    """B-10: a typed error, at the first call."""

    async def steps(verbs: AsyncVerbs) -> None:
        with pytest.raises(BackendUnavailable, match="luster"):
            await verbs.claim(claim_of(b"new"))

    run(mode, RedisBackend(valkey_url.replace("redis://", "redis+cluster://"), timeout=2), steps)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_connection_that_was_dropped_when_it_was_given_out_is_a_broken_one(backend: RedisBackend) -> None:
    """B-10: the client library then fails on None; the call is repeated once, and errors are typed."""
    calls, tries = backend.to_async()._calls, list[int]()

    async def stumbling(client: AsyncClient, times: int) -> str:
        tries.append(1)
        if len(tries) <= times:
            raise AttributeError("writelines", name="writelines", obj=None)
        return "done"

    assert await calls._run(lambda client: stumbling(client, times=1)) == "done"
    tries.clear()
    with pytest.raises(BackendUnavailable):
        await calls._run(lambda client: stumbling(client, times=2))
    await backend.to_async().close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_client_whose_last_call_broke_leaves_no_connection_open(cluster: Cluster) -> None:
    """B-11: redis-py's client then counts as closed already."""
    options = RedisBackend(cluster.url, timeout=10).options
    before = _clients(cluster)
    client = AsyncClusterClient(options)
    for name in RECORDS:
        await client.execute(("GET", options.keys.record(name)))
    opened = _clients(cluster) - before
    broken = next(name for name in RECORDS if cluster.owner_of(key_slot(options.keys.record(name))) == 0)
    with cluster.nodes[0].connect() as plain:
        for node, number in opened:
            if node == 0:
                plain.execute_command("CLIENT KILL", "ID", number)
    with pytest.raises(redis.RedisError):
        await client.execute(("GET", options.keys.record(broken)))
    assert _clients(cluster) & opened
    await client.close()
    until(lambda: not _clients(cluster) & opened, "all connections are closed")


def test_a_closed_backend_leaves_no_connection_open(backend: RedisBackend, cluster: Cluster) -> None:
    """B-25: redis-py leaves the nodes' connections to the garbage collector."""
    before = _clients(cluster)
    for name in RECORDS:
        backend.claim(claim_of(name))
    opened = _clients(cluster) - before
    assert {number for number, _ in opened} == {0, 1, 2}
    backend.close()
    until(lambda: not _clients(cluster) & opened, "all connections are closed")


def test_closing_ends_calls_to_nodes_that_are_silent(backend: RedisBackend, cluster: Cluster) -> None:
    """B-10, B-11: at once, and redis-py does not rediscover the nodes."""
    for name in RECORDS:
        backend.claim(claim_of(name))
    refused: list[float] = []

    def call(name: bytes) -> None:
        with pytest.raises(BackendUnavailable, match="was closed"):
            backend.claim(claim_of(name))
        refused.append(time.monotonic())

    threads = [threading.Thread(target=call, args=(b"other %d" % number,)) for number in range(6)]
    for node in cluster.nodes:
        node.freeze()
    try:
        for thread in threads:
            thread.start()
        calls = backend._calls
        until(lambda: len(calls._deadlines) == len(threads), "all calls are under way")
        closed = time.monotonic()
        backend.close()
        for thread in threads:
            thread.join(SOON)
    finally:
        for node in cluster.nodes:
            node.thaw()
    assert len(refused) == len(threads)
    assert max(refused) - closed < backend.options.timeout / 2


def _clients(cluster: Cluster) -> set[tuple[int, str]]:
    """The connected clients: the node, and the id that it has given."""
    found = set[tuple[int, str]]()
    for number, node in enumerate(cluster.nodes):
        with node.connect() as plain:
            found |= {(number, each["id"]) for each in plain.client_list()}
    return found
