"""What differs between asyncio and trio: which one runs, threads, sleeping, and cleanup under cancellation.

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
    """Wakes one waiting task; used once."""

    def set(self) -> None:
        """Wake it, now or when it comes to wait. From any thread; not an error after its loop has ended."""

    async def wait(self, seconds: float) -> bool:
        """Wait for ``set``, for ``seconds`` at most; whether it came."""
        ...


class Implementation(Protocol):
    """What ``on_asyncio`` and ``on_trio`` have in common; the functions below say what each one promises."""

    @property
    def Signal(self) -> Callable[[], Signal]: ...  # noqa: N802 (a class)

    async def sleep(self, seconds: float) -> None: ...

    async def in_thread(self, function: Callable[..., T], args: tuple[Any, ...]) -> T: ...

    async def shielded(self, make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T: ...

    def spawn(self, make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]: ...


def current_library() -> Library | None:
    """The event loop library whose task calls; None outside of any."""
    # Asked first: in trio's guest mode an asyncio loop runs as well.
    if on_trio():
        return "trio"
    # A loop runs only where asyncio was imported. The private name is the documented-fast one: get_running_loop
    # without the exception outside of a loop.
    running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return "asyncio" if running_loop is not None and running_loop() is not None else None


def on_trio() -> bool:
    """Whether a task of trio's calls; the cheaper question for what awaits asyncio as a matter of course."""
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

    For use while an error is on its way out, and raised on afterwards: a cancellation that arrives meanwhile adds
    nothing to that error. To deliver it once more would hit whatever runs behind the scope that was cancelled.
    Raises ``TimeoutError`` after ``seconds``; the cleanup itself is cancelled then.
    """
    return await _implementation().shielded(make_awaitable, seconds)


def spawn(make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]:
    """Begin something beside the calling task; what ends it early. It must not raise."""
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
