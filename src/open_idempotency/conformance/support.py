"""Tools of the contract's tests: a manual clock, one async interface to sync and async backends, and commands."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Health,
    Lease,
    Leased,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    Stage,
    StageSaved,
    Unreserve,
    Wait,
    Withdraw,
)

LEASE = 30.0
TTL = 3600.0


class ManualClock:
    """A clock that moves only when ``advance`` is called. While ``fails_with`` is set, reading it raises that error."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.fails_with: Exception | None = None

    def __call__(self) -> float:
        """The time in seconds since 1970."""
        if self.fails_with is not None:
            raise self.fails_with
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by ``seconds``."""
        self.now += seconds


class AsyncVerbs(AsyncBackend):
    """An async interface to a sync or async backend, so that each test is written once.

    A sync backend is called directly and blocks the event loop, except in ``wait`` and ``at_once``.
    """

    def __init__(self, backend: Backend | AsyncBackend) -> None:
        self.backend = backend
        self.call_timeout = backend.call_timeout
        self.quotas = backend.quotas

    async def call(self, verb: str, *arguments: Any) -> Any:
        """Call a verb of the backend by its name, and return what it returns."""
        outcome = getattr(self.backend, verb)(*arguments)
        return await outcome if isinstance(self.backend, AsyncBackend) else outcome

    async def claim(self, c: Claim, /) -> ClaimResult:
        """Claim a record."""
        outcome: ClaimResult = await self.call("claim", c)
        return outcome

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Renew leases; one result for each, in order."""
        outcome: Sequence[Renewal] = await self.call("renew", c)
        return outcome

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """Add a stage to the owner's record."""
        outcome: StageSaved = await self.call("save_stage", c)
        return outcome

    async def complete(self, c: Complete, /) -> Completed:
        """End the attempt with a response that is replayed from now on."""
        outcome: Completed = await self.call("complete", c)
        return outcome

    async def fail(self, c: Fail, /) -> None:
        """End the attempt as failed."""
        await self.call("fail", c)

    async def release(self, c: Release, /) -> None:
        """End the attempt as if it had not been claimed; its stages stay."""
        await self.call("release", c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """Release a claim, and refuse any copy of it that arrives later."""
        await self.call("withdraw", c)

    async def get(self, c: Get, /) -> Record | None:
        """The record, or None if it is absent or expired."""
        outcome: Record | None = await self.call("get", c)
        return outcome

    async def delete(self, record_id: bytes, /) -> bool:
        """Delete a record. Returns whether there was one."""
        outcome: bool = await self.call("delete", record_id)
        return outcome

    async def scan(self) -> AsyncIterator[Record]:
        """All live records, in any order."""
        if isinstance(self.backend, AsyncBackend):
            async for record in self.backend.scan():
                yield record
        else:
            for record in self.backend.scan():
                yield record

    def scan_headers(self) -> Iterator[Record]:
        """All live records without responses and stages; only sync backends have this verb."""
        return self.to_sync().scan_headers()

    async def purge(self, limit: int = 1000) -> int:
        """Delete at most ``limit`` expired records and reservations. Returns how many were deleted."""
        outcome: int = await self.call("purge", limit)
        return outcome

    async def health(self) -> Health:
        """Whether the backend works, as it reports itself."""
        outcome: Health = await self.call("health")
        return outcome

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """Take a slot of the scope's quota for a key."""
        outcome: ReserveResult = await self.call("reserve", c)
        return outcome

    async def unreserve(self, c: Unreserve, /) -> None:
        """Free the slot of a key."""
        await self.call("unreserve", c)

    async def wait(self, c: Wait, /) -> None:
        """Wait until the attempt may have ended; a sync backend waits in a thread, so that other tasks can end it."""
        if isinstance(self.backend, AsyncBackend):
            await self.backend.wait(c)
        else:
            await anyio.to_thread.run_sync(self.backend.wait, c)

    def to_sync(self) -> Backend:
        """The sync form of the backend."""
        return self.backend if isinstance(self.backend, Backend) else self.backend.to_sync()

    async def close(self) -> None:
        """Close the backend."""
        await self.call("close")

    async def claim_at_once(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        """Send all claims at the same time: from tasks, or from threads if the backend is sync."""
        return await self.at_once("claim", claims)

    async def at_once(self, verb: str, commands: Sequence[Any]) -> list[Any]:
        """Send all commands to one verb at the same time: from tasks, or from threads if the backend is sync."""
        if isinstance(self.backend, Backend):
            return in_threads(getattr(self.backend, verb), commands)
        outcomes: list[Any] = []

        async def one(command: Any) -> None:
            outcomes.append(await self.call(verb, command))

        async with anyio.create_task_group() as group:
            for command in commands:
                group.start_soon(one, command)
        return outcomes


def in_threads(verb: Callable[[Any], Any], commands: Sequence[Any]) -> list[Any]:
    """The result of a function for each command, in order; all calls are made at the same time."""
    barrier = threading.Barrier(len(commands), timeout=30)

    def one(command: Any) -> Any:
        barrier.wait()
        return verb(command)

    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(one, commands, timeout=60))


def claim_of(record_id: bytes, **fields: Any) -> Claim:
    """A claim by a new owner; ``fields`` replace the defaults."""
    given: dict[str, Any] = {
        "record_id": record_id,
        "fingerprint": b"\x01 one request",
        "owner": os.urandom(16),
        "lease": LEASE,
        "ttl": TTL,
        **fields,
    }
    return Claim(**given)


async def leased(verbs: AsyncVerbs, c: Claim) -> Leased:
    """The outcome of a claim that has to get the lease."""
    outcome = await verbs.claim(c)
    assert isinstance(outcome, Leased), outcome
    return outcome


async def lease_of(verbs: AsyncVerbs, record_id: bytes, **fields: Any) -> Lease:
    """The lease of a new owner, whose claim has to succeed."""
    return (await leased(verbs, claim_of(record_id, **fields))).lease


def stage_of(name: str, key: str = "", frame: bytes | None = None) -> Stage:
    """A stage; without ``frame`` its value follows from its name."""
    return Stage(name, key, f"frame of {name!a}".encode() if frame is None else frame)


async def existing(verbs: AsyncVerbs, record_id: bytes) -> Record:
    """The record, which has to exist."""
    record = await verbs.get(Get(record_id))
    assert record is not None
    return record
