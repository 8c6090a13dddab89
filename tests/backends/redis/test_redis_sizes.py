"""A value that a server refuses for its size is not taken for a failed server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from open_idempotency.backend import Complete, Fail, Finished, SaveStage, Stage
from open_idempotency.backends.redis import RedisBackend, calls
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge
from tests.backends.redis.on_redis import run, server
from tests.conftest import SERVER_KINDS
from tests.faults.proxy import FaultProxy
from tests.servers import Server

LIMIT = calls.SMALLEST_LIMIT
LARGE = bytes(LIMIT + 300_000)


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(params=SERVER_KINDS, scope="module")
def small(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the lowest possible limit. The user "app" may not read it."""
    with server("--proto-max-bulk-len", "1mb", "--repl-diskless-sync-delay", "0", kind=request.param) as small:
        with small.connect() as plain:
            plain.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config")
        yield small


@pytest.fixture(params=["reported", "not reported"])
def url(request: pytest.FixtureRequest, small: Server) -> str:
    """With a user that may read the limit, and with one that may not."""
    return small.url if request.param == "reported" else small.url.replace("//", "//app:secret@")


async def _refused(verbs: AsyncVerbs) -> None:
    lease = await lease_of(verbs, b"response")
    with pytest.raises(RecordTooLarge, match=str(len(LARGE))):
        await verbs.complete(Complete(lease, LARGE))
    with pytest.raises(RecordTooLarge):
        await verbs.save_stage(SaveStage(lease, Stage("stage", "", LARGE)))
    with pytest.raises(RecordTooLarge):
        await verbs.fail(Fail(lease, response=LARGE))
    at_the_limit = bytes(LIMIT)
    await verbs.complete(Complete(lease, at_the_limit))
    assert await verbs.claim(claim_of(b"response")) == Finished(at_the_limit)
    await verbs.delete(b"response")


def test_a_value_over_the_limit_is_refused_as_such(mode: str, url: str) -> None:
    """B-17: whether or not the user may read the limit; nothing is written, and the lease stays."""
    run(mode, RedisBackend(url, timeout=5), _refused)


def test_it_is_refused_as_such_where_replicas_confirm(small: Server) -> None:
    """B-17: in each call that may be sent with WAIT."""
    words = ("--replicaof", "127.0.0.1", str(small.port), "--repl-diskless-sync-delay", "0")
    with server(*words) as replica, replica.connect() as plain:
        while plain.info("replication").get("master_link_status") != "up":
            time.sleep(0.01)
        for mode in ("sync", "asyncio"):
            run(mode, RedisBackend(small.url, timeout=5, min_replicas=1), _refused)


def test_the_limit_is_asked_for_once_and_only_before_large_values(mode: str, small: Server) -> None:
    """B-17, B-11a: applications with small responses need no CONFIG."""

    def asked(plain: redis.Redis) -> int:
        stats = plain.info("commandstats")
        return sum(stats.get(name, {"calls": 0})["calls"] for name in ("cmdstat_config|get", "cmdstat_config"))

    async def steps(verbs: AsyncVerbs) -> None:
        with small.connect() as plain:
            before = asked(plain)
            await verbs.complete(Complete(await lease_of(verbs, b"small"), bytes(LIMIT - 1)))
            assert asked(plain) == before
            for name in (b"one", b"two"):
                with pytest.raises(RecordTooLarge):
                    await verbs.complete(Complete(await lease_of(verbs, name), LARGE))
            assert asked(plain) == before + 1
            plain.flushdb()

    run(mode, RedisBackend(small.url, timeout=5), steps)


def test_a_large_value_to_a_server_that_is_away_is_unavailable(mode: str) -> None:
    """B-17, B-10: otherwise an outage would lose the response. It is recorded when the server is back."""
    with server() as large, FaultProxy(large.port) as proxy:
        backend = RedisBackend(f"redis://127.0.0.1:{proxy.port}", timeout=2)

        async def steps(verbs: AsyncVerbs) -> None:
            lease = await lease_of(verbs, b"response")
            large.kill()
            started = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await verbs.complete(Complete(lease, LARGE))
            assert time.monotonic() - started < verbs.call_timeout
            large.start()
            await verbs.complete(Complete(lease, LARGE))
            assert await verbs.claim(claim_of(b"response")) == Finished(LARGE)

        run(mode, backend, steps)


def test_a_large_value_on_a_connection_that_breaks_once_is_sent_again(mode: str) -> None:
    """B-17, B-10: one broken connection does not mean that the value is too large."""
    with server() as large, FaultProxy(large.port) as proxy:
        backend = RedisBackend(f"redis://127.0.0.1:{proxy.port}", timeout=5)

        async def steps(verbs: AsyncVerbs) -> None:
            lease = await lease_of(verbs, b"response")
            for number in (1, 2):
                proxy.lose_reply(bytes(1000), nth=number)
            await verbs.complete(Complete(lease, LARGE))
            assert await verbs.claim(claim_of(b"response")) == Finished(LARGE)

        run(mode, backend, steps)
