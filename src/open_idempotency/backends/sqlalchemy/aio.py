"""The asynchronous colour of the SQLAlchemy backend: the same steps, awaited.

Where the driver is asynchronous and the loop is asyncio's, on engines of that loop; else in a thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from open_idempotency._perform.loops import current_library, in_thread
from open_idempotency.backend import (
    AsyncBackend,
    Claim,
    ClaimAnswer,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveAnswer,
    SaveStage,
    StageSaved,
    Unreserve,
    Withdraw,
)
from open_idempotency.backends.sqlalchemy import quotas, verbs

if TYPE_CHECKING:
    from open_idempotency.backends.sqlalchemy.backend import SqlalchemyBackend

T = TypeVar("T")


class AsyncSqlalchemyBackend(AsyncBackend):
    """The asynchronous colour, on asyncio and on trio; takes the same arguments as ``SqlalchemyBackend``. Since 0.1."""

    quotas = True

    def __init__(
        self,
        source: str | Engine | AsyncEngine = "",
        *,
        over: SqlalchemyBackend | None = None,
        **options: Any,
    ) -> None:
        if over is None:
            from open_idempotency.backends.sqlalchemy.backend import SqlalchemyBackend

            over = SqlalchemyBackend(source, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other colour
        self._sync = over
        self._engines = over.engines
        self.call_timeout = self._sync.call_timeout

    def __repr__(self) -> str:
        return f"AsyncSqlalchemyBackend({self._sync.options.where!r})"

    @property
    def _awaitable(self) -> bool:
        return self._sync.options.awaitable and current_library() == "asyncio"

    async def _do(self, steps: verbs.Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                found = await (self._engines.run(step) if self._awaitable else in_thread(self._sync.run, step))
                step = steps.send(found)
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    async def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return await self._do(verbs.claim(c))

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``SqlalchemyBackend.renew``."""
        return await self._do(verbs.renew(c))

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return await self._do(verbs.once("write", verbs.save_stage, c))

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return await self._do(verbs.once("write", verbs.complete, c))

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        await self._do(verbs.once("write", verbs.fail, c))

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        await self._do(verbs.once("write", verbs.release, c))

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        await self._do(verbs.once("write", verbs.withdraw, c))

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return await self._do(verbs.once("read", verbs.get, c))

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``SqlalchemyBackend.delete``."""
        return await self._do(verbs.once("write", verbs.delete, record_id))

    async def scan(self) -> AsyncIterator[Record]:
        """See ``Backend.scan``."""
        after = b""
        while found := await self._do(verbs.once("read", verbs.scan, after)):
            for record_id in found:
                record = await self.get(Get(record_id))
                if record is not None:
                    yield record
            after = found[-1]

    async def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        return await self._do(verbs.purge(limit))

    async def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``SqlalchemyBackend.reserve``."""
        return await self._do(quotas.reserve(c))

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        await self._do(verbs.once("write", quotas.unreserve, c))

    def to_sync(self) -> SqlalchemyBackend:
        """The blocking colour over the same records."""
        return self._sync

    async def close(self) -> None:
        """Close the running loop's connections, and the blocking colour's."""
        if current_library() == "asyncio":
            await self._engines.close()
        await in_thread(self._sync.close)
