"""What differs between asyncio and trio: which one runs, threads, sleeping, and cleanup under cancellation.

asyncio is served with the standard library alone; trio is imported only where it already runs. Nothing here knows
of backends or commands.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from open_idempotency._perform.processes import PerProcess

T = TypeVar("T")
Library = Literal["asyncio", "trio"]

_THREADS = min(32, (os.cpu_count() or 1) + 4)
_executors = PerProcess(lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="open-idempotency"))
_cleanups: set[asyncio.Future[Any]] = set()


def current_library() -> Library | None:
    """The event loop library whose task calls; None outside of any."""
    trio = sys.modules.get("trio")
    # Asked first: in trio's guest mode an asyncio loop runs as well.
    if trio is not None and hasattr(trio, "lowlevel") and trio.lowlevel.in_trio_task():
        return "trio"
    # The private name is the documented-fast one: get_running_loop without the exception outside of a loop.
    return "asyncio" if asyncio._get_running_loop() is not None else None


async def sleep(seconds: float) -> None:
    """Let ``seconds`` pass without blocking the loop."""
    await _implementation().sleep(seconds)


async def in_thread(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking call in a thread.

    A cancellation does not abandon the thread: it is waited for, then the cancellation goes on.
    """
    return await _implementation().in_thread(function, args)


async def shielded(make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Carry out a cleanup to its end even while the calling task is being cancelled.

    A cancellation that arrives meanwhile is put off until the caller's next await, never lost. Raises
    ``TimeoutError`` after ``seconds``; the cleanup itself is cancelled then.
    """
    return await _implementation().shielded(make_awaitable, seconds)


class _OnAsyncio:
    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @staticmethod
    async def in_thread(function: Callable[..., T], args: tuple[Any, ...]) -> T:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(_executors.get(), function, *args)
        cancelled = await _wait_out(future, None)
        if cancelled is not None:
            _retrieve(future)
            raise cancelled
        return future.result()

    @staticmethod
    async def shielded(make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
        # A task of its own, since a cancelled task's awaits are interrupted; held here, as loops hold tasks weakly.
        task = asyncio.ensure_future(make_awaitable())
        _cleanups.add(task)
        task.add_done_callback(_cleanups.discard)
        cancelled = await _wait_out(task, asyncio.get_running_loop().time() + seconds)
        if cancelled is not None:
            _cancel_again(cancelled)
        if task.done():
            return task.result()
        task.add_done_callback(_retrieve)
        task.cancel()
        raise TimeoutError(f"the cleanup did not end within {seconds} s")


async def _wait_out(future: asyncio.Future[Any], deadline: float | None) -> asyncio.CancelledError | None:
    """Wait for a future although the task is cancelled, even repeatedly; the last cancellation, if any."""
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


def _cancel_again(cancelled: asyncio.CancelledError) -> None:
    task = asyncio.current_task()
    if task is None:
        raise cancelled
    # Counted once already; asyncio.timeout and TaskGroup compare the count.
    uncancel: Callable[[], object] | None = getattr(task, "uncancel", None)
    if uncancel is not None:
        uncancel()
    task.cancel(*cancelled.args)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


class _OnTrio:
    @staticmethod
    async def sleep(seconds: float) -> None:
        import trio

        await trio.sleep(seconds)

    @staticmethod
    async def in_thread(function: Callable[..., T], args: tuple[Any, ...]) -> T:
        import trio

        return await trio.to_thread.run_sync(function, *args)

    @staticmethod
    async def shielded(make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
        import trio

        deadline = trio.current_time() + seconds
        with trio.CancelScope(shield=True, deadline=deadline):
            return await make_awaitable()
        raise TimeoutError(f"the cleanup did not end within {seconds} s")


_IMPLEMENTATIONS: dict[Library | None, type[_OnAsyncio] | type[_OnTrio]] = {
    "asyncio": _OnAsyncio,
    "trio": _OnTrio,
}


def _implementation() -> type[_OnAsyncio] | type[_OnTrio]:
    library = _IMPLEMENTATIONS.get(current_library())
    if library is None:
        raise RuntimeError("called outside of asyncio and trio")
    return library
