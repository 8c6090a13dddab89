"""Shared by the tests of the Redis backend: servers for one test, and steps that run in every mode."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

from open_idempotency.backend import Backend, ClaimResult, Lease, Leased
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of
from open_idempotency.exceptions import BackendUnavailable
from tests.servers import Server

#: no test passes by waiting for so long
SOON = 60.0
Steps = Callable[[AsyncVerbs], Awaitable[None]]


@contextmanager
def server(*options: str, kind: str = "valkey") -> Iterator[Server]:
    """A server for this test alone, which may change its settings and users."""
    made = Server(kind, *options).start()
    try:
        yield made
    finally:
        made.stop()


def run(mode: str, backend: RedisBackend, steps: Steps) -> None:
    """Run steps in one mode, on a new event loop, within a bounded time."""

    async def main() -> None:
        verbs = AsyncVerbs(backend if mode == "sync" else backend.to_async())
        with anyio.fail_after(SOON):
            try:
                await steps(verbs)
            finally:
                await verbs.close()

    anyio.run(main, backend="asyncio" if mode == "sync" else mode)


def lease(backend: Backend, record_id: bytes) -> Lease:
    """The lease of a new owner."""
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased), result
    return result.lease


async def claimed_again(verbs: AsyncVerbs, record_id: bytes) -> ClaimResult:
    """The first successful claim after a fault; every call before has to be refused in time."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        started = time.monotonic()
        try:
            return await verbs.claim(claim_of(record_id))
        except BackendUnavailable:
            assert time.monotonic() - started < verbs.call_timeout
            await anyio.sleep(0.02)
    raise AssertionError("the backend did not come back")
