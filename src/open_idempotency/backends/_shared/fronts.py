"""The verbs of ``Backend`` and ``AsyncBackend`` for backends whose sync and async fronts differ only in how they wait.

A backend describes each verb by an object of its own class, which holds statements, a generator of transactions, or
functions. The front gives that object and the command to the backend's executor and returns the response. Renewing,
scanning and purging are done in bounded parts, into which they are divided here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Free,
    Freed,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Withdraw,
)

C = TypeVar("C")
R = TypeVar("R")


class Verb(Generic[C, R]):
    """How a backend carries out one kind of command ``C``, with results of type ``R``. Each backend has a subclass."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Verbs:
    """All verbs of a backend.

    ``scan``: the ids of live records that come after the given one, in order, at most ``scanned_at_once``.
    ``headers``: the same records without responses and stages, at most ``headers_at_once``. ``purge``: deletes at most
    the given number of records and reservations, up to ``purged_at_once``, and returns how many it has deleted.
    ``renewed_at_once``: how many leases go into one call.
    """

    claim: Verb[Claim, ClaimResult]
    renew: Verb[Renew, Sequence[Renewal]]
    save_stage: Verb[SaveStage, StageSaved]
    complete: Verb[Complete, Completed]
    fail: Verb[Fail, None]
    release: Verb[Release, None]
    withdraw: Verb[Withdraw, None]
    get: Verb[Get, Record | None]
    delete: Verb[bytes, bool]
    free: Verb[Free, Freed]
    now: Verb[None, float]
    scan: Verb[bytes, Sequence[bytes]]
    headers: Verb[bytes, Sequence[Record]]
    purge: Verb[int, int]
    reserve: Verb[Reserve, ReserveResult]
    unreserve: Verb[Unreserve, None]
    renewed_at_once: int = 100
    scanned_at_once: int = 100
    headers_at_once: int = 500
    purged_at_once: int = 100

    def parts(self, c: Renew) -> list[Renew]:
        """The renewal in parts that each fit one call."""
        most = self.renewed_at_once
        return [Renew(c.leases[start : start + most]) for start in range(0, len(c.leases), most)]


class Executor(Protocol):
    """Carries out a command as its verb says. Raises ``BackendUnavailable`` and what the verb raises."""

    def __call__(self, verb: Verb[C, R], command: C, /) -> R:
        """Block until the response is there."""
        ...


class AsyncExecutor(Protocol):
    """``Executor``, awaited."""

    def __call__(self, verb: Verb[C, R], command: C, /) -> Awaitable[R]:
        """Await the response."""
        ...


_ID_BYTES = 32


def _before(prefix: bytes) -> bytes:
    """The last id of a record that comes before all ids with this beginning; empty where there is none."""
    first = int.from_bytes(prefix.ljust(_ID_BYTES, b"\0"), "big")
    return (first - 1).to_bytes(max(len(prefix), _ID_BYTES), "big") if first else b""


