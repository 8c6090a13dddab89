"""Threads whose every step is chosen by a seed: locks and the clock are simulated, the code between them is real.

Only one thread runs at a time. It stops before each line of the modules under test, and wherever it waits for a lock.
The schedule then chooses which thread continues, whether time passes, whether the whole process pauses, and whether a
signal handler raises at that line. One seed is one interleaving, so a failure can be repeated.
"""

from __future__ import annotations

import linecache
import random
import sys
import threading
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

#: real seconds, after which a run that hangs is given up
_PATIENCE = 20.0


class Alarm(Exception):
    """The exception that the signal handler raises."""


def may_raise_at(frame: FrameType) -> bool:
    """Whether a signal handler can raise at this line.

    Handlers run after calls, so never between the end of a ``with`` block and the release of its lock, nor between its
    beginning and a ``try`` that comes first in it.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return not line.startswith(("with ", "try:"))


class Stuck(AssertionError):
    """Every thread waits, and none of them has a timeout."""


class SimulatedLock:
    """A simulated ``threading.Lock``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        until = None if timeout < 0 else self._world.now + timeout
        if blocking and not self._world.wait(lambda: not self._held, until):
            return False
        if self._held:
            return False
        self._held = True
        return True

    def release(self) -> None:
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Thread:
    """One simulated thread: a real thread that runs from the release of ``go`` until it releases ``back``."""

    def __init__(self, world: World, number: int, work: Callable[[], None]) -> None:
        self.number = number
        self.is_over = False
        self.waits_for: Callable[[], bool] | None = None
        self.until: float | None = None
        self.waited = 0.0
        #: lines until the signal arrives; None for never
        self.alarm_in: int | None = None
        self.error: BaseException | None = None
        self.go = threading.Semaphore(0)
        self._world = world
        self._work = work
        self.real = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.go.acquire()
        sys.settrace(self._world.trace)
        try:
            self._work()
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            self.is_over = True
            self._world.back.release()

    def may_go_on(self, now: float) -> bool:
        if self.is_over:
            return False
        if self.waits_for is None or self.waits_for():
            return True
        return self.until is not None and self.until <= now


class World:
    """Runs threads by a seed. ``traced``: the modules whose lines are steps. ``pauses``: the seconds of a pause."""

    def __init__(self, seed: int, *traced: Any, pauses: tuple[float, ...] = (), alarms: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.back = threading.Semaphore(0)
        self._files = {module.__file__ for module in traced}
        self._pauses = pauses
        self._alarms = alarms
        self._threads: list[_Thread] = []
        self._current: _Thread | None = None
        self._sticks = self.random.choice((0.0, 0.5, 0.9))

    @property
    def threading(self) -> Any:
        """The replacement of the ``threading`` module in the code under test."""
        return SimpleNamespace(Lock=lambda: SimulatedLock(self))

    @property
    def time(self) -> Any:
        """The replacement of the ``time`` module in the code under test."""
        return SimpleNamespace(monotonic=lambda: self.now)

    def start(self, work: Callable[[], None], spared: bool = False) -> None:
        """Add a thread that starts in ``run``. ``spared``: no signal is delivered to it."""
        thread = _Thread(self, len(self._threads), work)
        if self._alarms and not spared and self.random.random() < 0.5:
            thread.alarm_in = self.random.randrange(120)
        self._threads.append(thread)
        thread.real.start()

    def run(self) -> None:
        """Run until all threads have ended; raise the exception that ended one of them, or ``Stuck``."""
        while any(not thread.is_over for thread in self._threads):
            if self._pauses and self.random.random() < 0.02:
                self.now += self.random.choice(self._pauses)
            able = [thread for thread in self._threads if thread.may_go_on(self.now)]
            if not able or self.random.random() < 0.02:
                self._let_time_pass(bool(able))
                continue
            if self._current not in able or self.random.random() >= self._sticks:
                self._current = self.random.choice(able)
            assert self._current is not None
            self._current.go.release()
            if not self.back.acquire(timeout=_PATIENCE):
                raise Stuck("a thread does not come back")
        for thread in self._threads:
            if thread.error is not None:
                raise thread.error

    def _let_time_pass(self, some_are_able: bool) -> None:
        ends = [
            thread.until
            for thread in self._threads
            if not thread.is_over and thread.until is not None and thread.until > self.now
        ]
        if ends:
            self.now = min(ends)
        elif not some_are_able:
            raise Stuck("every thread waits for ever")

    # In the simulated threads

    def wait(self, condition: Callable[[], bool], until: float | None) -> bool:
        """Wait until the condition holds or the timeout ends; return whether it holds."""
        thread = self._current
        if thread is None:  # outside of a run
            return condition()
        thread.waits_for, thread.until = condition, until
        began = self.now
        self.step()
        thread.waits_for = thread.until = None
        if until is not None:
            thread.waited += min(self.now, until) - began
        return condition()

    @property
    def waited(self) -> float:
        """How many seconds the running thread has waited so far, in waits with a timeout of their own."""
        assert self._current is not None
        return self._current.waited

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.wait(lambda: False, self.now + seconds)

    def step(self) -> None:
        """Let the schedule choose the thread that continues."""
        thread = self._current
        assert thread is not None
        self.back.release()
        thread.go.acquire()

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """See ``sys.settrace``."""
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line":
            self.step()
            self._alarm(frame)
        return self.trace

    def _alarm(self, frame: FrameType) -> None:
        thread = self._current
        assert thread is not None
        if thread.alarm_in is None:
            return
        thread.alarm_in -= 1
        if thread.alarm_in < 0 and may_raise_at(frame):
            thread.alarm_in = None
            raise Alarm
