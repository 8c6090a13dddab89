"""Named points at which a request waits, so that a test can kill or stop its process there.

The library runs unchanged: some of the points are in the handler, the others in a backend that delegates every verb to
a real one. A request names one point in its ``X-Stop`` header; a request without it does not stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import ContextVar

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    SaveStage,
    StageSaved,
    Wait,
    Withdraw,
)
from tests.wire.journal import PATIENCE, Journal

#: begins the line with the record id of a stopped request
NAMES_RECORD = "record "
_STEP = 0.005


class Stop:
    """The point at which one request waits, once: a repeated call, as after a cancellation, passes."""

    def __init__(self, journal: Journal, point: str) -> None:
        self._journal = journal
        self._point = point
        self._taken = False

    def take(self, point: str) -> bool:
        """Whether the request stops here."""
        here = point == self._point and not self._taken
        self._taken = self._taken or here
        return here

    def name(self, record_id: bytes) -> None:
        """Write which record the request has."""
        self._journal.write(f"{NAMES_RECORD}{record_id.hex()}")

    def wait(self, timeout: float) -> bool:
        """Write that the request is at the point, and wait for the gate; whether it opened in time."""
        self._journal.write(f"at {self._point}")
        return self._journal.gate().wait(timeout)

    async def await_gate(self) -> None:
        """The same, async and cancellable."""
        self._journal.write(f"at {self._point}")
        deadline = time.monotonic() + PATIENCE
        while not self._journal.gate().wait(0):
            if time.monotonic() > deadline:
                raise TimeoutError("the test did not open the gate")
            await asyncio.sleep(_STEP)


#: the stop of the running request
stopping: ContextVar[Stop | None] = ContextVar("stopping", default=None)


def stop_at(point: str) -> Stop | None:
    """The stop of the running request, if it is at this point."""
    stop = stopping.get()
    return stop if stop is not None and stop.take(point) else None


def _name(record_id: bytes) -> None:
    stop = stopping.get()
    if stop is not None:
        stop.name(record_id)


def _pass(point: str) -> None:
    stop = stop_at(point)
    if stop is not None and not stop.wait(PATIENCE):
        raise TimeoutError("the test did not open the gate")


async def _pass_async(point: str) -> None:
    stop = stop_at(point)
    if stop is not None:
        await stop.await_gate()


class StoppingBackend(Backend):
    """Delegates to another backend; requests may stop before and after their claim and their completion."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.call_timeout = inner.call_timeout
        self._async = AsyncStoppingBackend(inner.to_async(), self)

    def claim(self, c: Claim, /) -> ClaimResult:
        _name(c.record_id)
        _pass("before-claim")
        response = self._inner.claim(c)
        _pass("after-claim")
        return response

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        return self._inner.renew(c)

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        return self._inner.save_stage(c)

    def complete(self, c: Complete, /) -> Completed:
        _pass("before-completion")
        done = self._inner.complete(c)
        _pass("before-response")
        _pass("before-end")
        return done

    def fail(self, c: Fail, /) -> None:
        self._inner.fail(c)

    def release(self, c: Release, /) -> None:
        self._inner.release(c)

    def withdraw(self, c: Withdraw, /) -> None:
        self._inner.withdraw(c)

    def get(self, c: Get, /) -> Record | None:
        return self._inner.get(c)

    def delete(self, record_id: bytes, /) -> bool:
        return self._inner.delete(record_id)

    def scan(self) -> Iterator[Record]:
        return self._inner.scan()

    def purge(self, limit: int = 1000) -> int:
        return self._inner.purge(limit)

    def wait(self, c: Wait, /) -> None:
        self._inner.wait(c)

    def to_async(self) -> AsyncBackend:
        return self._async

    def close(self) -> None:
        self._inner.close()


class AsyncStoppingBackend(AsyncBackend):
    """The async ``StoppingBackend``."""

    def __init__(self, inner: AsyncBackend, blocking: StoppingBackend) -> None:
        self._inner = inner
        self._blocking = blocking
        self.call_timeout = inner.call_timeout

    async def claim(self, c: Claim, /) -> ClaimResult:
        _name(c.record_id)
        await _pass_async("before-claim")
        response = await self._inner.claim(c)
        await _pass_async("after-claim")
        return response

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        return await self._inner.renew(c)

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        return await self._inner.save_stage(c)

    async def complete(self, c: Complete, /) -> Completed:
        await _pass_async("before-completion")
        done = await self._inner.complete(c)
        await _pass_async("before-response")
        await _pass_async("before-end")
        return done

    async def fail(self, c: Fail, /) -> None:
        await self._inner.fail(c)

    async def release(self, c: Release, /) -> None:
        await self._inner.release(c)

    async def withdraw(self, c: Withdraw, /) -> None:
        await self._inner.withdraw(c)

    async def get(self, c: Get, /) -> Record | None:
        return await self._inner.get(c)

    async def delete(self, record_id: bytes, /) -> bool:
        return await self._inner.delete(record_id)

    def scan(self) -> AsyncIterator[Record]:
        return self._inner.scan()

    async def purge(self, limit: int = 1000) -> int:
        return await self._inner.purge(limit)

    async def wait(self, c: Wait, /) -> None:
        await self._inner.wait(c)

    def to_sync(self) -> Backend:
        return self._blocking

    async def close(self) -> None:
        await self._inner.close()
