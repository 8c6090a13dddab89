"""Virtual time: tasks of simulated processes, which can be paused, killed and cancelled, in one seeded order of events.

Coroutines await nothing but futures of this loop. The seed decides the order of two events of one moment, and nothing
else does, so that a seed is one history.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from math import inf
from random import Random
from typing import Any, Protocol

#: the number of events after which a history counts as endless (I11)
MOST_EVENTS = 200_000
#: uptime of the machines in seconds: more than the error of any clock
BOOTED = 4096.0


class Cancelled(BaseException):
    """A cancellation as event loops deliver it."""


class _Dead(BaseException):
    """Ends the remaining tasks of a killed process, when its history is over."""


class Failure(AssertionError):
    """An invariant is violated; the message has its name (I1 to I13, or a line of behaviour)."""


class Process:
    """A simulated process. ``skew``: the error of its own clocks in seconds. It runs no code while it is paused."""

    def __init__(self, name: str, skew: float = 0.0) -> None:
        self.name = name
        self.skew = skew
        self.dead = False
        self.paused_until = 0.0
        #: whether only the loop is paused, while threads (the heartbeat) continue
        self.blocked_until = 0.0
        #: when a call of its heartbeat was lost last
        self.missed_at = -inf
        self.tasks: dict[Task, None] = {}


class Future:
    """A result that is not there yet."""

    __slots__ = ("_waiting", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._waiting: list[Callable[[], None]] = []

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call a function when the result is there."""
        if self.done:
            callback()
        else:
            self._waiting.append(callback)

    def set(self, value: Any = None) -> None:
        """Set the result; later calls change nothing."""
        self._end(value, None)

    def fail(self, error: BaseException) -> None:
        """Set an error."""
        self._end(None, error)

    def _end(self, value: Any, error: BaseException | None) -> None:
        if not self.done:
            self.done, self.value, self.error = True, value, error
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                callback()


class Holding(Protocol):
    """Delays cancellations of a task."""

    def keeps_back(self, times: int) -> bool:
        """Whether to delay this cancellation."""
        ...


class Task:
    """A coroutine of one process. ``persistent``: a cancellation is delivered again and again, as anyio does."""

    def __init__(self, loop: Loop, process: Process, coroutine: Coroutine[Future, None, Any], name: str) -> None:
        self.name = name
        self.process = process
        self.ended = Future()
        #: faults of its commands that excuse a claim that is left behind
        self.trouble: list[str] = []
        #: whether the engine has said that its response could not be recorded (L-08)
        self.unrecorded = False
        #: the record that it claimed, and as whom
        self.claimed: tuple[bytes, bytes] | None = None
        #: what delays its cancellations, if anything does
        self.hold: Holding | None = None
        #: the task of the same process on whose behalf this one runs
        self.parent = loop.current if loop.current is not None and loop.current.process is process else None
        self._loop = loop
        self._coroutine = coroutine
        self._context: Context = copy_context()
        self._awaited: Future | None = None
        self._to_throw: BaseException | None = None
        self._deliveries = 0
        #: the number of its awaits, and the action at some of them
        self.awaits = 0
        self.strike: tuple[int, Callable[[], None]] | None = None
        process.tasks[self] = None
        self._wake()

    @property
    def root(self) -> Task:
        """The task on whose behalf this one runs."""
        return self if self.parent is None else self.parent.root

    def cancel(self, times: int) -> None:
        """Deliver a cancellation, at up to ``times`` further awaits."""
        if self.ended.done or times < 1 or (self.hold is not None and self.hold.keeps_back(times)):
            return
        self._deliveries = times
        self._to_throw = Cancelled()
        self._wake()

    def _wake(self) -> None:
        self._loop.soon(self._step, self.process, on_loop=True)

    def _woken(self, future: Future) -> None:
        if self._awaited is future:
            self._awaited = None
            self._wake()

    def _step(self) -> None:
        if self.ended.done or (self._awaited is not None and self._to_throw is None):
            return
        self._loop.current, before = self, self._loop.current
        thrown, self._to_throw, self._awaited = self._to_throw, None, None
        try:
            future = self._context.run(self._resume, thrown)
        except StopIteration as stop:
            self._finish(stop.value, None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._finish(None, error)
        else:
            self._await(future)
        finally:
            self._loop.current = before

    def _resume(self, thrown: BaseException | None) -> Future:
        return self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)

    def _await(self, future: Future) -> None:
        self._awaited = future
        self.awaits += 1
        if self.strike is not None and self.strike[0] == self.awaits:
            self.strike[1]()
        future.when_done(lambda: self._woken(future))
        if self._deliveries > 1:
            self._deliveries -= 1
            delay = self._loop.random.uniform(0.0, 0.01)
            self._loop.after(delay, lambda: self.cancel(self._deliveries), self.process)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self.process.tasks.pop(self, None)
        self.ended.set((value, error))

    def bury(self) -> None:
        """End the remaining tasks of a killed process, without any effect outside."""
        for _ in range(100):
            try:
                self._context.run(self._resume, _Dead())
            except BaseException:
                return
        raise Failure(f"I11: {self.name} cannot be ended")


