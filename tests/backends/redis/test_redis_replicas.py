"""``min_replicas``: writes that no replica confirmed do not count; and the documented loss without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from open_idempotency.backend import Busy, Complete, Finished, Get, Leased, Release, SaveStage
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError
from tests.backends.redis.on_redis import claimed_again, lease, run, server
from tests.conftest import SERVER_KINDS
from tests.faults.proxy import FaultProxy
from tests.servers import Server
from tests.topologies import Sentinel, replicated, until

RECORD = b"\x01\xff record"
AT_ONCE = ("--repl-diskless-sync-delay", "0")


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(params=SERVER_KINDS, scope="module")
def primary(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A primary with one replica, both empty; leave them running."""
    with replicated(1, kind=request.param) as (primary, _):
        yield primary


@pytest.fixture
def backend(primary: Server) -> Iterator[RedisBackend]:
    backend = RedisBackend(primary.url, min_replicas=1, timeout=10)
    yield backend
    backend.close()
    with primary.connect() as plain:
        plain.flushdb()


@pytest.fixture
def demanding(primary: Server) -> Iterator[RedisBackend]:
    """A backend that demands one replica more than there is."""
    backend = RedisBackend(primary.url, min_replicas=2, timeout=5, replicas_timeout=0.05)
    yield backend
    backend.close()
    with primary.connect() as plain:
        plain.flushdb()


def _commands(plain: redis.Redis) -> dict[str, int]:
    stats = plain.info("commandstats")
    return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "wait")}


def test_a_confirmed_claim_is_two_round_trips(mode: str, backend: RedisBackend, primary: Server) -> None:
    """I8: a claim is written, and then repeated with WAIT; a completion has WAIT at once."""

    async def steps(verbs: AsyncVerbs) -> None:
        await verbs.complete(Complete(await lease_of(verbs, b"first"), b"response"))
        with primary.connect() as plain:
            before = _commands(plain)
            lease = await lease_of(verbs, RECORD)
            claimed = _commands(plain)
            await verbs.complete(Complete(lease, b"response"))
            completed = _commands(plain)
            assert await verbs.claim(claim_of(RECORD)) == Finished(b"response")
            replayed = _commands(plain)
        assert [claimed[name] - before[name] for name in before] == [2, 0, 1]
        assert [completed[name] - claimed[name] for name in before] == [1, 0, 1]
        assert [replayed[name] - completed[name] for name in before] == [1, 0, 0]

    run(mode, backend, steps)


def test_a_claim_that_is_not_confirmed_does_not_run(mode: str, demanding: RedisBackend) -> None:
    """I8: it is refused and released, so that the key is free before the lease ends."""

    async def steps(verbs: AsyncVerbs) -> None:
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match=r"[01] of 2 replicas"):
            await verbs.claim(claim_of(RECORD))
        assert time.monotonic() - started < verbs.call_timeout
        assert await verbs.get(Get(RECORD)) is None

    run(mode, demanding, steps)


def test_a_takeover_that_is_not_confirmed_keeps_the_stages(mode: str, primary: Server, demanding: RedisBackend) -> None:
    """I8, B-05: earlier stages stay, and no attempt is counted."""
    plain = RedisBackend(primary.url, timeout=10)
    first = lease(plain, RECORD)
    plain.save_stage(SaveStage(first, stage_of("charge")))
    plain.release(Release(first))

    async def steps(verbs: AsyncVerbs) -> None:
        with pytest.raises(BackendUnavailable):
            await verbs.claim(claim_of(RECORD))

    run(mode, demanding, steps)
    again = plain.claim(claim_of(RECORD))
    assert isinstance(again, Leased)
    assert (again.lease.attempt, len(again.stages)) == (1, 1)
    plain.close()


def test_what_is_not_confirmed_is_not_done_and_may_be_sent_again(mode: str, primary: Server) -> None:
    """I4, L-08: completions and stages fail until the replicas have them; a repeated one checks again."""
    with FaultProxy(primary.port) as proxy, _replica_of(proxy.port):
        backend = RedisBackend(primary.url, min_replicas=2, timeout=5, replicas_timeout=0.2)

        async def steps(verbs: AsyncVerbs) -> None:
            leased = await claimed_again(verbs, RECORD)  # on a slow machine not in the replicas' short time
            assert isinstance(leased, Leased)
            lease = leased.lease
            proxy.swallow()
            for _ in range(2):
                # On a connection without a write, WAIT counts every replica.
                await verbs.close()
                with pytest.raises(BackendUnavailable, match=r"[01] of 2 replicas"):
                    await verbs.save_stage(SaveStage(lease, stage_of("charge")))
            for _ in range(2):
                await verbs.close()
                with pytest.raises(BackendUnavailable, match=r"[01] of 2 replicas"):
                    await verbs.complete(Complete(lease, b"response"))

        run(mode, backend, steps)
    with primary.connect() as plain:
        plain.flushdb()


