"""Threads in which an asyncio loop has blocking calls made: half the cost of an executor, for backends that hop often.

One pool for each process. A thread that finds nothing to do for a while ends; one that blocks holds up nobody, since
there are as many as there are calls at the same moment. Who calls bounds that number.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from open_idempotency._perform.processes import PerProcess

T = TypeVar("T")

#: seconds after which an idle thread ends
_IDLE = 10.0


class _Call:
    """One call, its outcome, and the future that its task waits for at the moment."""

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
        try:
            self.result = self.function(self.argument)
        except BaseException as error:
            self.error = error

    def tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it the task is gone
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.done = True
        if not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """To the end, although the task is cancelled: what was begun is not abandoned."""
        try:
            await self.waiter
        except asyncio.CancelledError:
            while not self.done:
                self.waiter = self._loop.create_future()
                with suppress(asyncio.CancelledError):
                    await self.waiter
            raise


class _Thread:
    """Makes one call after the other; in ``idle`` while it has none."""

    def __init__(self, idle: list[_Thread]) -> None:
        self._idle = idle
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(target=self._work, name="open-idempotency-hop", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                call = self.calls.get(timeout=_IDLE)
            except Empty:
                with suppress(ValueError):  # somebody has just taken this thread, whose call is on its way
                    self._idle.remove(self)
                    return
                continue
            call.make()
            self._idle.append(self)
            call.tell()
            del call


_idle: PerProcess[list[_Thread]] = PerProcess(list)


async def hop(function: Callable[[Any], T], argument: Any) -> T:
    """``function(argument)`` in a thread. A cancellation waits for the end of the call, and then goes on."""
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
