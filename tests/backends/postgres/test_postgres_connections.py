"""The connections of the PostgreSQL backend: their number, their order, and when they are closed."""

from __future__ import annotations

import asyncio
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from open_idempotency.backend import (
    Get,
)
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.postgres.connections import Tries
from open_idempotency.exceptions import BackendUnavailable
from tests.backends.impatient import retried
from tests.backends.postgres.test_postgres_server import SOON, claim_of, leased
from tests.postgres_server import PostgresServer


def of_this_name(server: PostgresServer, name: str) -> int:
    """The number of connections with this name on the server."""
    with server.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (name,)
        ).fetchone()
        assert row is not None
        return int(row[0])


def test_connections_of_a_loop_that_ended_are_closed(postgres18: PostgresServer) -> None:
    """B-11: one backend is used on several loops in turn, and none of them closes it."""
    name = secrets.token_hex(8)
    backend = PostgresBackend(f"{postgres18.url()}?application_name={name}", timeout=10).to_async()

    async def claim_three() -> None:
        await asyncio.gather(*(backend.claim(claim_of()) for _ in range(3)))

    for _ in range(4):
        asyncio.run(claim_three())
    deadline = time.monotonic() + SOON
    while of_this_name(postgres18, name) > 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 1 <= of_this_name(postgres18, name) <= 3
    asyncio.run(backend.close())


def test_more_calls_than_connections_take_turns(postgres18: PostgresServer) -> None:
    """B-11: the limit of connections holds, sync and async."""
    name = secrets.token_hex(8)
    backend = PostgresBackend(f"{postgres18.url()}?application_name={name}&max_connections=2&coalesce=no", timeout=20)
    lease = leased(backend, claim_of())

    async def on_a_loop() -> None:
        await asyncio.gather(*(backend.to_async().get(Get(lease.record_id)) for _ in range(20)))
        assert of_this_name(postgres18, name) <= 4
        await backend.to_async().close()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: backend.get(Get(lease.record_id)), range(40)))
    assert all(found)
    assert of_this_name(postgres18, name) <= 2
    asyncio.run(on_a_loop())


def test_that_no_connection_was_free_in_time_is_said(postgres18: PostgresServer) -> None:
    """B-10, I11: sync and async; the only connection is in use."""
    backend = PostgresBackend(f"{postgres18.url()}?max_connections=1", timeout=0.3)
    command = Get(secrets.token_bytes(32))

    async def on_a_loop() -> None:
        connections = backend.to_async()._executor.of_loop().connections
        held = await connections._take(Tries(PostgresBackend(postgres18.url(), timeout=20).options))
        with pytest.raises(BackendUnavailable, match="no connection was free"):
            await backend.to_async().get(command)
        connections._give(held)
        assert await backend.to_async().get(command) is None
        await backend.to_async().close()

    connections = backend._executor._of_process.get().connections
    held = connections._take(Tries(PostgresBackend(postgres18.url(), timeout=20).options))
    with pytest.raises(BackendUnavailable, match="no connection was free"):
        backend.get(command)
    connections._give(held)
    assert retried(lambda: backend.get(command)) is None
    asyncio.run(on_a_loop())
