"""Coalescing: requests that arrive while the last batch is on its way go out together as the next batch.

Calls are never delayed to form batches: a caller that finds nothing on its way sends its own request at once. The
backend says how a batch is carried out. This module decides which requests wait, in which order and for how long: first
come, first served, bounded in number, in bytes and in time. It works like group commit in a database: one caller, the
leader, carries out a batch for all its requests. "The lead" is this role. One caller has it at each moment.

In an asyncio loop the leader is a call that found nothing on its way, or the one task that carries out batches. The
object of the lead shows whether the leader still exists. A lead may be lost if a signal's handler raises, or if memory
is short. Then the next call that looks takes it. While requests wait, a timer looks as well.

The time that a request waits is counted in looks. A loop that stands still, as in a view that blocks it, makes no
looks: the reply may have arrived, but no task could read it.

Among threads the lead is one lock object. The leader holds that lock from before it gets the lead until it leaves,
normally or by an exception. ``ThreadCoalescer._lead`` refers to the lock of the leader. Only the leader passes the lead
on, and only before it leaves. A lock that is not held shows that the leader left without passing it on, for example
because a signal's handler raised twice. Then the next call that looks takes the lead. So neither a clock nor a guess
decides which call leads.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final, Generic, Protocol, TypeVar

from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, first_line

__all__ = ["NOT_ALONE", "Limits", "LoopCoalescer", "ThreadCoalescer"]

# The requests that wait

#: the in-flight timeout of a request is this many times its queue timeout
PATIENCE = 3


@dataclass(frozen=True)
class Limits:
    """The bounds of a coalescer. ``seconds``: how long a request may wait before it is sent. ``most`` requests and
    ``size`` bytes go into a batch of more than one. ``waiting``: how many requests may wait.
    """

    seconds: float
    most: int = 256
    size: int = 1 << 20
    waiting: int = 10_000


class Waiting(Protocol):
    """One or more requests that stay together. ``until``: on the caller's clock, which only grows."""

    count: int
    size: int
    until: float


A = TypeVar("A", bound=Waiting)


