"""One call of ``Once``, sync and async: ``Once.begin`` returns it, and ``run``, ``arun`` and the decorator use it.

It carries out the steps of ``_core.once``, binds the running attempt, and turns responses into results. The core makes
the decisions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, End
from open_idempotency._core.commands import Steps
from open_idempotency._core.models import Response
from open_idempotency._core.notify import warn
from open_idempotency._core.once import Entry, abort_call, admit_call, finish_call, make_sure_of
from open_idempotency._core.settlement import REPLACED
from open_idempotency._engine import shutdown, thread_calls
from open_idempotency._engine.engine import AsyncPerformer, Engine, Performer, Running, running
from open_idempotency._runtime import clocks
from open_idempotency._stages.blocks import refuse_loop
from open_idempotency._stages.results import Converter, Kept
from open_idempotency.exceptions import ConfigurationError, KeyNested, SyncAsyncMismatch

if TYPE_CHECKING:
    from open_idempotency._engine.cancellation import Hold
    from open_idempotency._engine.cancellation_on_trio import TrioHold

_AWAITED = "`await once.arun(...)` or `async with once.begin(...)`"


class SyncPerformers(NamedTuple):
    """For a sync call: coroutines in it live on short-lived event loops, so they reach the backend through threads."""

    sync: Performer
    aio: AsyncPerformer


class OnceAttempt:
    """One piece of work by hand: see ``Once.begin``. Enter it once, with ``with`` or ``async with``."""

    __slots__ = (
        "_attempt", "_before", "_converter", "_engine", "_entered", "_entry", "_kept", "_requests", "_stored",
        "_threaded", "_ticket", "_where",
    )  # fmt: skip

    def __init__(self, engine: Engine, threaded: SyncPerformers, entry: Entry, converter: Converter) -> None:
        self._engine = engine
        self._threaded = threaded
        self._entry = entry
        self._converter = converter
        self._where = f"Once {entry.name!r}"
        self._entered = False
        # The caller that takes it may enter. Two claims of one owner would count as one claim that was sent twice.
        self._ticket = [None]
        #: None before the claim, and if the work was done before
        self._attempt: Attempt | None = None
        #: the request or call that was current before
        self._before: Running | None = None
        self._requests: set[shutdown.Protected] | None = None
        #: the given result, as it will be stored
        self._kept: Kept | None = None
        #: the stored result, if it is not of this attempt
        self._stored: Response | None = None

    # The public part

    @property
    def done(self) -> bool:
        """Whether the work was done before, so that it must not be done again. Raises ``RuntimeError`` before entry."""
        self._check_entered()
        return self._attempt is None

    @property
    def result(self) -> Any:
        """The result on record, or the one given to ``complete``, as a later call will get it.

        Raises the error that is the result (``memo_errors``), ``OutcomeUnknown`` if the work was done and its result
        could not be stored, and ``RuntimeError`` if there is no result yet.
        """
        self._check_entered()
        if self._stored is not None:
            return self._converter.read(self._stored)
        if self._kept is None:
            raise RuntimeError(f"{self._where}: there is no result yet; pass it to complete(result) first")
        return self._kept.value

    def complete(self, result: Any = None) -> None:
        """Set the result. It is recorded at the end of the block, unless the block raises.

        Raises ``RuntimeError`` if the work was done before, or a result was set already.
        """
        if self.done:
            raise RuntimeError(f"{self._where}: this was done before; check `if not attempt.done:` before the work")
        if self._kept is not None:
            raise RuntimeError(f"{self._where}: a result was set already")
        self._kept = self._keep(result)

    @property
    def attempt(self) -> Attempt | None:
        """The running attempt, for the shutdown of a server; not for applications."""
        return self._attempt

    def _check_entered(self) -> None:
        if not self._entered:
            raise RuntimeError(f"{self._where}: not entered; use it as `with once.begin(...) as attempt:`")

    def _keep(self, result: Any) -> Kept:
        assert self._attempt is not None
        most = self._attempt.policy.max_response_bytes
        ledger = self._attempt.ledger
        committed = None if ledger is None else ledger.stored
        if ledger is None or committed is None:
            return self._converter.keep(result, most)
        if result is None:
            return Kept(committed.response, self._converter.read(committed.response))
        kept = self._converter.keep(result, most)
        if kept.response != committed.response and ledger.end() is not End.ROLLED_BACK:
            raise ConfigurationError(
                f"{self._where}: another result was passed to respond() of idem.atomic, and is committed; return that "
                "one, or nothing"
            )
        return kept

    # Steps that both shells carry out

    def _check_entry(self) -> None:
        if not self._ticket:
            raise self._used()
        self._before = running.get()
        if self._before is not None and self._before[0].runs(self._entry.claim.record_id):
            raise KeyNested(
                f"{self._where}: this key is used inside its own call, which would wait for itself; give the inner "
                "work another key or another scope, or make it a stage: idem.run(name, function)"
            )
        try:
            self._ticket.pop()
        except IndexError:  # another thread was faster
            raise self._used() from None

    def _used(self) -> RuntimeError:
        return RuntimeError(f"{self._where}: entered already; call once.begin(...) for each use")

    def _admit(self) -> Steps[Attempt | Response]:
        return admit_call(self._entry, self._engine.policy)

    def _take(self, admission: Attempt | Response) -> Attempt | None:
        """Note the admission. Returns the attempt, or None if there is a result already."""
        self._entered = True
        if isinstance(admission, Response):
            self._stored = admission
            return None
        self._attempt = admission
        outer = None if self._before is None else self._before[0]
        admission.begin_call(outer, partial(_response_of, self._converter, admission.policy.max_response_bytes))
        return admission

    def _unsure(self, attempt: Attempt) -> bool:
        return attempt.lease is not None and clocks.elapsed() > attempt.sure_until

    def _stand_in(self, attempt: Attempt, response: Response | None) -> bool:
        """Use the result of another attempt, before the work begins. Returns whether there is one."""
        if response is None:
            return False
        self._engine.heartbeat.forget(attempt)
        self._attempt, self._stored = None, response
        return True

    def _ending(self, error: BaseException | None) -> Steps[bool]:
        """Settle the attempt. Returns whether a result on record stands for the error."""
        attempt = self._attempt
        assert attempt is not None
        if error is None and self._kept is None:
            raise_after = ConfigurationError(
                f"{self._where}: the block ended without a result; pass it to attempt.complete(result), or raise"
            )
            yield from abort_call(attempt, raise_after)
            raise raise_after
        if error is None:
            assert self._kept is not None
            yield from self._finish(attempt, self._kept)
            return False
        if isinstance(error, self._converter.errors) and isinstance(error, Exception):
            yield from self._finish(attempt, self._converter.keep_error(error, attempt.policy.max_response_bytes))
            return self._stored is not None
        stored = yield from abort_call(attempt, error)
        if stored is None or not isinstance(error, REPLACED):
            return False
        self._stored = stored
        return True

    def _finish(self, attempt: Attempt, kept: Kept) -> Steps[None]:
        if kept.missing:
            record = "" if attempt.lease is None else events.short(attempt.lease.record_id)
            yield from warn(attempt.policy, events.ResultNotKept(record, self._entry.name, kept.missing, kept.cure))
        counts = yield from finish_call(attempt, kept.response)
        if counts != kept.response:
            self._stored = counts

    # Entering and leaving, sync

    def __enter__(self) -> OnceAttempt:
        refuse_loop(self._where, _AWAITED)
        self._check_entry()
        sync = self._engine.sync
        attempt = self._take(sync.run(self._admit()))
        if attempt is None:
            return self
        try:
            while self._unsure(attempt):
                if self._stand_in(attempt, sync.run(make_sure_of(attempt))):
                    return self
        except BaseException:
            self._engine.heartbeat.forget(attempt)
            raise
        running.set((attempt, self._threaded))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._attempt is None:
            return False
        running.set(self._before)
        try:
            return self._engine.sync.run(self._ending(error))
        finally:
            self._engine.heartbeat.forget(self._attempt)

    # Entering and leaving, async

    async def __aenter__(self) -> OnceAttempt:
        self._check_entry()
        aio = self._engine.aio
        self._requests = shutdown.enter(self)
        try:
            attempt = self._take(await aio.run(self._admit()))
            if attempt is None:
                self._leave_requests()
                return self
            while self._unsure(attempt):
                if self._stand_in(attempt, await aio.run(make_sure_of(attempt))):
                    self._leave_requests()
                    return self
        except BaseException:
            self._leave_requests()
            if self._attempt is not None:
                self._engine.heartbeat.forget(self._attempt)
            raise
        if thread_calls.pending:
            thread_calls.hook()
        running.set((attempt, self._engine))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._attempt is None:
            return False
        running.set(self._before)
        guarded = error is not None and not isinstance(error, Exception)
        try:
            return await self._engine.aio.run(self._ending(error), guarded=guarded)
        finally:
            self._engine.heartbeat.forget(self._attempt)
            self._leave_requests()

    def _leave_requests(self) -> None:
        if self._requests is not None:
            self._requests.discard(self)

    # Around a function

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function unless it was carried out before. Returns its result."""
        with self:
            if not self.done:
                self.complete(self._called(function, args, kwargs))
        return self.result

    def _called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise SyncAsyncMismatch(f"{self._where}: the function returned an awaitable; use `await once.arun(...)`")
        return result

    async def arun(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run``, async. A cancellation waits for the functions that it runs in threads (L-09)."""
        await self.__aenter__()
        if self._attempt is None:
            return self.result
        from open_idempotency._engine.cancellation import hold_for  # it needs asyncio, which the package does not load

        hold = hold_for(self._attempt) if self._attempt.lease is not None else None
        steps = self._carry_out(hold, function, args, kwargs)
        await (steps if hold is None else hold.run(steps))
        return self.result

    async def _carry_out(
        self, hold: Hold | TrioHold | None, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        try:
            result = function(*args, **kwargs)
            self.complete(await result if inspect.isawaitable(result) else result)
        except BaseException as error:
            if not await self.__aexit__(type(error), error, error.__traceback__):
                raise
            return
        if hold is not None:
            hold.recording = True
        await self.__aexit__(None, None, None)
        if hold is not None:
            await hold.release()


def _response_of(converter: Converter, most: int, result: object) -> Response:
    return converter.keep_strictly(result, most).response
