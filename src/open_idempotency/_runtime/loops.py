"""The differences between asyncio and trio: which one runs, threads, sleeping, and cleanup under cancellation.

Neither library is imported here: each has a module of its own, loaded when a task of that library first asks.
Nothing here knows of backends or commands.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")
Library = Literal["asyncio", "trio"]


class Signal(Protocol):
    """Wakes one waiting task. Each object is used once."""

    def set(self) -> None:
        """Wake the task, now or when it begins to wait. From any thread; no error if its loop has ended."""

    async def wait(self, seconds: float) -> bool:
        """Wait for ``set``, for ``seconds`` at most. Returns whether it was called."""
        ...


class Implementation(Protocol):
    """The common interface of ``on_asyncio`` and ``on_trio``. The functions of this module document it."""

    @property
    def Signal(self) -> Callable[[], Signal]: ...  # noqa: N802 (a class)

    async def sleep(self, seconds: float) -> None: ...

    async def in_thread(self, function: Callable[..., T], args: tuple[Any, ...]) -> T: ...

    async def shielded(self, make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T: ...

    def spawn(self, make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]: ...


def current_library() -> Library | None:
    """The library of the calling task: asyncio or trio; None outside a task of either."""
    # Trio is checked first: in its guest mode an asyncio loop runs as well.
    if on_trio():
        return "trio"
    # A loop runs only if asyncio was imported. The private function is get_running_loop without the exception outside a
    # loop, which makes it faster.
    running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return "asyncio" if running_loop is not None and running_loop() is not None else None


def on_trio() -> bool:
    """Whether a trio task calls. Cheaper than ``current_library``, for code that takes asyncio as its default."""
    trio = sys.modules.get("trio")
    return trio is not None and hasattr(trio, "lowlevel") and bool(trio.lowlevel.in_trio_task())


async def sleep(seconds: float) -> None:
    """Let ``seconds`` pass without blocking the loop."""
    await _implementation().sleep(seconds)


def signal() -> Signal:
    """A signal for a task of the running loop."""
    return _implementation().Signal()


async def in_thread(function: Callable[..., T], /, *args: Any) -> T:
    """Run a sync call in a thread.

    A cancellation does not abandon the thread: it is waited for, then the cancellation goes on.
    """
    return await _implementation().in_thread(function, args)


async def shielded(make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Carry out a cleanup to its end even while the calling task is being cancelled.

    Use it while an error is handled that is raised again afterwards. A cancellation that arrives meanwhile is dropped:
    delivered later, it would hit code after the scope that was cancelled. Raises ``TimeoutError`` after ``seconds``;
    then the cleanup itself is cancelled.
    """
    return await _implementation().shielded(make_awaitable, seconds)


def spawn(make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]:
    """Run an awaitable, which must not raise, beside the calling task. Returns the function that ends it early."""
    return _implementation().spawn(make_awaitable)


def _on_asyncio() -> Implementation:
    from open_idempotency._runtime import on_asyncio

    return on_asyncio


def _on_trio() -> Implementation:
    from open_idempotency._runtime import on_trio

    return on_trio


_IMPLEMENTATIONS: dict[Library, Callable[[], Implementation]] = {"asyncio": _on_asyncio, "trio": _on_trio}


def _implementation() -> Implementation:
    library = current_library()
    if library is None:
        raise RuntimeError("called outside of asyncio and trio")
    return _IMPLEMENTATIONS[library]()
