"""Which commands share a batch on PostgreSQL and which go alone, and what a batch leaves in the session."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from open_idempotency.backend import (
    Complete,
    Completed,
    Leased,
)
from open_idempotency.backends.postgres import PostgresBackend, executors
from tests.backends.postgres.on_postgres import PATIENCE, claim_of, leased, of_nobody, together
from tests.backends.postgres.test_postgres_batches import MANY, ids, transactions
from tests.postgres_server import PostgresServer


@pytest.fixture
def backend(postgres18: PostgresServer) -> Iterator[PostgresBackend]:
    """A backend on the shared server."""
    backend = PostgresBackend(postgres18.url(), timeout=30)
    yield backend
    backend.close()


def test_threads_share_a_transaction_too(postgres18: PostgresServer) -> None:
    """All but the first few, which go alone; a clock holds those until all threads have called."""
    go_on = threading.Event()

    def clock() -> float:
        if threading.current_thread().name.startswith("held"):
            assert go_on.wait(PATIENCE)
        return time.time()

    backend = PostgresBackend(postgres18.url(), timeout=30, clock=clock)
    mine = backend._executor._of_process.get()
    claims = [claim_of() for _ in range(MANY)]
    results: dict[int, Any] = {}

    def ask(number: int) -> None:
        results[number] = backend.claim(claims[number])

    def until(condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    held = [
        threading.Thread(target=backend.release, args=(of_nobody(),), name=f"held {n}")
        for n in range(executors.ALONE + 1)
    ]
    batch = [threading.Thread(target=ask, args=(number,)) for number in range(MANY)]
    for thread in held:
        thread.start()
    until(lambda: mine._batches.busy)
    for thread in batch:
        thread.start()
    until(lambda: mine._batches._queue._count == MANY)
    go_on.set()
    for thread in held + batch:
        thread.join(PATIENCE)
    backend.close()
    assert [type(results[number]) for number in range(MANY)] == [Leased] * MANY
    assert transactions(postgres18, ids(claims)) == 1


def test_the_first_few_wait_for_no_batch(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-10: a locked row delays the connection of its own command only."""
    held, fine = leased(backend), leased(backend)

    async def ask() -> Any:
        awaited = backend.to_async()
        waiting = asyncio.ensure_future(awaited.complete(Complete(held, b"response")))
        await asyncio.sleep(0)
        completed = await awaited.complete(Complete(fine, b"response"))
        assert not waiting.done()
        await asyncio.to_thread(locker.rollback)
        await waiting
        await awaited.close()
        return completed

    with psycopg.connect(postgres18.url()) as locker:
        locker.execute("SELECT 1 FROM open_idempotency.records WHERE record_id = %b FOR UPDATE", (held.record_id,))
        assert asyncio.run(asyncio.wait_for(ask(), PATIENCE)) == Completed()


def test_nothing_of_a_batch_stays_in_the_session(backend: PostgresBackend) -> None:
    """B-11a: neither its lock timeout nor its planner settings."""

    async def settings() -> list[Any]:
        awaited = backend.to_async()
        await together(awaited, [("claim", claim_of()) for _ in range(3)])
        pool = awaited._executor.of_loop().connections
        names = "lock_timeout", "enable_seqscan", "enable_hashjoin", "enable_mergejoin", "search_path"
        used = list(pool._idle._idle)
        found = [
            (await (await connection.execute(f"SHOW {name}")).fetchone())[0] for connection in used for name in names
        ]
        await awaited.close()
        return found

    found = asyncio.run(settings())
    assert found
    assert set(found) == {"0", "on", '"$user", public'}
