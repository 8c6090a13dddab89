"""One protected request of a sync adapter: its attempt, its settlement, and its response body (R-03, R-04).

WSGI does not say which chunk is the last. A Content-Length says it. Without one each chunk is held until the next one
is there, so the last chunk is sent when the response is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.drivers import Steps
from open_idempotency._core.requests import Headers, Response
from open_idempotency._core.settlement import REPLACED, Fate, abort, begin, finish
from open_idempotency._core.stored_response import Capture
from open_idempotency._engine.client_left import ClientLeft, Grace
from open_idempotency._engine.current import Running, running
from open_idempotency._engine.engine import Engine
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._runtime import clocks
from open_idempotency.exceptions import LeaseLost

T = TypeVar("T")
Close = Callable[[], object]


def bound(here: Running, function: Callable[..., T], *args: object) -> T:
    """Call a function with the running request bound, and restore the thread afterwards: servers use it again."""
    mark = running.set(here)
    try:
        return function(*args)
    finally:
        running.reset(mark)


class BoundIterable:
    """The iterable of an application, run and closed under its own request, wherever the server does so.

    ``close``: the function that closes it, called once; by default the iterable's own.
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
        """Close the iterable, the first time."""
        close, self._close = self._close, None
        if close is not None:
            bound(self._here, close)


class Protection:
    """An attempt until it is settled. Until then its lease is renewed."""

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
        """Whether the lease may have ended unnoticed: then ``begin`` renews it before the handler starts."""
        return clocks.elapsed() > self.attempt.sure_until

    def begin(self) -> Response | None:
        """To be called directly before the handler starts. Returns the response to send instead (L-10), or None."""
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
        """Settle the attempt with the response that was captured. Returns what is to be sent."""
        return self._settle(finish(self.attempt, self.capture.response()))

    def abort(self, error: BaseException) -> Fate | Response:
        """Settle the attempt with the error that the handler raised (L-04)."""
        return self._settle(abort(self.attempt, error))

    def _settle(self, steps: Steps[Fate | Response]) -> Fate | Response:
        self.settled = True
        try:
            return self._engine.sync.run(steps)
        finally:
            self._engine.heartbeat.forget(self.attempt)


class LiveBody:
    """Iterates over the bytes that may be sent. ``close`` must be called; it calls ``cleanup`` last.

    After the end ``verdict`` is the fate of what was sent, or a response to send instead, if nothing was sent.
    """

    __slots__ = (
        "_cleanup", "_closed", "_held", "_ready", "_source", "begun", "ended", "protection", "taken", "verdict",
    )  # fmt: skip

    def __init__(self, protection: Protection, cleanup: Close) -> None:
        self.protection = protection
        self.verdict: Fate | Response | None = None
        #: the handler has made some of its body; some of it was sent; all of it was sent
        self.taken = False
        self.begun = False
        self.ended = False
        self._cleanup = cleanup
        self._source: BoundIterable | None = None
        self._held = b""
        self._ready = b""
        self._closed = False

    def attach(self, source: BoundIterable) -> None:
        """Take over the handler's iterable."""
        self._source = source

    def prepare(self) -> None:
        """Iterate until something may be sent, or all is known: before that the status can still be changed."""
        self._ready = self._pull()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        ready, self._ready = self._ready, b""
        if not ready and not self.ended:
            ready = self._pull()
        if not ready:
            raise StopIteration
        return ready

    def _pull(self) -> bytes:
        """The next bytes that may be sent; none at the end, or if another response replaces this one."""
        assert self._source is not None
        try:
            for chunk in self._source:
                ready = self.take(chunk)
                if ready or self.ended:
                    return ready
            return self._end()
        except BaseException as error:
            self.fail(error)
            return b""

    def take(self, chunk: bytes) -> bytes:
        """Copy a chunk. Returns the bytes that may be sent because of it."""
        if self.protection.settled:
            return b"" if self.ended else chunk
        self._copy(chunk)
        if not chunk:
            return b""
        self.taken = True
        capture = self.protection.capture
        if capture.whole:
            self._finish()
            ready = b"" if self.ended else chunk
        elif capture.open_ended and not _is_event_stream(capture.headers):
            ready, self._held = self._held, chunk
        else:
            ready = chunk
        self.begun = self.begun or bool(ready)
        return ready

    def take_whole(self, chunks: list[bytes] | tuple[bytes, ...]) -> None:
        """Take a body that is complete, and settle the attempt before any of it is sent."""
        for chunk in chunks:
            self._copy(chunk)
        self._finish()
        self.ended = True

    def fail(self, error: BaseException) -> None:
        """The handler raised: settle the attempt and re-raise (L-04), unless another response is sent (L-03, S-04)."""
        self.ended = True
        if not self.protection.settled:
            closed = isinstance(error, ClientLeft)
            verdict = self.protection.abort(self.protection.grace.error() if closed else error)
            if isinstance(verdict, Response) and isinstance(error, REPLACED) and not self.begun:
                self.verdict = verdict
                return
        report_late_error(self.protection.attempt, error)
        raise error

    def close(self) -> None:
        """End the body. A stream whose client left may first go on to its own end, within its grace (L-05a)."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.protection.settled and self._source is not None:
                self._drain(self._source)
        finally:
            try:
                if self._source is not None:
                    self._close_source(self._source)
            finally:
                self._cleanup()

    def _close_source(self, source: BoundIterable) -> None:
        try:
            source.close()
        except BaseException as error:
            report_late_error(self.protection.attempt, error)
            raise

    def _drain(self, source: BoundIterable) -> None:
        """Run the handler on without a client, in this thread, since its resources may belong to the thread.

        So the grace is checked between two chunks. A response that reaches its end late is whole, and is stored.
        """
        protection = self.protection
        protection.grace.begin()
        try:
            while not protection.grace.over:
                chunk = next(source, None)
                if chunk is None:
                    self._check_started()
                    protection.finish()
                    return
                self._copy(chunk)
            protection.abort(protection.grace.error())
        except BaseException as error:
            self.fail(error)

    def _copy(self, chunk: bytes) -> None:
        if not isinstance(chunk, bytes):
            raise TypeError(f"a WSGI body is bytes, not {type(chunk).__name__}")
        if chunk:
            self._check_started()
            self.protection.capture.add(chunk)

    def _check_started(self) -> None:
        if not self.protection.capture.status:
            raise RuntimeError("the application did not call start_response before its body")

    def _end(self) -> bytes:
        if not self.protection.settled:
            self._finish()
        self.ended = True
        held, self._held = self._held, b""
        return b"" if isinstance(self.verdict, Response) else held

    def _finish(self) -> None:
        self._check_started()
        self.verdict = self.protection.finish()
        if isinstance(self.verdict, Response):
            self.ended = True
            if self.begun:
                raise LeaseLost(
                    "another attempt owns the record, as logged before; the end of this response is withheld"
                )


def _is_event_stream(headers: Headers) -> bool:
    return any(n.lower() == b"content-type" and v.lower().startswith(b"text/event-stream") for n, v in headers)
