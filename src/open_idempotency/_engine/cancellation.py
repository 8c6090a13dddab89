"""Holds the cancellation of a request back while code of it runs in a thread, until its response is on record (L-09).

Cancelling a task does not stop its threads. If the request ended at once, its retry would run beside such a thread. So
a cancellation waits for the thread, and for ``GRACE`` seconds more, in which the response is made and recorded. Then it
goes on. If no thread runs, it goes on at once.

asyncio cancels a task by cancelling the future that it waits for. ``Hold.run`` drives the application, and lets the
task wait for a future of its own instead, which passes cancellations on or keeps them. That needs no further task, no
further turn of the event loop and no copy of the context. anyio and trio cancel scopes, and a task notices that at its
next checkpoint. So if there is a scope around the request, a scope with a shield is put around the application.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, ModuleType, coroutine
from typing import TYPE_CHECKING, Any

from open_idempotency._core.attempt import Attempt
from open_idempotency._engine.thread_calls import GRACE, LOOK, Patience, ThreadCalls
from open_idempotency._runtime.loops import on_trio

if TYPE_CHECKING:
    from open_idempotency._engine.cancellation_on_trio import TrioHold

# How anyio's cancellations begin. It repeats them as long as its scope is cancelled, so they need not be kept.
_BY_SCOPE = "Cancelled via cancel scope"


class Hold:
    """The cancellations of one request's task, on asyncio.

    Not slotted: one is made for each request, and hardly any of them is ever cancelled.
    """

    #: the response is being recorded, however long that takes
    recording = False
    # The response is on record.
    _recorded = False
    _before = 0
    _over = False
    # The response has begun to leave.
    _begun = False
    _patience: Patience | None = None
    _waiter: _Waiter | None = None
    # A cancellation is kept back, or is to be thrown in as soon as the task goes on; what it says.
    _pending = False
    _armed = False
    _message: Any = None
    _timer: asyncio.TimerHandle | None = None
    _scope: Any = None

    def __init__(self, attempt: Attempt, task: asyncio.Task[Any]) -> None:
        self._attempt = attempt
        self._task = task
        if sys.version_info >= (3, 11):
            self._before = task.cancelling()

    def run(self, awaitable: Awaitable[None]) -> Awaitable[None]:
        """Await the application, and hold cancellations back while needed. Raises its error, or the cancellation."""
        backend = sys.modules.get("anyio._backends._asyncio")
        if backend is not None and _is_in_scope(self._task, backend):
            return self._run_in_scope(awaitable)
        return self._steps(awaitable)

    async def _run_in_scope(self, awaitable: Awaitable[None]) -> None:
        self._know_calls()
        try:
            with sys.modules["anyio"].CancelScope() as self._scope:
                await self._steps(awaitable)
        finally:
            self._forget_calls()

    def protect(self, attempt: Attempt) -> None:
        """Hold cancellations back for this attempt from now on. Its code was called before its claim was made."""
        self._forget_calls()
        self._attempt = attempt
        if self._scope is not None:
            self._know_calls()

    def _know_calls(self) -> None:
        self._attempt.run_in_threads(ThreadCalls(self._attempt.policy.max_run, self._shield))

    def _forget_calls(self) -> None:
        if isinstance(self._attempt.threads, ThreadCalls):
            self._attempt.threads.touched = None

    @coroutine
    def _steps(self, awaitable: Awaitable[None]) -> Generator[Any, Any, None]:
        inner: Any = awaitable if type(awaitable) is CoroutineType else _as_coroutine(awaitable)
        error: BaseException | None = None
        reply: Any = None
        waiter: _Waiter | None = None
        try:
            while True:
                try:
                    yielded = inner.send(reply) if error is None else inner.throw(error)
                except StopIteration:
                    break
                error, future = None, None
                if getattr(yielded, "_asyncio_future_blocking", False):
                    yielded._asyncio_future_blocking = False  # as a task does when it takes a future over
                    future = yielded
                    if waiter is None:
                        waiter = self._waiter = _Waiter(loop=future.get_loop())
                        waiter.hold = self
                    yielded, waiter.future = waiter, future
                    waiter._asyncio_future_blocking = True
                    if self._armed:
                        self._deliver()
                try:
                    reply = yield yielded
                except GeneratorExit:
                    inner.close()
                    raise
                except BaseException as thrown:
                    reply, error = None, thrown
                if waiter is not None:
                    waiter.future = None
                if error is not None or self._armed:
                    error = self._on_waking(error, future)
        finally:
            error = None  # it holds this frame
            self._waiter = None
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
        if (self._pending or self._armed) and not self._is_stale():
            raise self._cancelled()

    def _on_waking(self, error: BaseException | None, future: Any) -> BaseException | None:
        """The error to throw into the application after a wait; also a cancellation that came between two waits."""
        if error is None:
            if self._armed:
                self._armed = False
                return None if self._is_stale() else self._cancelled()
        elif isinstance(error, asyncio.CancelledError) and (future is None or not future.cancelled()):
            # Otherwise the awaited future was cancelled, and not this task.
            return None if self.keeps_back(error.args[0] if error.args else None) else error
        return error

    def keeps_back(self, message: Any) -> bool:
        """Whether this cancellation of the task is kept back for now."""
        if not self._holds():
            return False
        if not (isinstance(message, str) and message.startswith(_BY_SCOPE)):
            self._pending, self._message = True, message
        self._look_again()
        return True

    def _holds(self) -> bool:
        threads = self._attempt.threads
        if threads is None or self._over:
            return False
        if self._recorded:
            return threads.running
        return self._timer is not None or threads.ran_within(GRACE)

    def _look_again(self) -> None:
        if self._timer is None and self._attempt.threads is not None:
            self._patience = Patience(self._attempt.threads)
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self._task.get_loop().call_later(LOOK, self._look)  # none runs where a runner ends its tasks

    def _look(self) -> None:
        self._timer = None
        if self._lasts():
            self._start_timer()
            return
        self._over = self._over or self._begun
        self._let_go_on()
        if self._scope is not None:
            self._scope.shield = False

    def _lasts(self) -> bool:
        if self._over or self._recorded or self._patience is None:
            return self._holds()
        return self.recording or self._patience.lasts(begun=self._begun)

    def _let_go_on(self) -> bool:
        """Let a cancellation that was kept back go on. Returns whether there was one."""
        if not self._pending:
            return False
        self._pending = False
        if self._is_stale():
            return False
        self._armed = True
        self._deliver()
        return True

    def _deliver(self) -> None:
        """Cancel the future that the task waits for. If none is pending, the task is cancelled as it goes on."""
        future = None if self._waiter is None else self._waiter.future
        if future is not None and _cancel(future, self._message):
            self._armed = False

    def _cancelled(self) -> asyncio.CancelledError:
        return asyncio.CancelledError() if self._message is None else asyncio.CancelledError(self._message)

    def _is_stale(self) -> bool:
        """Whether the cancellation was taken back, as by a time limit within the endpoint that has ended."""
        return sys.version_info >= (3, 11) and self._task.cancelling() <= self._before

    def begun(self) -> bool:
        """Note that the response begins to leave. Returns true if it must not, since the request is cancelled."""
        self._begun = True
        if self._attempt.threads is not None:
            self._patience = Patience(self._attempt.threads)
        return self._pending

    def _shield(self) -> None:
        if not (self._over or self._begun or self._recorded):
            self._scope.shield = True
            self._look_again()

    async def release(self) -> bool:
        """The response is on record: hold cancellations back only for a thread that still runs.

        Returns whether the request is cancelled. Raises the cancellation if it came from a scope.
        """
        self._recorded = True
        # A scope cancels nothing in the middle of a thread call by itself.
        if self._scope is None and self._attempt.threads is not None and self._holds():
            self._look_again()
            return self._pending and not self._is_stale()
        cancelled = self._pending and self._let_go_on()
        if self._scope is not None and self._scope.shield:
            self._scope.shield = False
            await sys.modules["anyio"].sleep(0)
        return cancelled


class _Waiter(asyncio.Future[Any]):
    """The object that the task waits for instead of its futures. Subclasses differ in how they are cancelled."""

    hold: Hold
    #: None where the task does not wait for one
    future: asyncio.Future[Any] | None = None

    def add_done_callback(self, callback: Callable[..., object], *, context: Any = None) -> None:
        assert self.future is not None
        self.future.add_done_callback(callback, context=context)

    def cancel(self, msg: Any = None) -> bool:
        return self.hold.keeps_back(msg) or (self.future is not None and _cancel(self.future, msg))

    def done(self) -> bool:
        return self.future is not None and self.future.done()


def _cancel(future: asyncio.Future[Any], message: Any) -> bool:
    return future.cancel() if message is None else future.cancel(message)


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable


def _is_in_scope(task: asyncio.Task[Any], backend: ModuleType) -> bool:
    """Whether a cancel scope of anyio's is around this task. True if that cannot be known: another scope does no harm.

    ``backend``: anyio's for asyncio.
    """
    states = getattr(backend, "_task_states", None)
    if states is None:
        return True
    state = states.get(task)
    return state is not None and getattr(state, "cancel_scope", True) is not None


def hold_for(attempt: Attempt) -> Hold | TrioHold | None:
    """The object that holds back the cancellations of the calling task; None outside of asyncio and trio."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop of asyncio's runs
        task = None
    if task is not None:
        return Hold(attempt, task)
    if on_trio():
        from open_idempotency._engine import cancellation_on_trio

        return cancellation_on_trio.TrioHold(attempt)
    return None
