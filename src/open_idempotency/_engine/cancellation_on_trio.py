"""Holds the cancellation of a request back on trio; see ``cancellation``. Imported when a trio task first needs it."""

from __future__ import annotations

from collections.abc import Awaitable

import trio

from open_idempotency._core.attempt import Attempt
from open_idempotency._engine.thread_calls import GRACE, LOOK, Patience, ThreadCalls


class TrioHold:
    """A scope around the application, which has a shield while a thread of it runs."""

    __slots__ = ("_attempt", "_begun", "_looking", "_over", "_scope", "recording")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._over = False
        self._begun = False
        #: the response is being recorded, however long that takes
        self.recording = False
        self._looking = False
        self._scope = trio.CancelScope()

    async def run(self, awaitable: Awaitable[None]) -> None:
        """See ``Hold.run``."""
        self._know_calls()
        try:
            with self._scope:
                await awaitable
        finally:
            self._over = True
            self._forget_calls()

    def protect(self, attempt: Attempt) -> None:
        """See ``Hold.protect``."""
        self._forget_calls()
        self._attempt = attempt
        self._know_calls()

    def _know_calls(self) -> None:
        self._attempt.run_in_threads(ThreadCalls(self._attempt.policy.max_run, self._shield))

    def _forget_calls(self) -> None:
        if isinstance(self._attempt.threads, ThreadCalls):
            self._attempt.threads.touched = None

    def _shield(self) -> None:
        if not self._over and not self._begun:
            self._scope.shield = True
            if not self._looking:
                self._looking = True
                trio.lowlevel.spawn_system_task(self._look)

    def begun(self) -> bool:
        """See ``Hold.begun``."""
        self._begun = True
        return False

    async def _look(self) -> None:
        threads = self._attempt.threads
        assert threads is not None
        await trio.sleep(LOOK)  # in which the thread begins, unless it has to wait for a free one
        if threads.ran_within(GRACE):
            patience = Patience(threads)
            while not self._over and (self.recording or patience.lasts(begun=self._begun)):  # noqa: ASYNC110 (a thread)
                await trio.sleep(LOOK)
        self._looking = False
        self._scope.shield = False

    async def release(self) -> bool:
        """See ``Hold.release``."""
        self._over = True
        if self._scope.shield:
            self._scope.shield = False
            await trio.lowlevel.checkpoint_if_cancelled()
        return False
