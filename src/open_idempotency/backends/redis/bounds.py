"""Time limits that hold whatever the client library does within a call: tries, redirections, discoveries.

A thread has at most one deadline, which ``within`` sets; the connections of ``bounded`` classes give no step more time
than is left, and none at all afterwards. On asyncio a whole call is cancelled instead.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from math import inf
from types import TracebackType
from typing import Any, TypeVar
from weakref import ref

import redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from open_idempotency.backends.redis.wire import packed

T = TypeVar("T")
_SCRIPTS = ("EVALSHA", "EVAL")
_LATE = "no answer in time"


class within:  # noqa: N801 (read as a word: "with within(2.0):")
    """Give what follows in this thread at most ``seconds``; a deadline that is nearer stays."""

    __slots__ = ("__weakref__", "_before", "_seconds", "until")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: _Deadline = _nothing
        #: on the monotonic clock
        self.until = inf

    def __enter__(self) -> None:
        self._before = _HERE.deadline
        outer = self._before()
        until = time.monotonic() + self._seconds
        self.until = until if outer is None else min(until, outer.until)
        _HERE.deadline = ref(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _HERE.deadline = self._before


_Deadline = Callable[[], within | None]


def _nothing() -> None:
    return None


class _Here(threading.local):
    # Weak: a signal's handler may raise as a block is left, and what it was given then ends with it.
    deadline: _Deadline = staticmethod(_nothing)


_HERE = _Here()


def seconds_left() -> float | None:
    """Until this thread's deadline; None where there is none."""
    deadline = _HERE.deadline()
    return None if deadline is None else deadline.until - time.monotonic()


async def within_async(seconds: float, work: Awaitable[T]) -> T:
    """The same for one awaitable on asyncio, which is cancelled then."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RedisTimeoutError(_LATE) from None


class BoundedConnection(redis.Connection):
    """A connection that knows the deadline."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)  # type: ignore[no-untyped-call]  # redis-py's
        self._connects_within: float = arguments["socket_connect_timeout"]
        self._answers_within: float = arguments["socket_timeout"]

    def connect(self) -> None:
        if self._sock is None:  # asked for before each command
            self._hurry()
            super().connect()  # type: ignore[no-untyped-call]  # redis-py's

    def send_command(self, *words: Any, **options: Any) -> None:
        # The library's own way of packing takes longer, the more words there are.
        if words[0] in _SCRIPTS:
            self.send_packed_command([packed(words)], options.get("check_health", True))
        else:
            super().send_command(*words, **options)  # type: ignore[no-untyped-call]  # redis-py's

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._hurry()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]  # redis-py's

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        self._hurry()
        return super().read_response(*arguments, **options)

    def _hurry(self) -> None:
        left = seconds_left()
        if left is None:
            left = self._answers_within
        elif left <= 0:
            # What was sent and is not answered must not meet the next caller.
            self.disconnect()  # type: ignore[no-untyped-call]  # redis-py's
            raise RedisTimeoutError(_LATE)
        self.socket_connect_timeout = min(self._connects_within, left)
        self.socket_timeout = min(self._answers_within, left)
        sock: socket.socket | None = self._sock
        # Nearly always it has what one answer may take. To ask it is no call of the system; to set it is.
        if sock is not None and sock.gettimeout() != self.socket_timeout:
            sock.settimeout(self.socket_timeout)


class BoundedSSLConnection(BoundedConnection, redis.SSLConnection):
    """The same with TLS."""
