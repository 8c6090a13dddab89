"""Sync calls of an asyncio loop in threads, at half the cost of an executor, for backends that make many.

There is one pool of threads for each process. A thread that is idle for a while ends. One that blocks delays no other
call, since there are as many threads as there are calls at the same moment. The callers bound that number.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from open_idempotency._runtime.processes import PerProcess

T = TypeVar("T")

#: seconds after which an idle thread ends
_IDLE = 10.0


class _Call:
    """One call, its outcome, and the future that its task awaits at the moment."""

    __slots__ = ("_loop", "argument", "done", "error", "function", "result", "waiter")

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        self.function = function
        self.argument = argument
        self._loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[None] = self._loop.create_future()
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        """In the thread."""
        try:
            self.result = self.function(self.argument)
        except BaseException as error:
            self.error = error

    def report(self) -> None:
        """In the thread: wake the task."""
        with suppress(RuntimeError):  # the loop is closed, and its task is gone
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.done = True
        if not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the end of the call, even if the task is cancelled: a call that has begun is not abandoned."""
        try:
            await self.waiter
        except asyncio.CancelledError:
            while not self.done:
                self.waiter = self._loop.create_future()
                with suppress(asyncio.CancelledError):
                    await self.waiter
            raise


class _Thread:
    """Makes one call after the other; it is in ``idle`` while it has none."""

    def __init__(self, idle: list[_Thread]) -> None:
        self._idle = idle
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(target=self._work, name="open-idempotency-call", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                call = self.calls.get(timeout=_IDLE)
            except Empty:
                with suppress(ValueError):  # it was just taken, and its call is on its way
                    self._idle.remove(self)
                    return
                continue
            call.make()
            self._idle.append(self)
            call.report()
            del call


_idle: PerProcess[list[_Thread]] = PerProcess(list)


async def run_in_thread(function: Callable[[Any], T], argument: Any) -> T:
    """``function(argument)`` in a thread. A cancellation takes effect after the end of the call."""
    call = _Call(function, argument)
    idle = _idle.get()
    try:
        thread = idle.pop()
    except IndexError:
        thread = _Thread(idle)
    thread.calls.put(call)
    await call.wait()
    if call.error is not None:
        raise call.error
    result: T = call.result
    return result