class Queue(Generic[A]):
    """The requests that wait. It has no lock: use it on one loop, or under a lock of the caller's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: first come, first served; changed here only
        self.waiting: deque[A] = deque()
        self._count = 0

    def add(self, waiting: A) -> None:
        """Let a request wait for a batch. Raises ``BackendUnavailable`` if too many requests wait."""
        if self._count + waiting.count > self._limits.waiting:
            raise BackendUnavailable(f"too many calls wait for the backend: {self._count}")
        self.waiting.append(waiting)
        self._count += waiting.count

    def remove(self, waiting: A) -> bool:
        """Remove a request. Returns false if it does not wait, for example since it is on its way."""
        try:
            self.waiting.remove(waiting)
        except ValueError:
            return False
        self._count -= waiting.count
        return True

    def first(self) -> A | None:
        """The next one, or None."""
        return self.waiting[0] if self.waiting else None

    def overdue(self, now: float) -> list[A]:
        """The requests whose time to wait is over. They are at the front of the queue."""
        return list(takewhile(lambda waiting: waiting.until < now, self.waiting))

    def take(self, batch: list[A], overdue: list[A], now: float, after: A | None = None) -> None:
        """Move the next batch to ``batch``. Move requests whose time is over, which must no longer be sent, to
        ``overdue``. ``now``: on the caller's clock. ``after``: a request that is in the batch already.

        A signal's handler may raise in the middle. Each request is in a list before it leaves the queue, so none is
        lost.
        """
        count, size = (0, 0) if after is None else (after.count, after.size)
        while self.waiting:
            waiting = self.waiting[0]
            if waiting.until < now:
                overdue.append(waiting)
            elif count and (count + waiting.count > self._limits.most or size + waiting.size > self._limits.size):
                break
            else:
                batch.append(waiting)
                count += waiting.count
                size += waiting.size
            self.waiting.popleft()
            self._count -= waiting.count


def too_late(limits: Limits) -> BackendUnavailable:
    """The error for a request that was not sent in time."""
    return BackendUnavailable(f"the backend took no further calls for {limits.seconds} s")


def interrupted() -> BackendUnavailable:
    """The error for a request whose batch is no longer carried out; it may have had its effect."""
    return BackendUnavailable("the thread or task that had sent this call was interrupted; its outcome is not known")


def shared(error: BaseException) -> Exception:
    """A copy of a batch's error for one of its requests: if several requests raised one object, their tracebacks would
    mix.

    An error that no backend raises, such as the time limit of the thread that carried out the batch, concerns only that
    thread. For the other requests it becomes ``BackendUnavailable``, after which they may be tried again.
    """
    if isinstance(error, IdempotencyError):
        if type(error).__init__ is not IdempotencyError.__init__:
            return error
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__ or error
        return copy
    unavailable = BackendUnavailable(f"the batch of this call failed: {type(error).__name__}: {first_line(error)}")
    unavailable.__cause__ = error
    return unavailable


# For the tasks of one asyncio loop

Q = TypeVar("Q")
R = TypeVar("R")


#: how often the timer looks within ``Limits.seconds``
LOOKS = 8


class _LoopTime:
    """Seconds that a loop has run. A pause of any length between two looks counts as one step."""

    __slots__ = ("_counted", "_since", "step")

    def __init__(self, step: float) -> None:
        self.step = step
        self._counted = 0.0
        self._since = time.monotonic()

    def now(self) -> float:
        """Seconds; never goes back."""
        return self._counted + min(time.monotonic() - self._since, self.step)

    def look(self) -> float:
        """``now``, which begins a new step."""
        self._counted = self.now()
        self._since = time.monotonic()
        return self._counted


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
    """One turn of the lead. The leader is ``task``, or the call that holds the lock ``held`` as long as it leads."""

    held: threading.Lock = field(default_factory=threading.Lock)
    task: asyncio.Task[Any] | None = None


class LoopCoalescer(Generic[Q, R]):
    """``carry_out`` gets the requests of a batch and returns their responses in the same order. An exception in the
    position of a response is raised to that caller alone. An exception that ``carry_out`` raises is raised to every
    caller of the batch. It must be bounded in time.

    The request of a cancelled caller is not sent; if it is on its way, its response is dropped. Use one coalescer for
    each loop.
    """

    def __init__(self, carry_out: Callable[[Sequence[Q]], Awaitable[Sequence[R | Exception]]], limits: Limits) -> None:
        self._carry_out = carry_out
        self._limits = limits
        self._queue: Queue[_Waiting[Q, R]] = Queue(limits)
        #: the batch on its way; the one request that found nothing on its way is not in it
        self._batch: list[_Waiting[Q, R]] = []
        #: replaced by the leader, or by any call if the leader no longer exists
        self._lead = _Lead()
        #: true: certainly no call or task has the lead; false: ``busy`` has to look
        self.idle = True
        self._on_its_way = False
        self._next_look: asyncio.TimerHandle | None = None
        self._time = _LoopTime(max(0.0, limits.seconds) / LOOKS)

    @property
    def busy(self) -> bool:
        """Whether a request would have to wait: the leader still exists."""
        lead = self._lead
        return lead.held.locked() or (lead.task is not None and not lead.task.done())

    def now(self) -> float:
        """Seconds on the clock on which requests wait; from any thread."""
        return self._time.now()

    @property
    def on_its_way(self) -> bool:
        """Whether a batch is on its way. Between two batches it is false: a request then goes with the next at once."""
        return self._on_its_way and self.busy

    def report(self, responses: Sequence[R | Exception | None]) -> None:
        """Give early responses to requests of the batch that is on its way; None for those that have to wait."""
        for waiting, response in zip(self._batch, responses, strict=True):
            if response is not None:
                _settle(waiting, response)

    async def ask(self, request: Q, size: int = 0) -> R:
        """The response to ``request``, which has ``size`` bytes. Raises ``BackendUnavailable`` if it waited too long or
        too many requests wait, and what ``carry_out`` raises.
        """
        if not self.idle and self.busy:
            return await self._with_others(request, size)
        lead = _Lead()  # a new one, so that a lock that was never released blocks no later call
        with lead.held:
            try:
                self._lead = lead
                self.idle = False
                self._on_its_way = True
                (response,) = await self._carry_out((request,))
            finally:
                self._on_its_way = False
                if self._queue.waiting:
                    self._hand_over()
                else:
                    self.idle = True
        if isinstance(response, Exception):
            raise response
        return response

    async def _with_others(self, request: Q, size: int) -> R:
        loop = asyncio.get_running_loop()
        if self._next_look is None:
            self._time.look()
            self._look_later(loop)
        until = self._time.now() + self._limits.seconds
        waiting: _Waiting[Q, R] = _Waiting(request, size, until, loop.create_future())
        self._queue.add(waiting)
        try:
            return await waiting.response
        except BaseException:
            if waiting.response.cancelled() or not waiting.response.done():  # otherwise it has left the queue
                self._queue.remove(waiting)
            raise

    def _hand_over(self) -> None:
        lead = _Lead()
        with lead.held:
            self._lead = lead
            self.idle = False
            # A context of its own: the batches do not belong to the HTTP request that happened to come before them.
            create_task = asyncio.get_running_loop().create_task
            lead.task = contextvars.Context().run(create_task, self._work(lead))
            lead.task.add_done_callback(self._ended)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step has done nothing, and no other task would replace it.
        if self._lead.task is worker and (self._queue.waiting or self._batch):
            self._refuse()

    def _refuse_overdue(self, now: float) -> None:
        # Refused requests stay in the queue until the next batch is taken from it.
        for waiting in self._queue.overdue(now):
            _settle(waiting, too_late(self._limits))

    def _refuse(self) -> None:
        """Refuse all requests: the loop is ending and cancels every task. Tasks that clean up may make new requests."""
        refused = self._batch
        while self._queue.waiting:
            self._queue.take(refused, refused, math.inf)
        for waiting in refused:
            _settle(waiting, BackendUnavailable("the batch was cancelled"))
        self._batch = []

    async def _work(self, lead: _Lead) -> None:
        if self._lead is not lead:  # the lead was lost right before, and there is another leader
            return
        lead.task = asyncio.current_task()
        try:
            while self._queue.waiting:
                now = self._time.now()
                self._refuse_overdue(now)
                batch = self._batch = []
                self._queue.take(batch, [], now)
                if batch:
                    await self._respond(batch)
                # Callers that got a response may make their next requests, which then share one batch too.
                await asyncio.sleep(0)
            self.idle = True
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
        self._next_look = loop.call_later(self._time.step, self._look)

    def _look(self) -> None:
        """Called while requests wait, so that none waits for ever if the task that carries them out was lost."""
        self._next_look = None
        now = self._time.look()
        try:
            for waiting in self._batch:
                waiting.looks += 1
                if waiting.looks > (1 + PATIENCE) * LOOKS:
                    _settle(waiting, BackendUnavailable("no response in time"))
            self._refuse_overdue(now)
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


# For the threads of one process

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
        """Let the thread of this call look again. Waking it twice has no further effect."""
        with suppress(RuntimeError):  # it was woken before, and has not looked yet
            self.woken.release()

    def report(self, responses: Sequence[R | Exception]) -> None:
        """Give the call its responses. Only the first call of this method counts."""
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
            # All of it is inside the try: a signal's handler may raise anywhere, and the leader must pass the lead on.
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

        Raises ``BackendUnavailable`` if they waited too long or too many requests wait, or what ends the thread.
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
        """Whether a request would have to wait: a call leads, and has not left."""
        lead = self._lead
        return lead is not None and lead.locked()

    def _wait(self, group: _Group[Q, R]) -> bool:
        """Wait until there are responses (returns false), or until this call has to lead (returns true).

        Raises ``BackendUnavailable`` if the call was not sent in time. A call that was sent may have had its effect, so
        its response is awaited longer. The wait has several steps, since a pause of the whole process may use one up.
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
        """Carry out a batch: the call's own requests, and requests that have waited."""
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
            # The error may concern this thread alone, such as its own time limit, so it is raised here only.
            for each in group.followers:
                each.report([shared(error) for _ in each.requests])
            raise
        group.responses = responses[: group.count]
        start = group.count
        for each in group.followers:
            each.report(responses[start : start + each.count])
            start += each.count

    def _leave(self, group: _Group[Q, R]) -> None:
        # After an error of a signal's handler some calls may have no response: their batch was not reported completely.
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
        if self._lead is not lead:  # while a call leads, only that call changes it
            return
        with self._lock:
            group = self._queue.first()
            while group is not None and (group.responses is not None or not group.lead.locked()):  # its thread has left
                self._queue.remove(group)
                group = self._queue.first()
            self._lead = None if group is None else group.lead
            if group is not None:
                group.wake()
