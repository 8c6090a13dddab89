"""Coalescing for the threads of one process: each batch is carried out by one of those that wait for it.

The lead is one lock object. Its owner holds that lock from before it gets the lead until it has left, whatever it
leaves with. ``ThreadCoalescer._lead`` names the lock of the one call that leads. Only its owner passes the lead on, and
only while it is there. A lock that nobody holds shows that its owner left without passing it on, as where a signal's
handler raised twice; then the next that looks takes the lead. So no clock and no guess decides who leads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from open_idempotency.backends.coalescing.waiting import PATIENCE, Limits, Queue, interrupted, shared, too_late
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError

Q = TypeVar("Q")
R = TypeVar("R")

#: nothing was called, since a batch is on its way
NOT_ALONE: Final = object()


class _Group(Generic[Q, R]):
    """The questions of one call, and their answers.

    ``lead``: the lock that the call holds as long as it lasts. ``followers``: the calls whose questions go with its
    own, where it leads. ``carrier``: the lock of the call in whose batch it is.
    """

    __slots__ = ("answers", "carrier", "count", "followers", "lead", "questions", "size", "until", "woken")

    def __init__(self, questions: Sequence[tuple[Q, int]], until: float) -> None:
        self.questions = [question for question, _ in questions]
        self.count = len(questions)
        self.size = sum(size for _, size in questions)
        self.until = until
        self.answers: Sequence[R | Exception] | None = None
        self.followers: list[_Group[Q, R]] = []
        self.lead = threading.Lock()
        self.carrier: threading.Lock | None = None
        self.woken = threading.Lock()
        self.woken.acquire()

    def wake(self) -> None:
        """Let its thread look again; once is as good as twice."""
        with suppress(RuntimeError):  # it was woken before, and has not looked yet
            self.woken.release()

    def tell(self, answers: Sequence[R | Exception]) -> None:
        """Its answers. The first ones count."""
        if self.answers is None:
            self.answers = answers
        self.wake()


class ThreadCoalescer(Generic[Q, R]):
    """See ``LoopCoalescer``; ``carry_out`` blocks. A thread carries out one batch, its own question in it, and then
    hands over, so that none works for the others for long. Use one for each process.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Sequence[R | Exception]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        #: held for each change of what follows
        self._lock = threading.Lock()
        self._queue: Queue[_Group[Q, R]] = Queue(limits)
        self._lead: threading.Lock | None = None

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
        lead = threading.Lock()
        with lead:
            # All of it is tried: a signal's handler may raise anywhere, and whoever has the lead must pass it on.
            try:
                with self._lock:
                    if self.busy:
                        return NOT_ALONE
                    self._lead = lead
                return call(*args)
            finally:
                self._pass_on(lead)

    def ask_all(self, questions: Sequence[tuple[Q, int]]) -> Sequence[R | Exception]:
        """The answers to several questions, each with its size in bytes; they go into one batch.

        Raises ``BackendUnavailable`` where they waited too long, or too many wait, and what ends this very thread.
        """
        group: _Group[Q, R] = _Group(questions, time.monotonic() + self._limits.seconds)
        with group.lead:
            try:
                with self._lock:
                    if self.busy:
                        self._queue.add(group)
                    else:
                        self._lead = group.lead
                if self._lead is group.lead or self._wait(group):
                    self._answer(group)
            finally:
                self._leave(group)
        if group.answers is None:
            raise BackendUnavailable("no answer in time")
        return group.answers

    @property
    def busy(self) -> bool:
        """Whether a question would not go at once: somebody has the lead, and is there."""
        lead = self._lead
        return lead is not None and lead.locked()

    def _wait(self, group: _Group[Q, R]) -> bool:
        """Until there are answers (false), or it is this call's turn to lead (true).

        Raises ``BackendUnavailable`` where it was not sent in time. What was sent may have had its effect, so its
        answer is waited for longer; in several steps, since a pause of the whole process makes one of them useless.
        """
        for _ in range(1 + PATIENCE):
            group.woken.acquire(timeout=self._limits.seconds)
            if group.answers is not None:
                return False
            with self._lock:
                if self._lead is group.lead:
                    return True
                if self._queue.remove(group):
                    if self.busy:
                        raise too_late(self._limits)
                    self._lead = group.lead
                    return True
            if group.carrier is not None and not group.carrier.locked() and group.answers is None:
                raise interrupted()
        return False

    def _answer(self, group: _Group[Q, R]) -> None:
        """Carry out a batch: the call's own questions, and those that waited in the meantime."""
        overdue: list[_Group[Q, R]] = []
        with self._lock:
            self._queue.remove(group)
            self._queue.take(group.followers, overdue, time.monotonic(), after=group)
        for each in overdue:
            each.tell([too_late(self._limits)] * each.count)
        questions = [*group.questions]
        for each in group.followers:
            each.carrier = group.lead
            questions += each.questions
        try:
            answers = self._carry_out(questions)
        except IdempotencyError as error:
            answers = [shared(error) for _ in questions]
        except BaseException as error:
            # It may be this thread's alone, such as its own time limit, so it is raised here, and nowhere else.
            for each in group.followers:
                each.tell([shared(error) for _ in each.questions])
            raise
        group.answers = answers[: group.count]
        start = group.count
        for each in group.followers:
            each.tell(answers[start : start + each.count])
            start += each.count

    def _leave(self, group: _Group[Q, R]) -> None:
        # Those that a signal's handler left behind: of a batch that was not told, or of one that was not taken whole.
        lost = [each for each in group.followers if each.answers is None]
        if lost or group.answers is None:
            with self._lock:
                for each in (*lost, group):
                    self._queue.remove(each)
        for each in lost:
            each.tell([interrupted() for _ in each.questions])
        self._pass_on(group.lead)

    def _pass_on(self, lead: threading.Lock) -> None:
        """Give the lead to the next that waits, if this call has it."""
        if self._lead is not lead:  # while it is held nobody else changes that
            return
        with self._lock:
            group = self._queue.first()
            while group is not None and (group.answers is not None or not group.lead.locked()):  # its thread has left
                self._queue.remove(group)
                group = self._queue.first()
            self._lead = None if group is None else group.lead
            if group is not None:
                group.wake()
