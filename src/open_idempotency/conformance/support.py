"""What the contract's tests share: a clock that is moved by hand, one shape for both colours, and commands."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimAnswer,
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
    ReserveAnswer,
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
    """Seconds that pass only when ``advance`` is called. ``fails_with``: raised in place of the time, where given."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.fails_with: Exception | None = None

    def __call__(self) -> float:
        """The time in seconds."""
        if self.fails_with is not None:
            raise self.fails_with
        return self.now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.now += seconds


class AsyncVerbs(AsyncBackend):
    """A backend of either colour, awaited, so that each test is written once. Blocking calls are made in place."""

    def __init__(self, backend: Backend | AsyncBackend) -> None:
        self.backend = backend
        self.call_timeout = backend.call_timeout
        self.quotas = backend.quotas

    async def call(self, verb: str, *arguments: Any) -> Any:
        """What the backend's own verb answers."""
        answer = getattr(self.backend, verb)(*arguments)
        return await answer if isinstance(self.backend, AsyncBackend) else answer

    async def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        answer: ClaimAnswer = await self.call("claim", c)
        return answer

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        answer: Sequence[Renewal] = await self.call("renew", c)
        return answer

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        answer: StageSaved = await self.call("save_stage", c)
        return answer

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        answer: Completed = await self.call("complete", c)
        return answer

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        await self.call("fail", c)

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        await self.call("release", c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        await self.call("withdraw", c)

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        answer: Record | None = await self.call("get", c)
        return answer

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""
        answer: bool = await self.call("delete", record_id)
        return answer

    async def scan(self) -> AsyncIterator[Record]:
        """See ``Backend.scan``."""
        if isinstance(self.backend, AsyncBackend):
            async for record in self.backend.scan():
                yield record
        else:
            for record in self.backend.scan():
                yield record

    async def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        answer: int = await self.call("purge", limit)
        return answer

    async def health(self) -> Health:
        """See ``Backend.health``."""
        answer: Health = await self.call("health")
        return answer

    async def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``."""
        answer: ReserveAnswer = await self.call("reserve", c)
        return answer

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        await self.call("unreserve", c)

    async def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``; a blocking one waits in a thread, so that others can end what it waits for."""
        if isinstance(self.backend, AsyncBackend):
            await self.backend.wait(c)
        else:
            await anyio.to_thread.run_sync(self.backend.wait, c)

    def to_sync(self) -> Backend:
        """The blocking colour."""
        return self.backend if isinstance(self.backend, Backend) else self.backend.to_sync()

    async def close(self) -> None:
        """See ``Backend.close``."""
        await self.call("close")

    async def claim_at_once(self, claims: Sequence[Claim]) -> list[ClaimAnswer]:
        """All the claims at the same moment: in tasks, or in threads for a blocking backend."""
        return await self.at_once("claim", claims)

    async def at_once(self, verb: str, commands: Sequence[Any]) -> list[Any]:
        """The same with any verb."""
        if isinstance(self.backend, Backend):
            return _in_threads(getattr(self.backend, verb), commands)
        answers: list[Any] = []

        async def one(command: Any) -> None:
            answers.append(await self.call(verb, command))

        async with anyio.create_task_group() as group:
            for command in commands:
                group.start_soon(one, command)
        return answers


def _in_threads(verb: Callable[[Any], Any], commands: Sequence[Any]) -> list[Any]:
    together = threading.Barrier(len(commands), timeout=30)

    def one(command: Any) -> Any:
        together.wait()
        return verb(command)

    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(one, commands, timeout=60))


def claim_of(record_id: bytes, **fields: Any) -> Claim:
    """A claim by a new owner, with some fields of its own."""
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
    """The answer to a claim that must succeed."""
    answer = await verbs.claim(c)
    assert isinstance(answer, Leased), answer
    return answer


async def lease_of(verbs: AsyncVerbs, record_id: bytes, **fields: Any) -> Lease:
    """A new owner's lease."""
    return (await leased(verbs, claim_of(record_id, **fields))).lease


def stage_of(name: str, key: str = "", frame: bytes | None = None) -> Stage:
    """A stage with some frame."""
    return Stage(name, key, f"frame of {name!a}".encode() if frame is None else frame)


async def existing(verbs: AsyncVerbs, record_id: bytes) -> Record:
    """The record, which must be there."""
    record = await verbs.get(Get(record_id))
    assert record is not None
    return record
