"""The awaited half of a streaming response: copied as it passes, its end held until the answer is durable (R-03, R-04).

Django sends each part at once and ends the message when the iterator ends, so only that end is held back; and, where
there is a Content-Length, the part that completes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from open_idempotency._core.requests import Answer
from open_idempotency._core.settlement import ANSWERED, Fate
from open_idempotency._perform.context import Running, running
from open_idempotency._perform.telling import report_late_error
from open_idempotency._wsgi.protection import Close
from open_idempotency.django.protection import Protection
from open_idempotency.exceptions import LeaseLost


class BoundAsyncIterator:
    """An asynchronous iterator whose every step runs under its own request, wherever Django consumes it."""

    __slots__ = ("_here", "_source")

    def __init__(self, here: Running, source: AsyncIterator[bytes]) -> None:
        self._here = here
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        mark = running.set(self._here)
        try:
            return await self._source.__anext__()
        finally:
            running.reset(mark)


class AsyncLiveBody:
    """Iterates over the bytes that may leave. ``close`` must be called; ``cleanup`` is then called last.

    ``verdict``: the fate of what was sent; or, where nothing has left, an answer to send instead.
    """

    __slots__ = ("_cleanup", "_closed", "_ended", "_ready", "_source", "begun", "protection", "verdict")

    def __init__(self, protection: Protection, source: AsyncIterator[bytes], cleanup: Close) -> None:
        self.protection = protection
        self.verdict: Fate | Answer | None = None
        #: the status and the header fields may have left
        self.begun = False
        self._source = BoundAsyncIterator(protection.here, source)
        self._cleanup = cleanup
        self._ready = b""
        self._ended = False
        self._closed = False

    async def prepare(self) -> None:
        """Go on until something may leave, or all is known: before that the status can still be changed."""
        self._ready = await self._pull()
        self.begun = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        ready, self._ready = self._ready, b""
        ready = ready or await self._pull()
        if not ready:
            raise StopAsyncIteration
        return ready

    async def _pull(self) -> bytes:
        """The next bytes that may leave; none at the end, or where another answer stands in."""
        if self._ended:
            return b""
        try:
            chunk = await self._next()
            if not self.protection.settled:
                await self._take(chunk)
        except BaseException as error:
            await self._fail(error)
            return b""
        self._ended = self._ended or not chunk
        return b"" if isinstance(self.verdict, Answer) else chunk

    async def _next(self) -> bytes:
        """The next part that is not empty; none at the end."""
        async for chunk in self._source:
            if chunk:
                return chunk
        return b""

    async def _take(self, chunk: bytes) -> None:
        capture = self.protection.capture
        capture.add(chunk)
        if chunk and not capture.whole:
            return
        self.verdict = await self.protection.afinish()
        if isinstance(self.verdict, Answer):
            self._ended = True
            if self.begun:
                raise LeaseLost("this stream does not count, as the log says before; its end is withheld")

    async def _fail(self, error: BaseException) -> None:
        """The view's iterator raised or was cancelled: settle the attempt and raise on, unless an answer stands in."""
        self._ended = True
        if not self.protection.settled:
            verdict = await self.protection.aabort(error)
            if isinstance(verdict, Answer) and isinstance(error, ANSWERED) and not self.begun:
                self.verdict = verdict
                return
        report_late_error(self.protection.attempt, error)
        raise error

    async def drain(self) -> None:
        """Run the view's iterator to its end without a client; one without a near end is stopped (L-05)."""
        protection = self.protection
        while await self._pull():
            if not protection.settled and (protection.capture.outgrown or protection.overdue):
                await protection.aabort(GeneratorExit("the client left a stream that does not end"))
                return

    def close(self) -> None:
        """End it. The client left: like the view itself, its iterator is not run on without one (L-04)."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.protection.settled:
                self.protection.abort(GeneratorExit("the client left in the middle of the stream"))
        finally:
            self._cleanup()
