"""Coalescing for the tasks of one asyncio loop."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from open_idempotency.backends.coalescing.waiting import Limits, Queue, own, too_late
from open_idempotency.exceptions import BackendUnavailable

Q = TypeVar("Q")
R = TypeVar("R")


class _Asked(Generic[Q, R]):
    __slots__ = ("answer", "question", "size", "until")
    count = 1

    def __init__(self, question: Q, size: int, until: float, answer: asyncio.Future[R]) -> None:
        self.question = question
        self.size = size
        self.until = until
        self.answer = answer


class LoopCoalescer(Generic[Q, R]):
    """``carry_out`` gets the questions of a batch, and answers each in its place: an exception there is raised to its
    asker alone, one that ``carry_out`` raises to every asker of the batch. It must be bounded in time.

    A question of an asker that was cancelled is not sent; one that is on its way ends without it. One for each loop.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        self._queue: Queue[_Asked[Q, R]] = Queue(limits)
        self._busy = False
        #: the batch on its way; the one question that found nothing on its way has no place in it
        self._batch: list[_Asked[Q, R]] = []
        self._on_its_way = False
        self._worker: asyncio.Task[None] | None = None
        self._begun = False

    @property
    def busy(self) -> bool:
        """Whether a question would not go at once."""
        return self._busy

    @property
    def on_its_way(self) -> bool:
        """Whether a batch is; between two of them a question goes with the second, without waiting."""
        return self._on_its_way

    def tell(self, answers: Sequence[R | Exception | None]) -> None:
        """Answer those of the batch on its way that have an answer before its end; None is none."""
        for asked, answer in zip(self._batch, answers, strict=True):
            if answer is not None:
                _settle(asked, answer)

    async def ask(self, question: Q, size: int = 0) -> R:
        """The answer to ``question``, which is of ``size`` bytes. Raises ``BackendUnavailable`` where it waited too
        long, or too many wait; else what ``carry_out`` answers or raises.
        """
        if self._busy:
            asked: _Asked[Q, R] = _Asked(
                question, size, time.monotonic() + self._limits.seconds, asyncio.get_running_loop().create_future()
            )
            self._queue.add(asked)
            try:
                return await asked.answer
            except asyncio.CancelledError:
                self._queue.remove(asked)
                raise
        self._busy = self._on_its_way = True
        try:
            (answer,) = await self._carry_out((question,))
        finally:
            self._on_its_way = False
            self._hand_over()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _hand_over(self) -> None:
        if not self._queue:
            self._busy = False
            return
        self._begun = False
        # A context of its own: the batches are not the business of the request that happened to be before them.
        self._worker = contextvars.Context().run(asyncio.get_running_loop().create_task, self._work())
        self._worker.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        # Cancelled before its first step it has done nothing, and nobody would ever take its place.
        if worker is self._worker and not self._begun:
            self._refuse([])
            self._busy = False

    def _refuse(self, batch: list[_Asked[Q, R]]) -> None:
        """The loop is ending, and cancels every task; what cleans up meanwhile may ask again."""
        refused = [*batch]
        while self._queue:
            refused += [asked for group in self._queue.take() for asked in group]
        for asked in refused:
            _settle(asked, BackendUnavailable("the batch was cancelled"))

    async def _work(self) -> None:
        self._begun = True
        batch: list[_Asked[Q, R]] = []
        try:
            while self._queue:
                batch, overdue = self._queue.take()
                for asked in overdue:
                    _settle(asked, too_late(self._limits))
                if batch:
                    await self._answer(batch)
                # Those that were answered may ask their next question, which then goes into one batch too.
                await asyncio.sleep(0)
        except BaseException:
            self._refuse(batch)
            raise
        finally:
            self._busy = False

    async def _answer(self, batch: list[_Asked[Q, R]]) -> None:
        self._batch = batch
        self._on_its_way = True
        try:
            answers = await self._carry_out([asked.question for asked in batch])
        except Exception as error:
            answers = [own(error) for _ in batch]
        finally:
            self._on_its_way = False
            self._batch = []
        for asked, answer in zip(batch, answers, strict=True):
            _settle(asked, answer)


def _settle(asked: _Asked[Q, R], answer: R | Exception) -> None:
    if asked.answer.done():
        return
    if isinstance(answer, Exception):
        asked.answer.set_exception(answer)
    else:
        asked.answer.set_result(answer)
