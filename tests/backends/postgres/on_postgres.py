"""Commands that share one batch on PostgreSQL: for the contract, the model, and the tests of batches."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from open_idempotency.backend import Claim, Lease, Leased, Release
from open_idempotency.backends.postgres import AsyncPostgresBackend, PostgresBackend, executors
from open_idempotency.backends.postgres.executors import APART
from open_idempotency.backends.postgres.verbs import RELEASE, Verb
from tests.postgres_server import PostgresServer

#: seconds; longer than anything takes on a busy machine
PATIENCE = 60.0


def claim_of(record_id: bytes | None = None, **fields: Any) -> Claim:
    """A claim of a new record."""
    given = {"fingerprint": b"fingerprint", "owner": secrets.token_bytes(16), "lease": 30.0, "ttl": 600.0, **fields}
    return Claim(record_id or secrets.token_bytes(32), **given)


def of_nobody() -> Release:
    """A command that finds and changes nothing, and is repeated alone."""
    return Release(Lease(secrets.token_bytes(32), bytes(16), 1, 1, b"", 30.0, 600.0))


def leased(backend: PostgresBackend, claim: Claim | None = None) -> Lease:
    """The lease of a successful claim."""
    result = backend.claim(claim or claim_of())
    assert isinstance(result, Leased), result
    return result.lease


def emptied(server: PostgresServer) -> str:
    """The server's URL, with all records deleted."""
    with server.connect() as connection:
        connection.execute("DELETE FROM open_idempotency.records")
        connection.execute("DELETE FROM open_idempotency.reservations")
    return server.url()


class BatchingPostgres(PostgresBackend):
    """Sends every command in a batch with one that finds nothing; commands left out of the batch go alone."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._execute = self._in_a_batch

    def _in_a_batch(self, verb: Verb[Any, Any], c: Any) -> Any:
        row = APART
        if verb.hurried is not None:
            row = self._executor._of_process.get()._carry_out([(verb, c), (RELEASE, of_nobody())])[0]
        return self._executor.execute(verb, c) if row is APART else verb.response(c, (row,))


async def together(backend: AsyncPostgresBackend, commands: Sequence[tuple[str, Any]]) -> list[Any]:
    """The results or errors of ``(verb, command)`` in one batch, in order.

    The tasks begin in order before any of them gets a result, so it is known which of them go alone.
    """
    before = [("release", of_nobody()) for _ in range(executors.ALONE_ON_LOOP + 1)]
    calls = [getattr(backend, verb)(command) for verb, command in [*before, *commands]]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
    return results[len(before) :]


def at_once(backend: PostgresBackend, commands: Sequence[tuple[str, Any]]) -> list[Any]:
    """``together``, on a new event loop."""

    async def ask() -> list[Any]:
        awaited = backend.to_async()
        try:
            return await together(awaited, commands)
        finally:
            await awaited.close()

    return asyncio.run(ask())
