"""One running attempt in a sync adapter: its context, its heartbeat, its copy of the response, and its settlement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.drivers import Steps
from open_idempotency._core.requests import Response
from open_idempotency._core.settlement import Fate, abort, begin, finish
from open_idempotency._core.stored_response import Capture
from open_idempotency._engine.client_left import Grace
from open_idempotency._engine.current import Running, running
from open_idempotency._engine.engine import Engine

T = TypeVar("T")
Close = Callable[[], object]


def bound(here: Running, function: Callable[..., T], *args: object) -> T:
    """Call a function with the running request bound, and leave the thread as it was: servers use it again."""
    mark = running.set(here)
    try:
        return function(*args)
    finally:
        running.reset(mark)


class BoundIterable:
    """An application's iterable, run and closed under its own request, wherever the server does so.

    ``close``: what closes it, called once; by default the iterable's own.
    """

    __slots__ = ("_close", "_here", "_iterator", "_source")

    def __init__(self, here: Running, source: Iterable[bytes], close: Close | None = None) -> None:
        self._here = here
        self._source = source
        self._close: Close | None = close or getattr(source, "close", None)
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = bound(self._here, iter, self._source)
        chunk: bytes = bound(self._here, next, self._iterator)
        return chunk

    def close(self) -> None:
        """Close it, the first time."""
        close, self._close = self._close, None
        if close is not None:
            bound(self._here, close)


class Protection:
    """What an attempt needs until it is settled. Until then its lease is renewed."""

    __slots__ = ("_engine", "attempt", "capture", "grace", "here", "settled")

    def __init__(self, engine: Engine, attempt: Attempt) -> None:
        self._engine = engine
        self.attempt = attempt
        self.here: Running = (attempt, engine)
        self.capture = Capture(attempt.policy.max_response_bytes)
        self.grace = Grace(attempt.policy.stream_grace, self.capture)
        self.settled = False

    @property
    def unsure(self) -> bool:
        """Whether the lease may have ended unnoticed: then ``begin`` has to ask before the handler starts."""
        return time.monotonic() > self.attempt.sure_until

    def begin(self) -> Response | None:
        """To be called directly before the handler starts; the response to send instead of starting it (L-10)."""
        while self.unsure:
            instead = self._engine.sync.run(begin(self.attempt))
            if instead is not None:
                self._end()
                return instead
        return None

    def _end(self) -> None:
        self.settled = True
        self._engine.heartbeat.forget(self.attempt)

    def finish(self) -> Fate | Response:
        """Settle it with the response that was captured; what is to be sent."""
        return self._settle(finish(self.attempt, self.capture.response()))

    def abort(self, error: BaseException) -> Fate | Response:
        """Settle it with the error that the handler ended with (L-04)."""
        return self._settle(abort(self.attempt, error))

    def _settle(self, steps: Steps[Fate | Response]) -> Fate | Response:
        self.settled = True
        try:
            return self._engine.sync.run(steps)
        finally:
            self._engine.heartbeat.forget(self.attempt)
