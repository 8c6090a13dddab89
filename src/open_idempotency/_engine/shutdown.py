"""Work that outlives a response or its client, and how it ends when the process has to end.

A stream whose client has left may go on for ``stream_grace`` seconds; the rule is the same for all adapters (L-05a). If
it ends by then, its response is stored. A stream that does not, or that outgrows ``max_response_bytes``, is closed. Its
attempt fails, and the stages stay.

A recording that fails is tried again in the background, after the client has its response (L-08). Each recording is a
generator of the core, which says what to do and how long to pause. Recordings take turns in the heartbeat's thread.
Before each one the due leases are renewed, and while the backend is down the others wait for the next round. So no
number of recordings delays a renewal by more than one call.

When the process has to end, requests that are still running are settled, or given up at once (L-06). All state here is
of one process: the requests on their way through an adapter, and the heartbeats. Each heartbeat gives up its running
leases in its own thread. So ``drain`` takes no lock that its caller could hold, and may be called from any thread, at
the interpreter's exit, and in a signal handler.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Complete, Emit, Fail, Handlers, Now, RecordLater, Release, Sleep, Unreserve
from open_idempotency._core.notify import FIRST_PAUSE, LONGEST_PAUSE
from open_idempotency._core.stored_response import Capture
from open_idempotency._runtime import clocks, loops
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Backend
from open_idempotency.exceptions import BackendUnavailable, LeaseLost

# Streams whose client has left (L-05a)


class ClientLeft(OSError):
    """Raised where an application sends to a client that has left, and the grace of its stream is over.

    An ``OSError``, as servers raise it themselves, so that applications and frameworks know what it means.
    """


@dataclass(slots=True)
class Grace:
    """How long the stream of one request may go on without its client: ``seconds`` from when it has left."""

    seconds: float
    capture: Capture
    _until: float = field(default=inf, init=False)

    def begin(self) -> None:
        """The client has left. Only the first call counts."""
        if self._until == inf:
            self._until = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds for which the stream may still go on; infinite while the client is there."""
        if self._until == inf:
            return inf
        return 0.0 if self.capture.outgrown else max(0.0, self._until - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the stream has to be closed: before its next part, never in the middle of one."""
        return self.left <= 0.0

    def error(self) -> GeneratorExit:
        """The error with which its attempt fails."""
        if self.capture.outgrown:
            return GeneratorExit("the client left, and the stream is longer than what is stored (max_response_bytes)")
        return GeneratorExit(f"the client left, and the stream did not end within {self.seconds:g} s (stream_grace)")


# Recordings in the background (L-08)

#: bounds of the responses that wait in one process for one backend
MOST = 1_000
MOST_BYTES = 64 * 1024 * 1024

_logger = logging.getLogger("open_idempotency")


class _Recording:
    __slots__ = ("command", "steps", "wake")

    def __init__(self, command: RecordLater) -> None:
        self.command = command
        self.steps = command.steps
        #: seconds on the monotonic clock at which it goes on
        self.wake = 0.0


class Recordings:
    """The recordings of one process on one backend. Any thread may add one; one thread carries them out."""

    def __init__(self, backend: Backend, report: Callable[[Emit], None], ended: Callable[[bytes], None]) -> None:
        #: by the lease's owner; changed here only
        self.pending: dict[bytes, _Recording] = {}
        # While the backend is down: seconds between two tries, and the time of the next one on the monotonic clock.
        self._pause = FIRST_PAUSE
        self._left_alone = 0.0
        self._ended = ended
        self._handlers: Handlers = {
            Complete: backend.complete,
            Fail: backend.fail,
            Release: backend.release,
            Unreserve: backend.unreserve,
            Now: lambda _: clocks.elapsed(),
            Emit: report,
        }

    def __len__(self) -> int:
        return len(self.pending)

    def fits(self, command: RecordLater) -> bool:
        """Whether there is room for it."""
        taken = list(self.pending.values())
        return len(taken) < MOST and sum(each.command.size for each in taken) + command.size <= MOST_BYTES

    def add(self, owner: bytes, command: RecordLater) -> None:
        """Take it on; it begins when it is looked at next."""
        self.pending[owner] = _Recording(command)

    def lost(self) -> list[Emit]:
        """The events to report for recordings that the end of the process cuts off."""
        commands = [each.command for each in list(self.pending.values())]
        return [
            Emit(each.lost, each.attempt.policy.on_event, each.attempt) for each in commands if each.lost is not None
        ]

    def wake_all(self) -> None:
        """Let none of them pause any longer: the process is about to end."""
        self._left_alone = 0.0
        for recording in list(self.pending.values()):
            recording.wake = 0.0

    @property
    def wake(self) -> float:
        """When the next one goes on, on the monotonic clock; infinite where there is none."""
        return max(self._left_alone, min((each.wake for each in list(self.pending.values())), default=inf))

    def go_on(self, before_each: Callable[[], object]) -> None:
        """Carry out the recordings that are due, until the backend turns out to be down."""
        now = clocks.elapsed()
        if now < self._left_alone:
            return
        due = sorted((item for item in list(self.pending.items()) if item[1].wake <= now), key=lambda i: i[1].wake)
        for owner, recording in due:
            before_each()
            if not self._advance(owner, recording):
                # This recording pauses, so in the next round the others come before it.
                self._left_alone = clocks.elapsed() + self._pause
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
                return
            self._pause = FIRST_PAUSE

    def _advance(self, owner: bytes, recording: _Recording) -> bool:
        """Let a recording go on up to its next pause or its end. Returns false if the backend was down."""
        away = False
        try:
            command = next(recording.steps)
            while not isinstance(command, Sleep):
                try:
                    reply = self._handlers[type(command)](command)
                except Exception as error:
                    away = away or isinstance(error, BackendUnavailable)
                    command = recording.steps.throw(error)
                except BaseException as error:  # an error that is meant to end the thread does not end the recording
                    away = True
                    command = recording.steps.throw(BackendUnavailable(f"interrupted by {type(error).__name__}"))
                else:
                    command = recording.steps.send(reply)
            recording.wake = clocks.elapsed() + command.seconds
        except StopIteration:
            self._end(owner)
        except BaseException:
            _logger.exception("recording in the background ended with an error of this package")
            self._end(owner)
        return not away

    def _end(self, owner: bytes) -> None:
        self.pending.pop(owner, None)
        self._ended(owner)


# The end of the process (L-06)

#: seconds that a pass over all running leases may take
PATIENCE = 5.0
# seconds in which a handler that its server has cancelled may clean up before its attempt is given up
_CLEANUP = 1.0
_LOOK = 0.01


class Pass:
    """One pass over the leases of one heartbeat: how long it may take, and how many were given up.

    ``sparing``: a handler that runs in a thread keeps its lease, since the process and the thread may go on for a time.
    """

    __slots__ = ("_done", "deadline", "released", "sparing")

    def __init__(self, deadline: float, sparing: bool = False) -> None:
        #: on the monotonic clock
        self.deadline = deadline
        self.sparing = sparing
        self.released = 0
        self._done = threading.Event()

    def takes(self, attempt: Attempt) -> bool:
        """Whether this running attempt is to be given up."""
        return not (self.sparing and attempt.threads is not None and attempt.threads.running)

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.deadline

    @property
    def left(self) -> float:
        """Seconds until its time is up."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self._done.is_set()

    def end(self) -> None:
        """There is nothing left to do."""
        self._done.set()

    def wait(self) -> int:
        """Wait until the pass has ended or its time is up. Returns how many leases were given up."""
        self._done.wait(self.left)
        return self.released


class Leases(Protocol):
    """Something that has running leases, and a thread of its own to give them up."""

    def drain(self, order: Pass) -> None:
        """Begin the pass, and return at once. Takes no lock."""

    def report_lost(self) -> None:
        """The process ends: report what it has not recorded."""


_leases: PerProcess[set[Leases]] = PerProcess(set)


def enlist(leases: Leases) -> None:
    """Have these leases drained from now on; in a process that has none yet, at its exit too."""
    enlisted = _leases.get()
    if not enlisted:
        _drain_at_exit()
    enlisted.add(leases)


def dismiss(leases: Leases) -> None:
    """Take ``enlist`` back."""
    _leases.get().discard(leases)


def drain(timeout: float = PATIENCE) -> int:
    """Give up all requests that run in this process, so that retries in other processes need not wait for leases.

    For a process that ends before its handlers can, and only then: a handler that goes on after this has lost its
    lease. Its next stage raises ``LeaseLost`` and its response becomes a 409, but what it does between two stages may
    happen beside the retry. What is being recorded at this moment, in the background too, is waited for. Attempts
    count, stages stay.

    ``timeout``: seconds that all of it may take; a lease that was not reached by then ends by itself. Returns how many
    were given up. Never raises; may be called from any thread and repeatedly; does nothing for other processes. It
    blocks, so on an event loop call it in a thread. Since 0.1.
    """
    return _drain(timeout, sparing=False)


def _drain(timeout: float, *, sparing: bool) -> int:
    deadline = time.monotonic() + timeout
    orders: list[Pass] = []
    for leases in list(_leases.get()):
        order = Pass(deadline, sparing)
        leases.drain(order)
        orders.append(order)
    return sum(order.wait() for order in orders)


def give_up(attempt: Attempt, backend: Backend, report: Callable[[Emit], None]) -> bool:
    """End an attempt while it runs. Returns whether that is on record. The handler's next stage notices it (S-07)."""
    lease = attempt.lease
    assert lease is not None
    attempt.lose()
    record, listener = events.short(lease.record_id), attempt.policy.on_event
    try:
        backend.fail(Fail(lease, final=attempt.policy.on_abandoned != "resume"))
    except LeaseLost:
        return False  # another attempt has it, or this one's own end came first
    except Exception as error:  # whatever a backend raises, the other leases are given up all the same
        report(Emit(events.BackendFailed.of(record, "fail", error), listener, attempt))
        return False
    report(Emit(events.Failed(record, None), listener, attempt))
    return True


def _drain_at_exit() -> None:
    atexit.unregister(_drain_and_report)  # an ancestor's, inherited by a fork
    atexit.register(_drain_and_report)
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        # A child of multiprocessing runs no atexit functions.
        Finalize(None, _drain_unless_threads_go_on, exitpriority=0)


def _drain_unless_threads_go_on() -> None:
    """The child waits for its threads after this, so the handlers that run in them can finish."""
    main = threading.main_thread()
    if all(thread.daemon or thread is main for thread in threading.enumerate()):
        _drain_and_report()


def _drain_and_report() -> None:
    drain()
    for leases in list(_leases.get()):
        leases.report_lost()


class Protected(Protocol):
    """A request on its way through an adapter."""

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that it runs; None while it is being admitted."""
        ...


#: the requests that this process handles now; each is in this set until its end is on record. Any thread may add and
#: discard, since sets are changed atomically
requests: PerProcess[set[Protected]] = PerProcess(set)


def enter(request: Protected) -> set[Protected]:
    """Note that a request begins. Returns the set from which it is to be discarded when it is over."""
    mine = requests.get()
    mine.add(request)
    return mine


async def settle() -> None:
    """At a server's shutdown: wait until cancelled requests are on record, and give up requests that did not end.

    Some servers cancel the requests that did not end in time, run the application's shutdown, and exit a moment later.
    The wait is bounded, since some handlers ignore a cancellation.

    A handler that runs in a thread is waited for, and never given up: the process may not end before that thread does,
    so a retry would run beside it (L-09). Its lease is renewed as long as the process lives, and then ends by itself.
    """
    await _wait(_CLEANUP)
    await loops.in_thread(lambda: _drain(PATIENCE, sparing=True))
    await _wait(PATIENCE)


async def _wait(seconds: float) -> None:
    """Return when no request is left that may still have to be recorded, or after ``seconds``."""
    deadline = time.monotonic() + seconds
    await loops.sleep(_LOOK)  # so that tasks that were just cancelled can run
    while _unsettled() and time.monotonic() < deadline:
        await loops.sleep(_LOOK)


def _unsettled() -> bool:
    return any(request.attempt is None or not request.attempt.lost for request in list(requests.get()))
