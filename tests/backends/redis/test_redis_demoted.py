"""A primary that becomes a replica refuses writes, and the backend leaves it at once."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import anyio
import pytest

from open_idempotency.backend import Complete, Finished, Lease, Renew, Renewal
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from tests.backends.redis.on_redis import run
from tests.conftest import SERVER_KINDS
from tests.faults.proxy import FaultProxy
from tests.servers import Server
from tests.topologies import replicated, until

#: calls at the same moment, so that pools have several connections
MANY = 8


@pytest.fixture(params=["sync", "asyncio", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(params=SERVER_KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with replicated(1, kind=request.param) as (primary, (replica,)):
        yield primary, replica


def _switch(primary: Server, replica: Server, endpoint: FaultProxy) -> None:
    """Promote the replica, and lead the endpoint to it. The old primary becomes its replica."""
    with primary.connect() as old, replica.connect() as new:
        old.execute_command("SET", "oi-test", 1)
        assert old.execute_command("WAIT", 1, 10_000) == 1
        new.execute_command("REPLICAOF", "NO", "ONE")
        endpoint.lead_to(replica.port)
        old.execute_command("REPLICAOF", "127.0.0.1", replica.port)
        until(lambda: old.info("replication")["role"] == "slave", "the old primary is a replica")


@pytest.mark.parametrize("coalesce", [True, False])
def test_an_endpoint_that_moved_to_another_server_is_followed(
    mode: str, coalesce: bool, pair: tuple[Server, Server]
) -> None:
    """B-14: no call is refused, although the pool still has connections to the old server."""
    primary, replica = pair
    with FaultProxy(primary.port) as endpoint:
        backend = RedisBackend(f"redis://127.0.0.1:{endpoint.port}/0", timeout=5, coalesce=coalesce)

        async def steps(verbs: AsyncVerbs) -> None:
            leases: list[Lease] = []

            async def claim() -> None:
                leases.append(await lease_of(verbs, secrets.token_bytes(8)))

            async with anyio.create_task_group() as group:
                for _ in range(MANY):
                    group.start_soon(claim)
            _switch(primary, replica, endpoint)
            async with anyio.create_task_group() as group:
                for _ in range(MANY):
                    group.start_soon(claim)
            first, *others = leases
            await verbs.complete(Complete(first, b"response"))
            assert await verbs.claim(claim_of(first.record_id)) == Finished(b"response")
            assert set(await verbs.renew(Renew(others))) == {Renewal.OWNED}
            with replica.connect() as new:
                assert new.dbsize() == 2 * MANY + 1

        run(mode, backend, steps)
