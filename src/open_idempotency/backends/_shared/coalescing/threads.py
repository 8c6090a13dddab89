"""Coalescing for the threads of one process: each batch is carried out by one of the threads that wait for it.

The lead is one lock object. Its owner holds that lock from before it gets the lead until it leaves, normally or by an
exception. ``ThreadCoalescer._lead`` names the lock of the one call that leads. Only its owner passes the lead on, and
only before it leaves. A lock that nobody holds shows that its owner left without passing it on, as where a signal's
handler raised twice; then the next call that looks takes the lead. So no clock and no guess decides who leads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from open_idempotency.backends._shared.coalescing.queue import PATIENCE, Limits, Queue, interrupted, shared, too_late
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError

Q = TypeVar("Q")
R = TypeVar("R")

#: nothing was called, since a batch is on its way
NOT_ALONE: Final = object()


class _Group(Generic[Q, R]):
    """The requests of one call, and their responses.

    ``lead``: the lock that the call holds as long as it lasts. ``followers``: the calls whose requests share the batch
    that this call carries out. ``carrier``: the lock of the call that carries out the batch of this one.
    """

    __slots__ = ("carrier", "count", "followers", "lead", "requests", "responses", "size", "until", "woken")

    def __init__(self, requests: Sequence[tuple[Q, int]], until: float) -> None:
        self.requests = [request for request, _ in requests]
        self.count = len(requests)
        self.size = sum(size for _, size in requests)
        self.until = until
        self.responses: Sequence[R | Exception] | None = None
        self.followers: list[_Group[Q, R]] = []
        self.lead = threading.Lock()
        self.carrier: threading.Lock | None = None
        self.woken = threading.Lock()
        self.woken.acquire()

    def wake(self) -> None:
        """Let the thread of this call look again; once is as good as twice."""
        with suppress(RuntimeError):  # it was woken before, and has not looked yet
            self.woken.release()

    def report(self, responses: Sequence[R | Exception]) -> None:
        """Give the call its responses. The first ones count."""
        if self.responses is None:
            self.responses = responses
        self.wake()


class ThreadCoalescer(Generic[Q, R]):
    """See ``LoopCoalescer``; ``carry_out`` blocks. A thread carries out one batch, with its own request in it, and then
    passes the lead on, so that no thread works for the others for long. Use one coalescer for each process.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Sequence[R | Exception]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        #: held for each change of what follows
        self._lock = threading.Lock()
        self._queue: Queue[_Group[Q, R]] = Queue(limits)
        self._lead: threading.Lock | None = None

    def ask(self, request: Q, size: int = 0) -> R:
        """See ``LoopCoalescer.ask``."""
        responses = self.alone(self._carry_out, (request,))
        if responses is NOT_ALONE:
            responses = self.ask_all(((request, size),))
        response: R | Exception = responses[0]
        if isinstance(response, Exception):
            raise response
        return response

    def alone(self, call: Callable[..., Any], *args: Any) -> Any:
        """``call(*args)`` instead of a batch of one, where it is cheaper; ``NOT_ALONE`` while a batch is on its way."""
        lead = threading.Lock()
        with lead:
            # All of it is in the try: a signal's handler may raise anywhere, and the owner of the lead must pass it on.
            try:
                with self._lock:
                    if self.busy:
                        return NOT_ALONE
                    self._lead = lead
                return call(*args)
            finally:
                self._pass_on(lead)

    def ask_all(self, requests: Sequence[tuple[Q, int]]) -> Sequence[R | Exception]:
        """The responses to several requests, each with its size in bytes; they go into one batch.

        Raises ``BackendUnavailable`` where they waited too long or too many requests wait, and what ends this thread.
        """
        group: _Group[Q, R] = _Group(requests, time.monotonic() + self._limits.seconds)
        with group.lead:
            try:
                with self._lock:
                    if self.busy:
                        self._queue.add(group)
                    else:
                        self._lead = group.lead
                if self._lead is group.lead or self._wait(group):
                    self._respond(group)
            finally:
                self._leave(group)
        if group.responses is None:
            raise BackendUnavailable("no response in time")
        return group.responses

    @property
    def busy(self) -> bool:
        """Whether a request would have to wait: a call has the lead, and has not left."""
        lead = self._lead
        return lead is not None and lead.locked()

    def _wait(self, group: _Group[Q, R]) -> bool:
        """Wait until there are responses (false), or this call has to lead (true).

        Raises ``BackendUnavailable`` where the call was not sent in time. A call that was sent may have had its effect,
        so its response is awaited for longer; in several steps, since a pause of the whole process may use one up.
        """
        for _ in range(1 + PATIENCE):
            group.woken.acquire(timeout=self._limits.seconds)
            if group.responses is not None:
                return False
            with self._lock:
                if self._lead is group.lead:
                    return True
                if self._queue.remove(group):
                    if self.busy:
                        raise too_late(self._limits)
                    self._lead = group.lead
                    return True
            if group.carrier is not None and not group.carrier.locked() and group.responses is None:
                raise interrupted()
        return False

    def _respond(self, group: _Group[Q, R]) -> None:
        """Carry out a batch: the call's own requests, and those that have waited."""
        overdue: list[_Group[Q, R]] = []
        with self._lock:
            self._queue.remove(group)
            self._queue.take(group.followers, overdue, time.monotonic(), after=group)
        for each in overdue:
            each.report([too_late(self._limits)] * each.count)
        requests = [*group.requests]
        for each in group.followers:
            each.carrier = group.lead
            requests += each.requests
        try:
            responses = self._carry_out(requests)
        except IdempotencyError as error:
            responses = [shared(error) for _ in requests]
        except BaseException as error:
            # It may concern this thread alone, such as its own time limit, so it is raised here only.
            for each in group.followers:
                each.report([shared(error) for _ in each.requests])
            raise
        group.responses = responses[: group.count]
        start = group.count
        for each in group.followers:
            each.report(responses[start : start + each.count])
            start += each.count

    def _leave(self, group: _Group[Q, R]) -> None:
        # Calls that a signal's handler left behind: their batch was not reported, or not taken as a whole.
        lost = [each for each in group.followers if each.responses is None]
        if lost or group.responses is None:
            with self._lock:
                for each in (*lost, group):
                    self._queue.remove(each)
        for each in lost:
            each.report([interrupted() for _ in each.requests])
        self._pass_on(group.lead)

    def _pass_on(self, lead: threading.Lock) -> None:
        """Give the lead to the next call that waits, if this call has it."""
        if self._lead is not lead:  # while the lead is held, only its owner changes it
            return
        with self._lock:
            group = self._queue.first()
            while group is not None and (group.responses is not None or not group.lead.locked()):  # its thread has left
                self._queue.remove(group)
                group = self._queue.first()
            self._lead = None if group is None else group.lead
            if group is not None:
                group.wake()
