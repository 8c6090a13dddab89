"""An event loop that is blocked while calls are in flight: the server is well, so no call fails."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Complete, Leased
from open_idempotency.conformance.support import claim_of

TIMEOUT = 0.5
CALLS = 40


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
def test_calls_that_wait_while_the_loop_is_blocked_are_carried_out(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """B-27: a view blocks the loop for longer than the backend's timeout."""
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/records.db?"
    elif kind == "postgres":
        url = f"{request.getfixturevalue('postgres18').url()}?"
    else:
        url = f"{request.getfixturevalue('valkey_url')}?"
    backend = open_backend(f"{url}timeout={TIMEOUT}").to_async()

    async def request_of_a_client() -> None:
        result = await backend.claim(claim_of(secrets.token_bytes(32), owner=secrets.token_bytes(16)))
        assert isinstance(result, Leased)
        await backend.complete(Complete(result.lease, b"response"))

    async def test() -> None:
        await request_of_a_client()
        tasks = [asyncio.create_task(request_of_a_client()) for _ in range(CALLS)]
        await asyncio.sleep(0)
        time.sleep(1.5 * TIMEOUT)
        await asyncio.gather(*tasks)
        await backend.close()

    asyncio.run(test())
