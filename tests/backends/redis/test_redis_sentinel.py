"""Sentinel: the backend finds the primary and its successor after a failover, and every step is bounded."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest
import redis

from open_idempotency.backend import Busy, Complete, Finished, Get, Leased
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError
from tests.backends.redis.on_redis import claimed_again, run, server
from tests.conftest import SERVER_KINDS
from tests.servers import Server
from tests.topologies import SERVICE, Sentinel, replicated, until

RECORD = b"\x01\xff record"
SECRET = "s3cr3t-word"


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture
def watched() -> Iterator[tuple[Server, Server, Sentinel]]:
    """A primary, its replica, and a Sentinel."""
    with replicated(1) as (primary, (replica,)):
        sentinel = Sentinel(primary.port).start()
        try:
            until(lambda: sentinel.knows_replicas(1), "the replica is known")
            yield primary, replica, sentinel
        finally:
            sentinel.stop()


@pytest.fixture(scope="module")
def steady() -> Iterator[tuple[Server, Sentinel]]:
    """A primary without replicas, and its Sentinel; leave both running."""
    with replicated(0) as (primary, _):
        sentinel = Sentinel(primary.port)
        try:
            yield primary, sentinel.start()
        finally:
            sentinel.stop()


def test_after_a_failover_the_backend_works_again_by_itself(
    mode: str, watched: tuple[Server, Server, Sentinel]
) -> None:
    """B-10: calls before are refused in time; the replica's records are found."""
    primary, replica, sentinel = watched

    async def steps(verbs: AsyncVerbs) -> None:
        running = await lease_of(verbs, b"running", lease=600.0)  # longer than any failover
        await verbs.complete(Complete(await lease_of(verbs, b"completed"), b"response"))
        with primary.connect() as plain:
            assert plain.wait(1, 10_000) == 1
        primary.kill()
        sentinel.hurry()
        assert isinstance(await claimed_again(verbs, b"new"), Leased)
        assert sentinel.primary() == replica.port
        assert isinstance(await verbs.claim(claim_of(b"running")), Busy)
        assert await verbs.claim(claim_of(b"completed")) == Finished(b"response")
        await verbs.complete(Complete(running, b"finished"))

    run(mode, RedisBackend(sentinel.sentinel_url, timeout=2), steps)


@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_a_primary_that_became_a_replica_is_left(mode: str, kind: str) -> None:
    """B-10: even if only its refusal shows that, as the connection stays open. The new one is used at once."""
    with replicated(1, kind=kind) as (primary, (replica,)):
        sentinel, later = Sentinel(primary.port), Sentinel(replica.port)
        url = sentinel.start().sentinel_url
        later.port = sentinel.port

        async def steps(verbs: AsyncVerbs) -> None:
            await lease_of(verbs, RECORD)
            sentinel.kill()
            with replica.connect() as plain:
                plain.execute_command("REPLICAOF NO ONE")
            with primary.connect() as plain:
                plain.execute_command("REPLICAOF", "127.0.0.1", replica.port)
            with pytest.raises(BackendUnavailable):
                await verbs.claim(claim_of(b"new"))
            later.start()
            await lease_of(verbs, b"new")

        try:
            run(mode, RedisBackend(url, timeout=2), steps)
        finally:
            later.stop()
            sentinel.stop()


@pytest.mark.parametrize("lines", [(), ("user default on nopass ~* &* +@all -subscribe",)], ids=["heard", "asked"])
def test_a_primary_that_was_replaced_is_left_while_it_still_serves(mode: str, lines: tuple[str, ...]) -> None:
    """B-14a: after a planned failover Sentinel lets the old primary be one for seconds."""
    with replicated(1) as (primary, (replica,)):
        sentinel = Sentinel(primary.port, *lines)

        async def steps(verbs: AsyncVerbs) -> None:
            await lease_of(verbs, RECORD)
            with sentinel.connect() as plain:
                # It refuses until it knows the replica's offset.
                until(lambda: plain.execute_command("SENTINEL", "FAILOVER", SERVICE), "the failover begins")
            until(lambda: sentinel.primary() == replica.port, "the failover")
            with replica.connect() as new, primary.connect() as old:
                deadline = time.monotonic() + 5
                while not new.keys(backend.options.keys.record(b"new").decode()):
                    assert time.monotonic() < deadline
                    await verbs.delete(b"new")
                    await lease_of(verbs, b"new")
                    assert old.info("replication")["role"] == "master"

        try:
            sentinel.start()
            until(lambda: sentinel.knows_replicas(1), "the replica is known")
            backend = RedisBackend(sentinel.sentinel_url, timeout=2)
            run(mode, backend, steps)
        finally:
            sentinel.stop()


