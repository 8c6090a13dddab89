"""Threads, sleeping, signals and shielded cleanup on asyncio, with the standard library alone; see ``loops``.

Imported when an asyncio task first asks for one of them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from open_idempotency._runtime.processes import PerProcess

T = TypeVar("T")

_THREADS = min(32, (os.cpu_count() or 1) + 4)
_executors = PerProcess(lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="open-idempotency"))
#: how often ``within`` looks
_LOOKS = 8
# References to tasks, since loops hold tasks weakly.
_held: set[asyncio.Future[Any]] = set()


class Signal:
    """See ``loops.Signal``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] = self._loop.create_future()

    def set(self) -> None:
        """See ``loops.Signal``."""
        with suppress(RuntimeError):  # the loop is closed, and with it the task is gone
            self._loop.call_soon_threadsafe(self._end, True)

    async def wait(self, seconds: float) -> bool:
        """See ``loops.Signal``."""
        timer = self._loop.call_later(seconds, self._end, False)
        try:
            return await self._future
        finally:
            timer.cancel()

    def _end(self, came: bool) -> None:
        if not self._future.done():
            self._future.set_result(came)


async def sleep(seconds: float) -> None:
    """See ``loops.sleep``."""
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    """See ``loops.in_thread``."""
    future = asyncio.wrap_future(_submitted(function, args))
    cancelled = await _wait_out(future, None)
    if cancelled is not None:
        _retrieve(future)
        raise cancelled
    return future.result()


def _submitted(function: Callable[..., T], args: tuple[Any, ...]) -> Future[T]:
    """The future of a call in the executor."""
    future: Future[T] = Future()
    try:
        _executors.get().submit(_make, future, function, args)
    except RuntimeError:
        # The executor has no thread for the call, but has queued it and would make it later. No caller would wait for
        # that call, such as a late claim. So it is cancelled, unless a thread has begun it.
        if not future.cancel():
            return future
    except BaseException:
        future.cancel()
        raise
    else:
        return future
    # At the end of the interpreter the executor takes nothing more, although loops of other threads still run.
    future = Future()
    threading.Thread(target=_make, args=(future, function, args), name="open-idempotency", daemon=True).start()
    return future


def _make(future: Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


async def shielded(make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
    """See ``loops.shielded``."""
    # A task of its own, since a cancelled task's awaits are interrupted.
    task = asyncio.ensure_future(make_awaitable())
    _held.add(task)
    task.add_done_callback(_held.discard)
    await _wait_out(task, asyncio.get_running_loop().time() + seconds)
    if task.done():
        return task.result()
    task.add_done_callback(_retrieve)
    task.cancel()
    raise TimeoutError(f"the cleanup did not end within {seconds} s")


async def within(awaitable: Awaitable[T], seconds: float) -> T:
    """Await for at most ``seconds``, then cancel the awaitable and raise ``TimeoutError``.

    Only time in which the loop runs counts: a pause of any length between two looks counts as one look. After a pause,
    data that arrived meanwhile is not read yet, so a clock would end a wait for data that is already there.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        for _ in range(_LOOKS):
            done, _ = await asyncio.wait((task,), timeout=seconds / _LOOKS)
            if done:
                return task.result()
    except BaseException:
        task.cancel()
        raise
    task.cancel()
    await asyncio.wait((task,))
    if task.cancelled():
        raise TimeoutError(f"not within {seconds} s")
    return task.result()


def spawn(make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]:
    """See ``loops.spawn``."""
    task = asyncio.ensure_future(make_awaitable())
    _held.add(task)
    task.add_done_callback(_held.discard)
    return task.cancel


async def _wait_out(future: asyncio.Future[Any], deadline: float | None) -> asyncio.CancelledError | None:
    """Wait for a future even if the task is cancelled, also repeatedly. Returns the last cancellation, if any."""
    cancelled: asyncio.CancelledError | None = None
    remaining: float | None = None
    while not future.done():
        if deadline is not None:
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                break
        try:
            await asyncio.wait((future,), timeout=remaining)
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
