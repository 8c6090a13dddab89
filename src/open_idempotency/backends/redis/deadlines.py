"""Deadlines of calls, whatever redis-py does within a call: retries, redirections, discovery.

A thread has at most one deadline, which ``Deadline`` sets and ``DeadlineConnection`` keeps: it gives no step more time
than is left until the deadline, and none after it. On asyncio the whole call is cancelled instead: see ``limited``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from math import inf
from types import TracebackType
from typing import TypeVar
from weakref import ref

from redis.exceptions import TimeoutError as RedisTimeoutError

T = TypeVar("T")
LATE = "no reply in time"


class Deadline:
    """``with Deadline(2.0):`` ends the Redis calls of its block after 2 seconds. A deadline that is nearer stays."""

    __slots__ = ("__weakref__", "_before", "_seconds", "until")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: _Lookup = _none
        #: a time of ``time.monotonic``
        self.until = inf

    def __enter__(self) -> None:
        self._before = current.deadline
        outer = self._before()
        until = time.monotonic() + self._seconds
        self.until = until if outer is None else min(until, outer.until)
        current.deadline = ref(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current.deadline = self._before


_Lookup = Callable[[], Deadline | None]


def _none() -> None:
    return None


class _Thread(threading.local):
    # Weak: a signal's handler may raise while a block is left. The deadline of that block then ends with the object.
    deadline: _Lookup = staticmethod(_none)


#: what ``Deadline`` sets; read directly, since it is read in each step of each call
current = _Thread()


def seconds_left() -> float | None:
    """Seconds until this thread's deadline; None where there is none."""
    deadline = current.deadline()
    return None if deadline is None else deadline.until - time.monotonic()


async def limited(seconds: float, work: Awaitable[T]) -> T:
    """Await ``work`` on asyncio for at most ``seconds``, then cancel it and raise redis-py's ``TimeoutError``."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RedisTimeoutError(LATE) from None
