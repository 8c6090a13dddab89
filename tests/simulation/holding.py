"""Threads of simulated processes, and how a request's cancellation is delayed while they run (L-09).

A thread continues whatever happens to the task that awaits it. It dies with its process, stops while that is frozen,
and does not depend on the event loop. Its effect happens at its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from open_idempotency._core.attempt import Attempt
from open_idempotency._engine.thread_calls import GRACE, LOOK, Patience
from tests.simulation.loop import Cancelled, Future, Loop, Process


class VirtualHold:
    """The rules of ``_engine.cancellation.Hold`` for a simulated task: when and for how long to delay it."""

    def __init__(self, loop: Loop, attempt: Attempt) -> None:
        assert loop.current is not None
        self._loop = loop
        self._attempt = attempt
        self._task = loop.current
        self._patience: Patience | None = None
        self._looking = self._over = self._begun = False
        self._pending = 0
        #: the response is being recorded, however long that takes
        self.recording = False

    async def run(self, awaitable: Awaitable[None]) -> None:
        """See ``Hold.run``."""
        self._task.hold = self
        try:
            await awaitable
        finally:
            self._over = True
            self._task.hold = None
        if self._pending:
            raise Cancelled

    def keeps_back(self, times: int) -> bool:
        """See ``Hold.keeps_back``."""
        threads = self._attempt.threads
        if self._over or threads is None or not (self._looking or threads.ran_within(GRACE)):
            return False
        self._pending = max(self._pending, times)
        if not self._looking:
            self._patience = Patience(threads)
            self._look_later()
        return True

    def _look_later(self) -> None:
        self._looking = True
        self._loop.at(self._loop.now + LOOK, self._look, self._task.process, on_loop=True)

    def _look(self) -> None:
        self._looking = False
        patience = self._patience
        if self._task.ended.done:
            return
        if not self._over and patience is not None and (self.recording or patience.lasts(begun=self._begun)):
            self._look_later()
            return
        self._over = self._over or self._begun
        self._let_go_on()

    def _let_go_on(self) -> bool:
        times, self._pending = self._pending, 0
        if times:
            self._task.hold = None
            self._task.cancel(times)
        return bool(times)

    def begun(self) -> bool:
        """See ``Hold.begun``."""
        self._begun = True
        if self._attempt.threads is not None:
            self._patience = Patience(self._attempt.threads)
        return bool(self._pending)

    async def release(self) -> bool:
        """See ``Hold.release``."""
        self._over = True
        return self._let_go_on()


async def in_thread(
    loop: Loop, process: Process, call: Any, seconds: float, effect: Callable[[bool], None], delay: float
) -> None:
    """Run one of ``thread_calls``'s calls in a thread. ``effect``: called with True at its begin, then with False.

    It does the same as ``_Call.__call__``, with a function of that duration.
    """
    calls, ended = call._calls, Future()

    def begin() -> None:
        calls.live.add(call)
        if not call._take():
            end()
            return
        effect(True)
        loop.after(seconds, work, process)

    def work() -> None:
        try:
            effect(False)
        finally:
            end()

    def end() -> None:
        calls.ended = loop.monotonic()
        calls.live.discard(call)
        loop.soon(ended.set, process)

    loop.after(delay, begin, process)
    await ended
