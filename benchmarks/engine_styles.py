"""What it costs to write the order of operations once: three ways of carrying out the same small protocol.

Each way claims, records two stages and completes, on a backend that replies at once, so that what is timed is the
machinery alone. Run it as ``python benchmarks/engine_styles.py``; it needs only the package itself.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

from open_idempotency._core.commands import AsyncDriver, Claim, Command, Complete, Driver, SaveStage, Steps, ask
from open_idempotency._core.models import Completed, Lease, Leased, Stage, StageSaved
from open_idempotency.exceptions import BackendUnavailable

ROUNDS, REQUESTS = 15, 4_000
OWNER = RECORD = FINGERPRINT = bytes(32)
LEASE = Lease(RECORD, OWNER, 1, 1, FINGERPRINT, 30.0, 60.0)
STAGE = Stage("charge", "", b"{}")
LEASED, SAVED, COMPLETED = Leased(LEASE), StageSaved(b"{}"), Completed()


class Instant:
    """A sync backend that replies at once."""

    def claim(self, command: Claim) -> Leased:
        return LEASED

    def save_stage(self, command: SaveStage) -> StageSaved:
        return SAVED

    def complete(self, command: Complete) -> Completed:
        return COMPLETED


class AsyncInstant:
    """The same, async."""

    async def claim(self, command: Claim) -> Leased:
        return LEASED

    async def save_stage(self, command: SaveStage) -> StageSaved:
        return SAVED

    async def complete(self, command: Complete) -> Completed:
        return COMPLETED


def new_claim() -> Claim:
    return Claim(RECORD, FINGERPRINT, OWNER, 30.0, 60.0)


def by_hand(backend: Instant) -> Completed:
    """Written out for sync; async is a second copy of it."""
    try:
        lease = backend.claim(new_claim()).lease
        backend.save_stage(SaveStage(lease, STAGE))
        backend.save_stage(SaveStage(lease, STAGE))
        return backend.complete(Complete(lease, b""))
    except BackendUnavailable:
        raise


async def by_hand_async(backend: AsyncInstant) -> Completed:
    """The second copy; driven without an event loop it is the loop-less coroutine as well."""
    try:
        lease = (await backend.claim(new_claim())).lease
        await backend.save_stage(SaveStage(lease, STAGE))
        await backend.save_stage(SaveStage(lease, STAGE))
        return await backend.complete(Complete(lease, b""))
    except BackendUnavailable:
        raise


def steps() -> Steps[Completed]:
    """Written once, as this package does."""
    try:
        leased = yield from ask(new_claim())
        assert isinstance(leased, Leased)
        yield from ask(SaveStage(leased.lease, STAGE))
        yield from ask(SaveStage(leased.lease, STAGE))
        return (yield from ask(Complete(leased.lease, b"")))
    except BackendUnavailable:
        raise


def without_loop(coroutine: Coroutine[Any, Any, Completed]) -> Completed:
    """Run a coroutine that never suspends: an async protocol for sync callers."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: Completed = stop.value
        return result
    raise RuntimeError("it suspended")


def time_blocking(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(REQUESTS):
        call()
    return (time.perf_counter() - start) / REQUESTS * 1e6


async def time_awaited(call: Callable[[], Coroutine[Any, Any, object]]) -> float:
    start = time.perf_counter()
    for _ in range(REQUESTS):
        await call()
    return (time.perf_counter() - start) / REQUESTS * 1e6


def main() -> None:
    """Interleave the ways, and print the median of each in microseconds a request."""
    backend, aio = Instant(), AsyncInstant()
    handlers: dict[type[Command[Any]], Callable[[Any], Any]] = {
        Claim: backend.claim,
        SaveStage: backend.save_stage,
        Complete: backend.complete,
    }
    awaited: dict[type[Command[Any]], Callable[[Any], Any]] = {
        Claim: aio.claim,
        SaveStage: aio.save_stage,
        Complete: aio.complete,
    }
    ways: dict[str, Callable[[], float]] = {
        "blocking, by hand": lambda: time_blocking(lambda: by_hand(backend)),
        "blocking, loop-less coroutine": lambda: time_blocking(lambda: without_loop(by_hand_async(aio))),
        "blocking, generator": lambda: time_blocking(lambda: Driver(handlers).run(steps())),
        "awaited, by hand": lambda: asyncio.run(time_awaited(lambda: by_hand_async(aio))),
        "awaited, generator": lambda: asyncio.run(time_awaited(lambda: AsyncDriver(awaited).run(steps()))),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(way())
    for name, taken in times.items():
        print(f"{name:32} {statistics.median(taken):6.2f} us  ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main()