@contextmanager
def _replica_of(port: int) -> Iterator[Server]:
    """A replica that has caught up."""
    with server("--replicaof", "127.0.0.1", str(port)) as replica, replica.connect() as plain:
        until(lambda: plain.info("replication").get("master_link_status") == "up", "the replica follows")
        yield replica


def _failed_over(min_replicas: int) -> tuple[object, object]:
    """Claim while the replica's link is silent, kill the primary, promote the replica; the result of a second claim."""
    with server(*AT_ONCE) as primary, FaultProxy(primary.port) as proxy, _replica_of(proxy.port) as replica:
        before = RedisBackend(primary.url, timeout=5, min_replicas=min_replicas, replicas_timeout=0.2)
        proxy.swallow()
        try:
            first: object = before.claim(claim_of(RECORD))
        except BackendUnavailable as error:
            first = error
        before.close()
        primary.kill()
        with replica.connect() as plain:
            plain.execute_command("REPLICAOF NO ONE")
        after = RedisBackend(replica.url, timeout=5)
        second = after.claim(claim_of(RECORD))
        after.close()
        return first, second


def test_without_replicas_a_failover_forgets_a_claim_and_the_handler_runs_twice() -> None:
    """A documented loss: the claim was acknowledged, and the promoted replica does not have it."""
    first, second = _failed_over(0)
    assert isinstance(first, Leased)
    assert isinstance(second, Leased)
    assert second.lease.attempt == 1


def test_with_replicas_the_claim_that_a_failover_would_forget_is_refused() -> None:
    """I8: so the handler runs once, after the failover."""
    first, second = _failed_over(1)
    assert isinstance(first, BackendUnavailable)
    assert isinstance(second, Leased)


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_connection_whose_write_was_not_confirmed_is_not_used_again(mode: str, coalesce: bool) -> None:
    """B-16: the old server's replicas may follow the address's current server."""
    with server() as old, replicated(1) as (new, _), FaultProxy(old.port) as endpoint:
        url = f"redis://127.0.0.1:{endpoint.port}"
        backend = RedisBackend(url, min_replicas=1, timeout=5, replicas_timeout=0.1, coalesce=coalesce)

        async def steps(verbs: AsyncVerbs) -> None:
            with pytest.raises(BackendUnavailable, match="0 of 1 replicas"):
                await verbs.claim(claim_of(RECORD))
            endpoint.lead_to(new.port)
            assert isinstance(await claimed_again(verbs, RECORD), Leased)
            await verbs.complete(Complete(await lease_of(verbs, b"another"), b"response"))

        run(mode, backend, steps)


def test_a_confirmed_claim_survives_a_failover() -> None:
    """I1: with Sentinel, right after the claim."""
    with replicated(1) as (primary, _):
        sentinel = Sentinel(primary.port).start()
        try:
            until(lambda: sentinel.knows_replicas(1), "the replica is known")

            async def steps(verbs: AsyncVerbs) -> None:
                await lease_of(verbs, RECORD, lease=600.0)
                primary.kill()
                sentinel.hurry()
                # It has no replica now, so a claim is not confirmed; the record is read.
                plain = RedisBackend(sentinel.sentinel_url, timeout=2)
                assert isinstance(until(lambda: _reported(plain), "the failover"), Busy)
                plain.close()
                with pytest.raises(BackendUnavailable, match="0 of 1 replicas"):
                    await verbs.claim(claim_of(b"new"))

            run("asyncio", RedisBackend(sentinel.sentinel_url, min_replicas=1, timeout=2), steps)
        finally:
            sentinel.stop()


def _reported(backend: RedisBackend) -> object:
    try:
        return backend.claim(claim_of(RECORD))
    except BackendUnavailable:
        return None


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("min_replicas=-1", "min_replicas: expected a whole number"),
        ("min_replicas=1&replicas_timeout=1", "replicas_timeout: must be below timeout"),
        ("min_replicas=1&replicas_timeout=0", "replicas_timeout: must be more than 0"),
    ],
)
def test_wrong_settings_are_refused_at_start(query: str, message: str) -> None:
    """The error names the setting; a wait must be shorter than the connection's timeout."""
    with pytest.raises(ConfigurationError, match=message):
        RedisBackend(f"redis://localhost?{query}")