class SyncFront(Backend):
    """The sync front of a backend. ``execute`` is an ``Executor`` that takes this backend's class of verbs."""

    quotas = True
    frees = True

    def __init__(self, verbs: Verbs, execute: Callable[..., Any]) -> None:
        self._verbs = verbs
        self._execute: Executor = execute

    def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""
        return self._execute(self._verbs.claim, c)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; an unreadable record is LOST, so that the others are renewed. Many leases take
        several calls.
        """
        if 0 < len(c.leases) <= self._verbs.renewed_at_once:
            return self._execute(self._verbs.renew, c)
        renewals: list[Renewal] = []
        for part in self._verbs.parts(c):
            found: Sequence[Renewal] = self._execute(self._verbs.renew, part)
            renewals += found
        return renewals

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return self._execute(self._verbs.save_stage, c)

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return self._execute(self._verbs.complete, c)

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self._execute(self._verbs.fail, c)

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self._execute(self._verbs.release, c)

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self._execute(self._verbs.withdraw, c)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return self._execute(self._verbs.get, c)

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes an unreadable record as well."""
        return self._execute(self._verbs.delete, record_id)

    def free(self, c: Free, /) -> Freed:
        """See ``Backend.free``."""
        return self._execute(self._verbs.free, c)

    def now(self) -> float:
        """See ``Backend.now``."""
        return self._execute(self._verbs.now, None)

    def ids(self, prefix: bytes = b"") -> Iterator[bytes]:
        """See ``Backend.ids``; by the index of the ids."""
        after = _before(prefix)
        while True:
            found = self._execute(self._verbs.scan, after)
            matching = [record_id for record_id in found if record_id.startswith(prefix)]
            yield from matching
            if len(matching) < self._verbs.scanned_at_once:
                return
            after = found[-1]

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        after, verbs = b"", self._verbs
        while True:
            found = self._execute(verbs.scan, after)
            for record_id in found:
                record = self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < verbs.scanned_at_once:
                return
            after = found[-1]

    def scan_headers(self) -> Iterator[Record]:
        """See ``Backend.scan_headers``."""
        after, verbs = b"", self._verbs
        while True:
            found = self._execute(verbs.headers, after)
            yield from found
            if len(found) < verbs.headers_at_once:
                return
            after = found[-1].record_id

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        purged, verbs = 0, self._verbs
        while purged < limit:
            deleted = self._execute(verbs.purge, min(verbs.purged_at_once, limit - purged))
            purged += deleted
            if deleted < verbs.purged_at_once:
                break
        return purged

    def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``; writes only where the key does not count yet and the caller is below its quota."""
        return self._execute(self._verbs.reserve, c)

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self._execute(self._verbs.unreserve, c)


class AsyncFront(AsyncBackend):
    """The async front of a backend. ``execute`` is an ``AsyncExecutor`` that takes this backend's class of verbs."""

    quotas = True

    def __init__(self, verbs: Verbs, execute: Callable[..., Any]) -> None:
        self._verbs = verbs
        self._execute: AsyncExecutor = execute

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``AsyncBackend.claim``."""
        return await self._execute(self._verbs.claim, c)

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``SyncFront.renew``."""
        if 0 < len(c.leases) <= self._verbs.renewed_at_once:
            return await self._execute(self._verbs.renew, c)
        renewals: list[Renewal] = []
        for part in self._verbs.parts(c):
            found: Sequence[Renewal] = await self._execute(self._verbs.renew, part)
            renewals += found
        return renewals

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``AsyncBackend.save_stage``."""
        return await self._execute(self._verbs.save_stage, c)

    async def complete(self, c: Complete, /) -> Completed:
        """See ``AsyncBackend.complete``."""
        return await self._execute(self._verbs.complete, c)

    async def fail(self, c: Fail, /) -> None:
        """See ``AsyncBackend.fail``."""
        await self._execute(self._verbs.fail, c)

    async def release(self, c: Release, /) -> None:
        """See ``AsyncBackend.release``."""
        await self._execute(self._verbs.release, c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``AsyncBackend.withdraw``."""
        await self._execute(self._verbs.withdraw, c)

    async def get(self, c: Get, /) -> Record | None:
        """See ``AsyncBackend.get``."""
        return await self._execute(self._verbs.get, c)

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``SyncFront.delete``."""
        return await self._execute(self._verbs.delete, record_id)

    async def scan(self) -> AsyncIterator[Record]:
        """See ``AsyncBackend.scan``."""
        after, verbs = b"", self._verbs
        while True:
            found = await self._execute(verbs.scan, after)
            for record_id in found:
                record = await self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < verbs.scanned_at_once:
                return
            after = found[-1]

    async def purge(self, limit: int = 1000) -> int:
        """See ``AsyncBackend.purge``."""
        purged, verbs = 0, self._verbs
        while purged < limit:
            deleted = await self._execute(verbs.purge, min(verbs.purged_at_once, limit - purged))
            purged += deleted
            if deleted < verbs.purged_at_once:
                break
        return purged

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``SyncFront.reserve``."""
        return await self._execute(self._verbs.reserve, c)

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``AsyncBackend.unreserve``."""
        await self._execute(self._verbs.unreserve, c)
