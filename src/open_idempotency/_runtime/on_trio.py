"""Threads, sleeping, signals and shielded cleanup on trio; see ``loops``.

Imported when a trio task first asks for one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class Signal:
    """See ``loops.Signal``."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self) -> None:
        """See ``loops.Signal``."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._event.set)

    async def wait(self, seconds: float) -> bool:
        """See ``loops.Signal``."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        return self._event.is_set()


async def sleep(seconds: float) -> None:
    """See ``loops.sleep``."""
    await trio.sleep(seconds)


async def in_thread(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    """See ``loops.in_thread``."""
    return await trio.to_thread.run_sync(function, *args)


async def shielded(make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
    """See ``loops.shielded``."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
        return await make_awaitable()
    raise TimeoutError(f"the cleanup did not end within {seconds} s")


def spawn(make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]:
    """See ``loops.spawn``."""
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await make_awaitable()

    trio.lowlevel.spawn_system_task(run)
    return scope.cancel
