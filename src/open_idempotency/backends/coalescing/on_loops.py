"""Coalescing for the tasks of one asyncio loop.

The lead is one object, with a call that found nothing on its way or with the one task that carries out batches. It
knows whether its owner is still there. So a lead that was lost, as to a signal's handler that raised or for want of
memory, is free for the next that looks; and while any wait, somebody looks every so often.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from open_idempotency.backends.coalescing.waiting import PATIENCE, Limits, Queue, interrupted, shared, too_late
from open_idempotency.exceptions import BackendUnavailable

Q = TypeVar("Q")
R = TypeVar("R")


class _Asked(Generic[Q, R]):
    """A question that waits, and the future of its answer. ``looks``: how often it was found on its way."""

    __slots__ = ("answer", "looks", "question", "size", "until")
    count = 1

    def __init__(self, question: Q, size: int, until: float, answer: asyncio.Future[R]) -> None:
        self.question = question
        self.size = size
        self.until = until
        self.answer = answer
        self.looks = 0


class _Lead:
    """Is with one owner: whoever holds ``held``, as a call does as long as it has the lead, or ``task``."""

    __slots__ = ("held", "task")

    def __init__(self) -> None:
        self.held = threading.Lock()
        self.task: asyncio.Task[Any] | None = None

    def is_owned(self) -> bool:
        """Whether its owner is still there."""
        return self.held.locked() or (self.task is not None and not self.task.done())


class LoopCoalescer(Generic[Q, R]):
    """``carry_out`` gets the questions of a batch, and answers each in its place: an exception there is raised to its
    asker alone, one that ``carry_out`` raises to every asker of the batch. It must be bounded in time.

    A question of an asker that was cancelled is not sent; one that is on its way ends without it. One for each loop.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        self._queue: Queue[_Asked[Q, R]] = Queue(limits)
        #: the batch on its way; the one question that found nothing on its way has no place in it
        self._batch: list[_Asked[Q, R]] = []
        #: replaced by its owner, and by anybody where it has none
        self._lead = _Lead()
        self._on_its_way = False
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a question would not go at once."""
        return self._lead.is_owned()

    @property
    def on_its_way(self) -> bool:
        """Whether a batch is; between two of them a question goes with the second, without waiting."""
        return self._on_its_way and self._lead.is_owned()

    def tell(self, answers: Sequence[R | Exception | None]) -> None:
        """Answer those of the batch on its way that have an answer before its end; None is none."""
        for asked, answer in zip(self._batch, answers, strict=True):
            if answer is not None:
                _settle(asked, answer)

    async def ask(self, question: Q, size: int = 0) -> R:
        """The answer to ``question``, which is of ``size`` bytes. Raises ``BackendUnavailable`` where it waited too
        long, or too many wait; else what ``carry_out`` answers or raises.
        """
        if self._lead.is_owned():
            return await self._with_others(question, size)
        lead = _Lead()  # a new one, so that a lock that was left held could only be nobody's
        with lead.held:
            try:
                self._lead = lead
                self._on_its_way = True
                (answer,) = await self._carry_out((question,))
            finally:
                self._on_its_way = False
                if self._queue:
                    self._hand_over()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _with_others(self, question: Q, size: int) -> R:
        loop = asyncio.get_running_loop()
        asked: _Asked[Q, R] = _Asked(question, size, time.monotonic() + self._limits.seconds, loop.create_future())
        if self._next_look is None:
            self._look_later(loop)
        self._queue.add(asked)
        try:
            return await asked.answer
        except BaseException:
            if asked.answer.cancelled() or not asked.answer.done():  # else it has left the queue
                self._queue.remove(asked)
            raise

    def _hand_over(self) -> None:
        lead = _Lead()
        with lead.held:
            self._lead = lead
            # A context of its own: the batches are not the business of the request that happened to be before them.
            create_task = asyncio.get_running_loop().create_task
            lead.task = contextvars.Context().run(create_task, self._work(lead))
            lead.task.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        # Cancelled before its first step it has done nothing, and nobody would ever take its place.
        if self._lead.task is worker and (self._queue or self._batch):
            self._refuse()

    def _refuse_overdue(self, now: float) -> None:
        # They stay in the queue until the next batch is taken out of it.
        for asked in self._queue.overdue(now):
            _settle(asked, too_late(self._limits))

    def _refuse(self) -> None:
        """The loop is ending, and cancels every task; what cleans up meanwhile may ask again."""
        refused = self._batch
        while self._queue:
            self._queue.take(refused, refused, math.inf)
        for asked in refused:
            _settle(asked, BackendUnavailable("the batch was cancelled"))
        self._batch = []

    async def _work(self, lead: _Lead) -> None:
        if self._lead is not lead:  # it was lost right before, and somebody else has it
            return
        lead.task = asyncio.current_task()
        try:
            while self._queue:
                now = time.monotonic()
                self._refuse_overdue(now)
                batch = self._batch = []
                self._queue.take(batch, [], now)
                if batch:
                    await self._answer(batch)
                # Those that were answered may ask their next question, which then goes into one batch too.
                await asyncio.sleep(0)
        except BaseException:
            self._refuse()
            raise

    async def _answer(self, batch: list[_Asked[Q, R]]) -> None:
        answers: Sequence[R | Exception]
        self._on_its_way = True
        try:
            answers = await self._carry_out([asked.question for asked in batch])
        except Exception as error:
            # What is no error of the backend's is raised where it is one question's own.
            answers = [error] if len(batch) == 1 else [shared(error) for _ in batch]
        finally:
            self._on_its_way = False
        for asked, answer in zip(batch, answers, strict=True):
            _settle(asked, answer)
        self._batch = []

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_look = loop.call_later(self._limits.seconds, self._look)

    def _look(self) -> None:
        """While any wait: nobody does for ever, whatever became of those that answer them."""
        self._next_look = None
        try:
            for asked in self._batch:
                asked.looks += 1
                # A number, not a time, since a pause of the whole process makes one look useless.
                if asked.looks > 1 + PATIENCE:
                    _settle(asked, BackendUnavailable("no answer in time"))
            self._refuse_overdue(time.monotonic())
            if not self._lead.is_owned():
                for asked in self._batch:
                    _settle(asked, interrupted())
                self._batch = []
                if self._queue:
                    self._hand_over()
        finally:
            if self._queue or self._batch:
                self._look_later(asyncio.get_running_loop())


def _settle(asked: _Asked[Any, Any], answer: Any) -> None:
    if asked.answer.done():
        return
    if isinstance(answer, Exception):
        asked.answer.set_exception(answer)
    else:
        asked.answer.set_result(answer)
