"""Coalescing for the tasks of one asyncio loop.

The lead is one object. Its owner is a call that found nothing on its way, or the one task that carries out batches. The
lead knows whether its owner still exists. So a lead that was lost, as by a signal's handler that raised or for want of
memory, is free for the next call that looks; and while requests wait, a timer looks every so often.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from open_idempotency.backends._shared.coalescing.queue import PATIENCE, Limits, Queue, interrupted, shared, too_late
from open_idempotency.exceptions import BackendUnavailable

Q = TypeVar("Q")
R = TypeVar("R")


class _Waiting(Generic[Q, R]):
    """A request that waits, and the future of its response. ``looks``: how often it was found on its way."""

    __slots__ = ("looks", "request", "response", "size", "until")
    count = 1

    def __init__(self, request: Q, size: int, until: float, response: asyncio.Future[R]) -> None:
        self.request = request
        self.size = size
        self.until = until
        self.response = response
        self.looks = 0


@dataclass(slots=True, eq=False)
class _Lead:
    """Has one owner: the call that holds ``held``, which it does as long as it has the lead, or ``task``."""

    held: threading.Lock = field(default_factory=threading.Lock)
    task: asyncio.Task[Any] | None = None


class LoopCoalescer(Generic[Q, R]):
    """``carry_out`` gets the requests of a batch and returns their responses in the same order. An exception instead
    of a response is raised to that caller alone; one that ``carry_out`` raises, to every caller of the batch. It must
    be bounded in time.

    The request of a cancelled caller is not sent; if it is on its way, its response is dropped. Use one coalescer for
    each loop.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        self._queue: Queue[_Waiting[Q, R]] = Queue(limits)
        #: the batch on its way; the one request that found nothing on its way is not in it
        self._batch: list[_Waiting[Q, R]] = []
        #: replaced by its owner, or by any call where it has none
        self._lead = _Lead()
        self._on_its_way = False
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a request would have to wait: the owner of the lead still exists."""
        lead = self._lead
        return lead.held.locked() or (lead.task is not None and not lead.task.done())

    @property
    def on_its_way(self) -> bool:
        """Whether a batch is on its way. Between two batches a request goes with the second, without waiting."""
        return self._on_its_way and self.busy

    def report(self, responses: Sequence[R | Exception | None]) -> None:
        """Give early responses to requests of the batch that is on its way; None for those that have to wait."""
        for waiting, response in zip(self._batch, responses, strict=True):
            if response is not None:
                _settle(waiting, response)

    async def ask(self, request: Q, size: int = 0) -> R:
        """The response to ``request``, which has ``size`` bytes. Raises ``BackendUnavailable`` where it waited too
        long or too many requests wait; else returns or raises what ``carry_out`` does.
        """
        if self.busy:
            return await self._with_others(request, size)
        lead = _Lead()  # a new one, so that a lock which was left held belongs to nobody
        with lead.held:
            try:
                self._lead = lead
                self._on_its_way = True
                (response,) = await self._carry_out((request,))
            finally:
                self._on_its_way = False
                if self._queue.waiting:
                    self._hand_over()
        if isinstance(response, Exception):
            raise response
        return response

    async def _with_others(self, request: Q, size: int) -> R:
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Q, R] = _Waiting(request, size, time.monotonic() + self._limits.seconds, loop.create_future())
        if self._next_look is None:
            self._look_later(loop)
        self._queue.add(waiting)
        try:
            return await waiting.response
        except BaseException:
            if waiting.response.cancelled() or not waiting.response.done():  # else it has left the queue
                self._queue.remove(waiting)
            raise

    def _hand_over(self) -> None:
        lead = _Lead()
        with lead.held:
            self._lead = lead
            # A context of its own: the batches do not belong to the HTTP request that happened to come before them.
            create_task = asyncio.get_running_loop().create_task
            lead.task = contextvars.Context().run(create_task, self._work(lead))
            lead.task.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step has done nothing, and no other would replace it.
        if self._lead.task is worker and (self._queue.waiting or self._batch):
            self._refuse()

    def _refuse_overdue(self, now: float) -> None:
        # They stay in the queue until the next batch is taken from it.
        for waiting in self._queue.overdue(now):
            _settle(waiting, too_late(self._limits))

    def _refuse(self) -> None:
        """The loop is ending and cancels every task. Tasks that clean up meanwhile may make new requests."""
        refused = self._batch
        while self._queue.waiting:
            self._queue.take(refused, refused, math.inf)
        for waiting in refused:
            _settle(waiting, BackendUnavailable("the batch was cancelled"))
        self._batch = []

    async def _work(self, lead: _Lead) -> None:
        if self._lead is not lead:  # it was lost right before, and has another owner
            return
        lead.task = asyncio.current_task()
        try:
            while self._queue.waiting:
                now = time.monotonic()
                self._refuse_overdue(now)
                batch = self._batch = []
                self._queue.take(batch, [], now)
                if batch:
                    await self._respond(batch)
                # Callers that got a response may make their next requests, which then share one batch too.
                await asyncio.sleep(0)
        except BaseException:
            self._refuse()
            raise

    async def _respond(self, batch: list[_Waiting[Q, R]]) -> None:
        responses: Sequence[R | Exception]
        self._on_its_way = True
        try:
            responses = await self._carry_out([waiting.request for waiting in batch])
        except Exception as error:
            # An error that no backend raises goes unchanged to the caller of a single request.
            responses = [error] if len(batch) == 1 else [shared(error) for _ in batch]
        finally:
            self._on_its_way = False
        for waiting, response in zip(batch, responses, strict=True):
            _settle(waiting, response)
        self._batch = []

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_look = loop.call_later(self._limits.seconds, self._look)

    def _look(self) -> None:
        """While requests wait: none does for ever, whatever became of the task that carries them out."""
        self._next_look = None
        try:
            for waiting in self._batch:
                waiting.looks += 1
                # A number, not a time, since a pause of the whole process makes one look useless.
                if waiting.looks > 1 + PATIENCE:
                    _settle(waiting, BackendUnavailable("no response in time"))
            self._refuse_overdue(time.monotonic())
            if not self.busy:
                for waiting in self._batch:
                    _settle(waiting, interrupted())
                self._batch = []
                if self._queue.waiting:
                    self._hand_over()
        finally:
            if self._queue.waiting or self._batch:
                self._look_later(asyncio.get_running_loop())


def _settle(waiting: _Waiting[Any, Any], response: Any) -> None:
    if waiting.response.done():
        return
    if isinstance(response, Exception):
        waiting.response.set_exception(response)
    else:
        waiting.response.set_result(response)
