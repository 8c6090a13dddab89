"""What surrounds the engine in a simulated worker: its clocks, its event loop's shield, its heartbeat's thread.

The performer and the rules of the heartbeat are the real ones; only time and waiting are made up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Emit, Now, RecordLater, Sleep
from open_idempotency._core.drivers import drive_async
from open_idempotency._perform.heartbeat import LOOKS_A_LEASE, _Beats, _Watched
from open_idempotency._perform.performers import AsyncPerformer
from open_idempotency.exceptions import BackendUnavailable
from tests.simulation.loop import Cancelled, Future, Process
from tests.simulation.network import RemoteBackend

if TYPE_CHECKING:
    from tests.simulation.site import Site

#: seconds of every lease
LEASE = 10.0


class VirtualPerformer(AsyncPerformer):
    """The real performer, on virtual time, with a shield like an event loop's."""

    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(backend, self)
        self.heartbeat: VirtualHeartbeat
        self.site = site
        self.process = process
        self._handlers = {**self._handlers, Now: self._monotonic, Sleep: self._sleep, Emit: self._emit}

    def watch(self, attempt: Attempt) -> None:
        """See ``Heartbeat.watch``."""
        self.heartbeat.watch(attempt)

    def record(self, command: RecordLater) -> bool:
        """See ``Heartbeat.record``: by a task of the process, which nobody cancels."""
        attempt = command.attempt
        steps = drive_async(command.steps, self._handlers, self._shield)
        self.heartbeat.keep(attempt, self.site.loop.spawn(self.process, steps, "recording").ended)
        return True

    async def _monotonic(self, _: Now) -> float:
        return self.site.loop.now + self.process.skew

    async def _sleep(self, c: Sleep) -> None:
        await self.site.loop.sleep(c.seconds)

    async def _emit(self, c: Emit) -> None:
        self.site.note(self.process, "event", c.event)
        task = self.site.loop.current
        if isinstance(c.event, events.Unrecorded) and task is not None:
            task.root.unrecorded = True

    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        loop = self.site.loop
        ended = loop.spawn(self.process, _awaited(call), "cleanup").ended
        late = Future()
        loop.after(self.patience, late.set, self.process)
        while not ended.done and not late.done:
            either = Future()
            ended.when_done(either.set)
            late.when_done(either.set)
            try:
                await either
            except Cancelled:
                continue
        if not ended.done:
            if loop.current is not None:
                loop.current.root.trouble.append("out of patience")
            raise BackendUnavailable("the cleanup did not end in time")
        value, error = ended.value
        if error is not None:
            raise error
        return value


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


class VirtualHeartbeat:
    """The real rules of the heartbeat, looked at by events instead of by a thread."""

    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        self._site = site
        self._process = process
        self._beats = _Beats(backend.to_sync())
        self._ticking = False
        self._recording: set[bytes] = set()

    def watch(self, attempt: Attempt) -> None:
        """See ``Heartbeat.watch``."""
        if attempt.lease is not None:
            self._beats._watched[attempt.lease.owner] = _Watched(attempt, attempt.lease, self._now())
            if not self._ticking:
                self._tick()

    def forget(self, attempt: Attempt) -> None:
        """See ``Heartbeat.forget``."""
        if attempt.lease is not None and attempt.lease.owner not in self._recording:
            self._beats.forget(attempt.lease)

    def keep(self, attempt: Attempt, ended: Future) -> None:
        """Renew it until its recording in the background has ended."""
        assert attempt.lease is not None
        self._recording.add(attempt.lease.owner)
        ended.when_done(lambda: self._recorded(attempt))

    def _recorded(self, attempt: Attempt) -> None:
        assert attempt.lease is not None
        self._recording.discard(attempt.lease.owner)
        self.forget(attempt)

    def _now(self) -> float:
        return self._site.loop.now + self._process.skew

    def _tick(self) -> None:
        watched = list(self._beats._watched.values())
        self._ticking = bool(watched)
        due = [entry for entry in watched if entry.due <= self._now()]
        if due:
            self._beats._beat(due, self._now())
        if watched:
            self._site.loop.after(LEASE / LOOKS_A_LEASE, self._tick, self._process)
