"""Values that a server refuses for their size: how that is distinguished from a server that is down.

A server that gets a value over ``proto-max-bulk-len`` ends the connection, with an error or without. So do proxies with
a limit of their own. Nothing here costs anything for values below ``SMALLEST_LIMIT``.

Before a larger value the server is asked for its limit, where the user may ask (``CONFIG GET``). Otherwise the value is
tried. Where its connection ends each time, and a small call on the same key works after each time, its size is refused.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency.backends.redis.refusals import is_without_code
from open_idempotency.backends.redis.scripts import Arguments
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge

#: bytes; no server has a lower ``proto-max-bulk-len``
SMALLEST_LIMIT = 1024 * 1024
SETTING = "proto-max-bulk-len"
#: seconds until a process asks for the limit again
_EVERY = 300.0
_TRIES = 2


class Limit:
    """What one process knows about its servers' limit. ``most``: bytes; None where no server says."""

    def __init__(self) -> None:
        self.most: int | None = None
        self._next = 0.0

    def due(self) -> bool:
        """Whether the caller should ask for it now. The next caller then should not."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _EVERY
        return True

    def heed(self, replies: Sequence[Any]) -> None:
        """Take the replies of the servers to ``CONFIG GET``; the lowest limit counts."""
        limits = [int(reply[SETTING]) for reply in replies if isinstance(reply, dict) and SETTING in reply]
        self.most = min(limits, default=None)


class Actions(NamedTuple):
    """What ``steps`` yields: functions that return a result, or on asyncio an awaitable of it.

    ``send`` sends the value, ``small`` makes a small call on the same key, ``limits`` asks all servers for the limit.
    """

    send: Callable[[], Any]
    small: Callable[[], Any]
    limits: Callable[[], Any]


def size_of(arguments: Arguments) -> int:
    """The bytes of the value, which comes last."""
    last = arguments[-1] if arguments else b""
    return len(last) if isinstance(last, bytes) else 0


def steps(limit: Limit, size: int, actions: Actions) -> Generator[Callable[[], Any], Any, Any]:
    """Send a large value; its reply. Raises ``RecordTooLarge`` where its size is what is refused."""
    if limit.due():
        try:
            limit.heed((yield actions.limits))
        except BackendUnavailable:  # such as for a user who may not ask
            limit.heed(())
    if limit.most is not None and size > limit.most:
        raise RecordTooLarge(
            f"Redis: {size} bytes are over the server's {SETTING} ({limit.most}); raise it, or lower max_response_bytes"
        )
    refused: Exception | None = None
    for _ in range(_TRIES):
        try:
            return (yield actions.send)
        except BackendUnavailable as error:
            if not _may_mean_size(error.__cause__):
                raise
            refused = error
        yield actions.small  # raises where the server is away
    raise RecordTooLarge(
        f"Redis: the connection ends whenever {size} bytes are sent, and smaller calls work; raise the limit of the "
        f"server ({SETTING}) or of the proxy before it, or lower max_response_bytes"
    ) from refused


def _may_mean_size(cause: BaseException | None) -> bool:
    return isinstance(cause, RedisConnectionError) or (isinstance(cause, Exception) and is_without_code(cause))


def drive(asked: Generator[Callable[[], Any], Any, Any]) -> Any:
    """Carry the steps out."""
    try:
        action = next(asked)
        while True:
            try:
                result = action()
            except BackendUnavailable as error:
                action = asked.throw(error)
            else:
                action = asked.send(result)
    except StopIteration as end:
        return end.value


async def drive_async(asked: Generator[Callable[[], Awaitable[Any]], Any, Any]) -> Any:
    """The same on asyncio."""
    try:
        action = next(asked)
        while True:
            try:
                result = await action()
            except BackendUnavailable as error:
                action = asked.throw(error)
            else:
                action = asked.send(result)
    except StopIteration as end:
        return end.value