def test_a_planned_failover_forgets_no_response_that_was_acknowledged(
    mode: str, watched: tuple[Server, Server, Sentinel]
) -> None:
    """B-14a: the old primary is left when its replica is promoted, about a second before its successor is named."""
    primary, replica, sentinel = watched

    async def steps(verbs: AsyncVerbs) -> None:
        await lease_of(verbs, RECORD)
        with primary.connect() as plain:
            assert plain.wait(1, 10_000) == 1
        with sentinel.connect() as plain:
            until(lambda: plain.execute_command("SENTINEL", "FAILOVER", SERVICE), "the failover begins")
        acknowledged: list[bytes] = []
        deadline, refused = time.monotonic() + 20, 0
        while sentinel.primary() != replica.port or len(acknowledged) < 50:
            assert time.monotonic() < deadline
            name = secrets.token_bytes(8)
            try:
                lease = await verbs.claim(claim_of(name))
                if isinstance(lease, Leased):
                    await verbs.complete(Complete(lease.lease, b"response"))
                    acknowledged.append(name)
            except BackendUnavailable:
                refused += 1
        assert refused
        for name in acknowledged:
            assert await verbs.claim(claim_of(name)) == Finished(b"response")

    run(mode, RedisBackend(sentinel.sentinel_url, timeout=2), steps)


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("silent", ["sentinel", "primary", "both"])
def test_silence_is_unavailable_in_time(
    mode: str, silent: str, connected: bool, steady: tuple[Server, Sentinel]
) -> None:
    """B-10: of any server; a connected backend needs no Sentinel."""
    primary, sentinel = steady
    frozen = {"sentinel": (sentinel,), "primary": (primary,), "both": (primary, sentinel)}[silent]

    async def steps(verbs: AsyncVerbs) -> None:
        if connected:
            await verbs.claim(claim_of(RECORD))
        for each in frozen:
            each.freeze()
        try:
            started = time.monotonic()
            if connected and silent == "sentinel":
                assert await verbs.get(Get(RECORD)) is not None
            else:
                with pytest.raises(BackendUnavailable):
                    await verbs.claim(claim_of(b"new"))
            assert time.monotonic() - started < verbs.call_timeout
        finally:
            for each in frozen:
                each.thaw()

    run(mode, RedisBackend(sentinel.sentinel_url, timeout=0.2), steps)


def test_a_sentinel_that_is_away_is_passed_over(mode: str, steady: tuple[Server, Sentinel]) -> None:
    """B-10: the URL names several, and one that replies is enough."""
    _, sentinel = steady
    with server() as gone:
        port = gone.port
    url = sentinel.sentinel_url.replace("//", f"//127.0.0.1:{port},")

    async def steps(verbs: AsyncVerbs) -> None:
        await verbs.claim(claim_of(RECORD))

    run(mode, RedisBackend(url, timeout=2), steps)


def test_an_unknown_service_is_unavailable(mode: str, steady: tuple[Server, Sentinel]) -> None:
    """B-10: the message names the service."""
    _, sentinel = steady

    async def steps(verbs: AsyncVerbs) -> None:
        with pytest.raises(BackendUnavailable, match="no Sentinel names a primary of 'elsewhere'"):
            await verbs.claim(claim_of(RECORD))

    run(mode, RedisBackend(sentinel.sentinel_url.replace(SERVICE, "elsewhere"), timeout=2), steps)


def test_sentinels_have_a_login_of_their_own(mode: str) -> None:
    """B-11a: another one than the servers'; no error repeats either."""
    with replicated(0, "--requirepass", "data-" + SECRET) as (primary, _):
        lines = (f"sentinel auth-pass {SERVICE} data-{SECRET}", f"requirepass sentinel-{SECRET}")
        sentinel = Sentinel(primary.port, *lines)
        try:
            sentinel.start()
            url = sentinel.sentinel_url.replace("//", f"//:data-{SECRET}@") + f"?sentinel_password=sentinel-{SECRET}"
            backend = RedisBackend(url, timeout=2)

            async def steps(verbs: AsyncVerbs) -> None:
                await lease_of(verbs, RECORD)

            run(mode, backend, steps)
            assert SECRET not in f"{backend!r} {backend.options!r} {backend.to_async()!r}"
            with pytest.raises(BackendUnavailable) as caught:
                RedisBackend(url.replace("=sentinel-", "=wrong-"), timeout=2).claim(claim_of(RECORD))
            assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
        finally:
            sentinel.stop()


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+cluster"])
def test_a_client_library_that_is_too_old_is_refused_at_start(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: the error says what to do."""
    monkeypatch.setattr(redis, "__version__", "5.0.1")
    path = "/primary" if "sentinel" in scheme else ""
    with pytest.raises(ConfigurationError, match="pip install -U redis"):
        RedisBackend(f"{scheme}://127.0.0.1:1{path}")
    RedisBackend("redis://127.0.0.1:1")
