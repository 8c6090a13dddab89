"""The surroundings of the engine in a simulated worker: its performer, and its heartbeat's thread.

Both are the real classes, on virtual time; the heartbeat's turns are events instead of a loop in a thread.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Emit, KeepAlive, RecordLater
from open_idempotency._core.models import Lease
from open_idempotency._engine.engine import AsyncPerformer
from open_idempotency._engine.heartbeat import _Beats
from open_idempotency._engine.shutdown import Recordings
from tests.simulation.loop import Process
from tests.simulation.network import RemoteBackend

if TYPE_CHECKING:
    from tests.simulation.site import Site

#: seconds of every lease
LEASE = 10.0
_MOMENT = 1e-6


class VirtualPerformer(AsyncPerformer):
    """The real performer, whose events go into the trace."""

    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(backend, self)
        self.heartbeat: VirtualHeartbeat
        self.site = site
        self.process = process
        self._handlers = {**self._handlers, Emit: self._emit}

    def keep(self, command: KeepAlive) -> None:
        """See ``Heartbeat.keep``."""
        self.heartbeat.keep(command)

    def record(self, command: RecordLater) -> bool:
        """See ``Heartbeat.record``."""
        return self.heartbeat.record(command)

    def _emit(self, c: Emit) -> None:
        self.site.note(self.process, "event", c.event)
        task = self.site.loop.current
        if isinstance(c.event, events.Unrecorded) and task is not None:
            task.root.unrecorded = True


class _Orders:
    """Replaces the queue of the heartbeat's thread: any order wakes the thread at once."""

    def __init__(self, beats: VirtualBeats) -> None:
        self._beats = beats

    def put(self, _: object) -> None:
        """Wake the thread."""
        self._beats.plan(0.0)


class VirtualBeats(_Beats):
    """The heartbeat's thread, whose turns are events."""

    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(backend.to_sync())
        self._site = site
        self._process = process
        self._orders: Any = _Orders(self)
        self._recordings = Recordings(backend.to_sync(), self._emit, self._drop)
        self._turns = 0

    def _emit(self, c: Emit) -> None:
        self._site.note(self._process, "event", c.event)

    def plan(self, seconds: float) -> None:
        """Look after this many seconds, and not before."""
        self._turns = turn = self._turns + 1
        if seconds < inf:
            self._site.loop.after(seconds, lambda: self._turn_of(turn), self._process)

    def _turn_of(self, turn: int) -> None:
        if turn == self._turns and self._thread is not None:
            self._run()

    def _run(self) -> None:
        self._renew_now()
        self._recordings.go_on(self._renew_now)
        # A moment later, since skewed clocks are less precise than the loop's.
        self.plan(min(self._next_look(), max(_MOMENT, self._recordings.wake - self._site.loop.monotonic())))


class VirtualHeartbeat:
    """The ``Heartbeat`` of one process."""

    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        self.beats = VirtualBeats(site, process, backend)

    def keep(self, command: KeepAlive) -> None:
        """See ``Heartbeat.keep``."""
        attempt = command.attempt
        if attempt.lease is not None:
            self.beats.watch(attempt, attempt.lease)

    def record(self, command: RecordLater) -> bool:
        """See ``Heartbeat.record``."""
        return self.beats.record(command, _lease_of(command.attempt))

    def forget(self, attempt: Attempt) -> None:
        """See ``Heartbeat.forget``."""
        if attempt.lease is not None:
            self.beats.forget(attempt.lease)


def _lease_of(attempt: Attempt) -> Lease:
    assert attempt.lease is not None
    return attempt.lease
