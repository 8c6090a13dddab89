"""Threads, sleeping and shielded cleanup on trio; see ``loops``. Imported when a trio task first asks for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")


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
