"""The asynchronous colour of the PostgreSQL backend: the same statements, parameters and replies, awaited.

The client library knows asyncio alone, so under trio each call is the blocking colour's, made in a thread.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from open_idempotency._perform.loops import current_library, in_thread, signal, sleep
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
    Wait,
    Withdraw,
)
from open_idempotency.backends.postgres import replies, statements
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.loop_asking import LoopAsking
from open_idempotency.backends.postgres.statements import RENEWED_AT_ONCE, SCANNED_AT_ONCE, Verb
from open_idempotency.exceptions import BackendUnavailable

if TYPE_CHECKING:
    from open_idempotency.backends.postgres.backend import PostgresBackend


class AsyncPostgresBackend(AsyncBackend):
    """The asynchronous colour, on asyncio and on trio; takes the same arguments as ``PostgresBackend``. Since 0.1."""

    quotas = True

    def __init__(self, url: str = "", *, over: PostgresBackend | None = None, **options: Any) -> None:
        if over is None:
            from open_idempotency.backends.postgres.backend import PostgresBackend

            over = PostgresBackend(url, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other colour
        self._sync = over
        self._options = over.options
        self._asking = LoopAsking(self._options)
        self.call_timeout = over.call_timeout

    def __repr__(self) -> str:
        return f"AsyncPostgresBackend({self._options.where!r})"

    async def rows(self, statement: Statement, *parameters: Any) -> list[Any]:
        """Run a statement whose first parameter is the time. Raises ``BackendUnavailable``."""
        if current_library() == "trio":
            return await in_thread(self._sync.rows, statement, *parameters)
        return await self._asking.rows(statement, *parameters)

    async def row(self, verb: Verb, c: Any) -> Row:
        """What the function of the verb answers; asked with what other tasks ask. Raises ``BackendUnavailable``."""
        if current_library() == "trio":
            return await in_thread(self._sync.row, verb, c)
        return await self._asking.row(verb, c)

    async def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return replies.claimed(c, (await self.row(statements.CLAIM, c)))

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``PostgresBackend.renew``."""
        answers: list[Renewal] = []
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = Renew(c.leases[start : start + RENEWED_AT_ONCE])
            answers += replies.renewed((await self.rows(statements.RENEW, *statements.renew(batch)))[0][0])
        return answers

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return replies.stage_saved(await self.row(statements.SAVE_STAGE, c))

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return replies.completed((await self.row(statements.COMPLETE, c))[0])

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        replies.code((await self.row(statements.FAIL, c))[0])

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        replies.code((await self.row(statements.RELEASE, c))[0])

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        await self.rows(statements.WITHDRAW, *statements.withdraw(c))

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        found = await self.rows(statements.GET, *statements.get(c))
        return replies.record(c.record_id, found[0] if found else None)

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``PostgresBackend.delete``."""
        return bool((await self.rows(statements.FORGET, record_id))[0][0])

    async def scan(self) -> AsyncIterator[Record]:
        """See ``Backend.scan``."""
        last = b""
        while True:
            found = await self.rows(statements.SCAN, last, SCANNED_AT_ONCE)
            for (record_id,) in found:
                record = await self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < SCANNED_AT_ONCE:
                return
            last = found[-1][0]

    async def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        return int((await self.rows(statements.PURGE, limit))[0][0])

    async def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``PostgresBackend.reserve``."""
        return replies.reserved((await self.rows(statements.RESERVE, *statements.reserve(c)))[0])

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        await self.rows(statements.UNRESERVE, *statements.unreserve(c))

    async def wait(self, c: Wait, /) -> None:
        """See ``PostgresBackend.wait``; the same thread listens for both colours, and wakes the task."""
        until, ended = time.monotonic() + c.seconds, signal()
        if not self._sync.listener.enter(c.record_id, ended):
            await sleep(min(c.pause, c.seconds))
            return
        try:
            if (await self.rows(statements.AWAIT, c.record_id))[0][0]:
                await ended.wait(max(0.0, until - time.monotonic()))
        except BackendUnavailable:
            await sleep(max(0.0, min(c.pause, until - time.monotonic())))
        finally:
            self._sync.listener.leave(c.record_id, ended)

    def to_sync(self) -> PostgresBackend:
        """The blocking colour over the same records."""
        return self._sync

    async def close(self) -> None:
        """Close the running loop's connections, and the blocking colour's."""
        if current_library() == "asyncio":
            self._asking.close()
        await in_thread(self._sync.close)
