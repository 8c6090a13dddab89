"""Coalescing for the threads of one process: each batch is carried out by one of those that wait for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from open_idempotency.backends.coalescing.waiting import Limits, Queue, own, too_late
from open_idempotency.exceptions import BackendUnavailable

Q = TypeVar("Q")
R = TypeVar("R")

#: nothing was called, since a batch is on its way
NOT_ALONE: Final = object()
#: how many times as long as in the queue a question may be on its way
_PATIENCE = 3


class _Group(Generic[Q, R]):
    """The questions of one call, its answers, and whether its thread is to carry out the next batch."""

    __slots__ = ("answers", "count", "leads", "questions", "size", "until", "woken")

    def __init__(self, questions: Sequence[tuple[Q, int]], until: float) -> None:
        self.questions = [question for question, _ in questions]
        self.count = len(questions)
        self.size = sum(size for _, size in questions)
        self.until = until
        self.answers: Sequence[R | Exception] | None = None
        self.leads = False
        self.woken = threading.Lock()
        self.woken.acquire()


class ThreadCoalescer(Generic[Q, R]):
    """See ``LoopCoalescer``; ``carry_out`` blocks. A thread carries out one batch, its own question in it, and then
    hands over, so that none works for the others for long. Use one for each process.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Sequence[R | Exception]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        self._lock = threading.Lock()
        #: held while a batch is on its way
        self._on_its_way = threading.Lock()
        self._queue: Queue[_Group[Q, R]] = Queue(limits)
        self._busy = False

    def ask(self, question: Q, size: int = 0) -> R:
        """See ``LoopCoalescer.ask``."""
        answers = self.alone(self._carry_out, (question,))
        if answers is NOT_ALONE:
            answers = self.ask_all(((question, size),))
        answer: R | Exception = answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def alone(self, call: Callable[..., Any], *args: Any) -> Any:
        """``call(*args)`` in the place of a batch, where it is cheaper; ``NOT_ALONE`` while one is on its way."""
        leads = False
        try:
            # All of it is tried: a signal's handler may raise anywhere, and whoever has the lead must pass it on.
            with self._lock:
                leads = not self._busy
                self._busy = True
            if not leads:
                return NOT_ALONE
            with self._on_its_way:
                return call(*args)
        finally:
            if leads:
                self._pass_on()

    def ask_all(self, questions: Sequence[tuple[Q, int]]) -> Sequence[R | Exception]:
        """The answers to several questions, each with its size in bytes; they go into one batch."""
        group: _Group[Q, R] = _Group(questions, time.monotonic() + self._limits.seconds)
        try:
            with self._lock:
                group.leads = not self._busy
                self._busy = True
                if not group.leads:
                    self._queue.add(group)
            batch = [group] if group.leads else self._wait(group)
            if batch:
                self._answer(batch)
        finally:
            if group.answers is None:
                with self._lock:
                    self._queue.remove(group)
            if group.leads:
                self._pass_on()
        if group.answers is None:
            raise BackendUnavailable("no answer in time")
        return group.answers

    def _wait(self, group: _Group[Q, R]) -> list[_Group[Q, R]]:
        """Until there are answers, or a batch to carry out."""
        if not group.woken.acquire(timeout=self._limits.seconds) and not self._found_lead(group):
            # On its way in somebody's batch, which is bounded in time.
            group.woken.acquire(timeout=_PATIENCE * self._limits.seconds)
        return self._next_batch() if group.leads else []

    def _found_lead(self, group: _Group[Q, R]) -> bool:
        """After a wait that was in vain: whether it leads. Raises ``BackendUnavailable`` where it is too late."""
        with self._lock:
            if group.leads or not self._queue.remove(group):
                return group.leads
            if self._on_its_way.locked():
                raise too_late(self._limits)
            # The one that had the lead lost it, to a signal's handler that raised while it passed it on.
            group.leads = True
            group.until = math.inf
            self._queue.put_first(group)
            return True

    def _next_batch(self) -> list[_Group[Q, R]]:
        with self._lock:
            batch, overdue = self._queue.take()
        for group in overdue:
            _tell(group, [too_late(self._limits)] * group.count)
        return batch

    def _answer(self, batch: list[_Group[Q, R]]) -> None:
        questions = [question for group in batch for question in group.questions]
        try:
            with self._on_its_way:
                answers = self._carry_out(questions)
        except Exception as error:
            answers = [own(error) for _ in questions]
        except BaseException:
            for group in batch:
                _tell(group, [BackendUnavailable("the thread that asked was ended") for _ in group.questions])
            raise
        try:
            start = 0
            for group in batch:
                _tell(group, answers[start : start + group.count])
                start += group.count
        finally:  # a signal's handler may have raised in the middle
            for group in batch:
                if group.answers is None:
                    _tell(group, [BackendUnavailable("the thread that asked was interrupted")] * group.count)

    def _pass_on(self) -> None:
        with self._lock:
            first = self._queue.first()
            if first is None:
                self._busy = False
                return
            first.leads = True
            first.until = math.inf
            first.woken.release()


def _tell(group: _Group[Q, R], answers: Sequence[R | Exception]) -> None:
    group.answers = answers
    # One that leads was woken before.
    if not group.leads:
        group.woken.release()
