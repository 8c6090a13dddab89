"""The async front of any sync backend: each verb is awaited in a thread of its own.

Use it for a client library that blocks, as Django's database connections do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from open_idempotency._runtime.loops import in_thread
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
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Withdraw,
)

__all__ = ["ThreadedBackend"]

_END = object()


class ThreadedBackend(AsyncBackend):
    """``backend``'s verbs, awaited through a thread; works on asyncio and on trio.

    A cancelled call is not abandoned: the thread ends its one bounded call first.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.call_timeout = backend.call_timeout
        self.quotas = backend.quotas

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._backend!r})"

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""
        return await in_thread(self._backend.claim, c)

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        return await in_thread(self._backend.renew, c)

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return await in_thread(self._backend.save_stage, c)

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return await in_thread(self._backend.complete, c)

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        await in_thread(self._backend.fail, c)

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        await in_thread(self._backend.release, c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        await in_thread(self._backend.withdraw, c)

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return await in_thread(self._backend.get, c)

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""
        return await in_thread(self._backend.delete, record_id)

    async def scan(self) -> AsyncIterator[Record]:
        """See ``Backend.scan``."""
        records = self._backend.scan()
        while isinstance(record := await in_thread(next, records, _END), Record):
            yield record

    async def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        return await in_thread(self._backend.purge, limit)

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``."""
        return await in_thread(self._backend.reserve, c)

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        await in_thread(self._backend.unreserve, c)

    def to_sync(self) -> Backend:
        """The backend that does the work."""
        return self._backend

    async def close(self) -> None:
        """See ``Backend.close``."""
        await in_thread(self._backend.close)
