"""The asynchronous colour of the SQLite backend.

On asyncio a batch of questions is one hop to a thread, so that a loop with many requests in flight does not pay for a
thread's wake-up with each of them; the batches of several loops, and of threads, meet in ``transactions``. On trio,
and where nothing is to be coalesced, each call has a thread for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from open_idempotency._perform.loops import current_library, in_thread
from open_idempotency._perform.processes import PerProcess
from open_idempotency.backend import (
    Claim,
    ClaimAnswer,
    Complete,
    Completed,
    Fail,
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
from open_idempotency.backends.coalescing import Limits, LoopCoalescer
from open_idempotency.backends.hops import hop
from open_idempotency.backends.sqlite import verbs
from open_idempotency.backends.sqlite.transactions import Question, Transactions
from open_idempotency.backends.threaded import ThreadedBackend

if TYPE_CHECKING:
    from open_idempotency.backends.sqlite.backend import SqliteBackend

C = TypeVar("C")
R = TypeVar("R")


class _Lanes:
    """What one loop has on its way: one batch that may write, and beside it one that only reads.

    So a replay does not wait for the disk behind a new key, nor for another process that holds the write lock. One that
    comes between two batches goes with the next, and is told before that is written: the claims of new keys that come
    with it would else miss the batch while they are looked for, and each batch would be half as large.
    """

    def __init__(self, transactions: Transactions, loop: asyncio.AbstractEventLoop) -> None:
        self._transactions = transactions
        self._loop = loop
        limits = Limits(transactions.timeout)
        self._writing: LoopCoalescer[Question[Any, Any], Any] = LoopCoalescer(partial(hop, self._ask_all), limits)
        self._reading: LoopCoalescer[Question[Any, Any], Any] = LoopCoalescer(partial(hop, transactions.look), limits)

    def _ask_all(self, questions: Sequence[Question[Any, Any]]) -> Sequence[Any]:
        return self._transactions.ask_all(questions, self._tell)

    def _tell(self, answers: Sequence[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it the tasks are gone
            self._loop.call_soon_threadsafe(self._writing.tell, answers)

    async def ask(self, question: Question[C, R]) -> R:
        if question.verb.look is not None and self._writing.on_its_way:
            answer: R | None = await self._reading.ask(question)
            if answer is not None:
                return answer
        written: R = await self._writing.ask(question, question.size)
        return written


class AsyncSqliteBackend(ThreadedBackend):
    """The asynchronous colour; takes the same arguments as ``SqliteBackend``. Since 0.1."""

    def __init__(self, path: str, *, over: SqliteBackend | None = None, **options: Any) -> None:
        if over is None:
            from open_idempotency.backends.sqlite.backend import SqliteBackend

            over = SqliteBackend(path, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other colour
        super().__init__(over)
        self._transactions = over._transactions  # pyright: ignore[reportPrivateUsage]
        self._lanes: PerProcess[dict[asyncio.AbstractEventLoop, _Lanes]] = PerProcess(dict)

    async def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return await self._ask(verbs.CLAIM, c)

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        return await self._ask(verbs.RENEW, c) if c.leases else []

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return await self._ask(verbs.SAVE_STAGE, c, len(c.stage.frame))

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return await self._ask(verbs.COMPLETE, c, len(c.response))

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        await self._ask(verbs.FAIL, c, len(c.response or b""))

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        await self._ask(verbs.RELEASE, c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        await self._ask(verbs.WITHDRAW, c)

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""
        return await self._ask(verbs.DELETE, record_id)

    async def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``."""
        return await self._ask(verbs.RESERVE, c)

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        await self._ask(verbs.UNRESERVE, c)

    async def _ask(self, verb: verbs.Verb[C, R], command: C, size: int = 0) -> R:
        transactions = self._transactions
        if not transactions.coalesce or current_library() != "asyncio":
            return await in_thread(transactions.ask, verb, command, size)
        question = Question(verb, command, size, transactions.timeout)
        return await self._lanes_of(asyncio.get_running_loop()).ask(question)

    def _lanes_of(self, loop: asyncio.AbstractEventLoop) -> _Lanes:
        all_lanes = self._lanes.get()
        lanes = all_lanes.get(loop)
        if lanes is None:
            for other in list(all_lanes):
                if other.is_closed():
                    all_lanes.pop(other, None)
            lanes = all_lanes[loop] = _Lanes(self._transactions, loop)
        return lanes