class Loop:
    """Virtual seconds, and the events at them."""

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self.random = random
        self.current: Task | None = None
        #: the process of what runs now; None for the world outside
        self.process: Process | None = None
        self._events: list[tuple[float, float, int, Callable[[], None], Process | None, bool]] = []
        self._count = 0
        self._graves: list[Task] = []
        self._failure: str | None = None

    def fail(self, what: str) -> None:
        """Report a violation from outside of the tasks, which might catch an exception."""
        self._failure = self._failure or what

    def at(self, when: float, call: Callable[[], None], process: Process | None = None, on_loop: bool = False) -> None:
        """Call a function at this time; for a process only while it runs.

        ``on_loop``: not while its event loop is blocked.
        """
        self._count += 1
        if self._count > MOST_EVENTS:
            self.fail(f"I11: {MOST_EVENTS} events, and no end")
        heapq.heappush(self._events, (when, self.random.random(), self._count, call, process, on_loop))

    def after(self, seconds: float, call: Callable[[], None], process: Process | None = None) -> None:
        """Call a function after this many seconds."""
        self.at(self.now + seconds, call, process)

    def soon(self, call: Callable[[], None], process: Process | None = None, on_loop: bool = False) -> None:
        """Call a function at this moment, after what runs now."""
        self.at(self.now, call, process, on_loop)

    def spawn(self, process: Process, coroutine: Coroutine[Future, None, Any], name: str) -> Task:
        """Start a task. A dead process that is being disposed of starts none."""
        if process.dead:
            coroutine.close()
            raise _Dead
        return Task(self, process, coroutine, name)

    async def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass for the calling task."""
        future = Future()
        self.after(seconds, future.set)
        await future

    def kill(self, process: Process) -> None:
        """SIGKILL: no code of the process runs any more, cleanups included."""
        process.dead = True
        self._graves += process.tasks
        process.tasks.clear()

    def run(self, until: float) -> None:
        """Run every event up to a moment."""
        while self._events and self._events[0][0] <= until:
            when, _, _, call, process, on_loop = heapq.heappop(self._events)
            self.now = max(self.now, when)
            if process is not None:
                if process.dead:
                    continue
                until_then = max(process.paused_until, process.blocked_until if on_loop else 0.0)
                if until_then > self.now:
                    self.at(until_then, call, process, on_loop)
                    continue
            self.process = process
            call()
            if self._failure is not None:
                raise Failure(self._failure)
        self.process = None
        self.now = max(self.now, until)

    def monotonic(self) -> float:
        """The clock of the running process, in seconds. For a dead one it is infinite."""
        if self.process is not None and self.process.dead:
            return inf
        return self.now + (BOOTED if self.process is None else BOOTED + self.process.skew)

    def end(self, processes: list[Process]) -> None:
        """Dispose of everything."""
        for process in processes:
            self.kill(process)
        self._events.clear()
        for task in self._graves:
            self.process = task.process
            task.bury()
        self.process = None
