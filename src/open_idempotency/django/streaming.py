"""A running attempt of a Django view, settled sync or async, and its async response stream (R-03).

A stream is copied while it is sent, and its end is held until the response is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from open_idempotency import _wsgi
from open_idempotency._core.commands import Steps
from open_idempotency._core.keys import with_echo
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import REPLACED, Fate, abort, begin, finish
from open_idempotency._engine import shutdown
from open_idempotency._engine.engine import Running, running
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._wsgi import Close
from open_idempotency.exceptions import LeaseLost


class Protection(_wsgi.Protection):
    """The protection of the sync adapters, with awaited methods added."""

    __slots__ = ()

    async def abegin(self) -> Response | None:
        """``begin``, awaited."""
        while self.unsure:
            instead = await self._engine.aio.run(begin(self.attempt))
            if instead is not None:
                self._end()
                return instead if self.attempt.echo is None else with_echo(instead, self.attempt.echo)
        return None

    async def afinish(self, *, guarded: bool = False) -> Fate | Response:
        """``finish``, awaited. ``guarded``: although this task is being cancelled."""
        return await self._asettle(finish(self.attempt, self.capture.response()), guarded)

    async def aabort(self, error: BaseException) -> Fate | Response:
        """``abort``, awaited; guarded unless the error is an ordinary exception (L-04)."""
        return await self._asettle(abort(self.attempt, error), not isinstance(error, Exception))

    async def _asettle(self, steps: Steps[Fate | Response], guarded: bool) -> Fate | Response:
        self.settled = True
        try:
            verdict = await self._engine.aio.run(steps, guarded=guarded)
        finally:
            self._engine.heartbeat.forget(self.attempt)
        return self._echoing(verdict)


_logger = logging.getLogger("open_idempotency")


class BoundAsyncIterator:
    """An async iterator whose steps run in the context of their request, wherever Django consumes it."""

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


class _Parts:
    """Runs an async iterator in a task of its own, one part at a time.

    When the client leaves, Django cancels the task that sends the stream. The iterator may be in the middle of an
    effect, so it is not cancelled with that task.
    """

    __slots__ = ("_demand", "_here", "_part", "_source", "_task")

    def __init__(self, here: Running, source: AsyncIterator[bytes]) -> None:
        self._here = here
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self._part: asyncio.Future[bytes] | None = None
        self._demand: asyncio.Future[None]

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the iterator; None before the first part was asked for."""
        return None if self._task is None else self._task.get_loop()

    def ask(self) -> asyncio.Future[bytes]:
        """The next part that is not empty, or an empty one at the end. The same part is returned until it is taken."""
        if self._part is None:
            self._part = asyncio.get_running_loop().create_future()
            if self._task is None:
                self._task = asyncio.ensure_future(self._run())
            else:
                self._demand.set_result(None)
        return self._part

    def take(self) -> bytes:
        """The part that was asked for, which must be done. Raises what the iterator raised."""
        part, self._part = self._part, None
        assert part is not None
        return part.result()

    async def stop(self) -> None:
        """Cancel the iterator, and wait for its end; a cancellation of the caller ends the wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def stop_soon(self) -> None:
        """``stop`` from another thread, without the wait."""
        if self._task is not None and not self._task.done():
            with suppress(RuntimeError):  # the loop is closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def _run(self) -> None:
        running.set(self._here)
        while True:
            self._demand = asyncio.get_running_loop().create_future()
            try:
                chunk = await self._next()
            except BaseException as error:
                self._fail(error)
                return
            assert self._part is not None
            self._part.set_result(chunk)
            if not chunk:
                return
            try:
                await self._demand
            except asyncio.CancelledError:  # it does not reach the iterator, which is between two parts
                await self._close()
                raise

    async def _close(self) -> None:
        """Close the iterator. An error of it is logged, since nobody waits for another part."""
        close: Callable[[], Awaitable[None]] | None = getattr(self._source, "aclose", None)
        if close is not None:
            try:
                await close()
            except Exception:
                _logger.exception("a stream raised when it was closed")

    async def _next(self) -> bytes:
        async for chunk in self._source:
            if chunk:
                return chunk
        return b""

    def _fail(self, error: BaseException) -> None:
        part = self._part
        if part is not None and not part.done():
            part.set_exception(error)
            part.exception()  # marked as retrieved, also if the part is never taken


class AsyncLiveBody:
    """Iterates over the bytes that may be sent. ``close`` must be called; it calls ``cleanup`` last.

    ``verdict``: the fate of the sent response, or a response to send instead if nothing was sent.
    """

    __slots__ = ("_cleanup", "_closed", "_ended", "_parts", "_ready", "begun", "protection", "verdict")

    def __init__(self, protection: Protection, source: AsyncIterator[bytes], cleanup: Close) -> None:
        self.protection = protection
        self.verdict: Fate | Response | None = None
        #: the status and the headers may have been sent
        self.begun = False
        self._parts = _Parts(protection.here, source)
        self._cleanup = cleanup
        self._ready = b""
        self._ended = False
        self._closed = False

    async def prepare(self) -> None:
        """Iterate until the first bytes may be sent or the iterator has ended: until then the status can be changed."""
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
        """The next bytes that may be sent; none at the end, or if another response replaces this one."""
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
        return b"" if isinstance(self.verdict, Response) else chunk

    async def _next(self) -> bytes:
        try:
            await asyncio.wait((self._parts.ask(),))
        except asyncio.CancelledError:
            await self.drain()
            raise
        return self._parts.take()

    async def _take(self, chunk: bytes) -> None:
        capture = self.protection.capture
        capture.add(chunk)
        if chunk and not capture.whole:
            return
        self.verdict = await self.protection.afinish()
        if isinstance(self.verdict, Response):
            self._ended = True
            if self.begun:
                raise LeaseLost(
                    "another attempt owns the record, as logged before, so the end of this stream is not sent"
                )

    async def _fail(self, error: BaseException) -> None:
        """The view's iterator raised or was cancelled: settle the attempt; re-raise unless a response replaces it."""
        self._ended = True
        if not self.protection.settled:
            verdict = await self.protection.aabort(error)
            if isinstance(verdict, Response) and isinstance(error, REPLACED) and not self.begun:
                self.verdict = verdict
                return
        report_late_error(self.protection.attempt, error)
        raise error

    async def drain(self) -> None:
        """Continue the view's iterator after the client has left, within its grace period (L-05a).

        A cancellation during that time does not come from the client, and ends the iterator.
        """
        self._ended = True
        protection = self.protection
        protection.grace.begin()
        try:
            while not protection.settled and not protection.grace.over:
                part = self._parts.ask()
                await asyncio.wait((part,), timeout=protection.grace.left)
                if part.done():
                    await self._take(self._parts.take())
            await self._parts.stop()
        except BaseException as error:
            if not protection.settled:
                await protection.aabort(error)
            raise
        if not protection.settled:
            await protection.aabort(protection.grace.error())

    def close(self) -> None:
        """End the body, from any thread. A stream whose client left may go on to its own end, on its event loop."""
        if self._closed:
            return
        self._closed = True
        loop = self._parts.loop
        if not self.protection.settled and loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._leave)
                return
        try:
            if not self.protection.settled:
                self.protection.abort(GeneratorExit("the client left before the stream began"))
        finally:
            self._parts.stop_soon()
            self._cleanup()

    def _leave(self) -> None:
        task = asyncio.ensure_future(self._drain_alone())
        _draining.add(task)
        task.add_done_callback(_draining.discard)

    async def _drain_alone(self) -> None:
        """Drain the iterator after its request, whose cancellation has reached only the sending task."""
        requests = shutdown.enter(self.protection)
        try:
            await self.drain()
        except Exception:
            _logger.exception("a stream raised after its client had left")
        finally:
            requests.discard(self.protection)
            self._cleanup()


# Tasks that outlive their requests. Event loops hold tasks weakly, so they are held here.
_draining: set[asyncio.Future[None]] = set()
