"""The heartbeat: one thread a process renews every lease that is running, in batches, through the sync backend.

It is a thread so that a blocked event loop does not starve it. A lease is renewed once a third of it has passed, so a
handler that is faster costs no call. Nothing here decides who owns a record: the backend says so, and an attempt that
lost its lease is marked for its next stage to notice. The heartbeat knows every running lease. So it also gives them up
when the process has to end (``drain``), reports handlers that hang (L-12), and goes on with recordings that failed
while the client waited (L-08).

Each claim relies on the thread. If it cannot be started, the claim is not handed out (L-11). No error ends the thread.
If it has died all the same, the next claim starts another one.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Emit, KeepAlive, RecordLater, Renew
from open_idempotency._core.models import Lease, Renewal
from open_idempotency._engine.event_log import Courier, report
from open_idempotency._engine.shutdown import Pass, Recordings, dismiss, enlist, give_up
from open_idempotency._runtime import clocks, processes
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Backend
from open_idempotency.exceptions import BackendUnavailable

BEATS_A_LEASE = 3
#: how often the thread looks, as a part of the shortest running lease: a renewal is at most this much late
LOOKS_A_LEASE = 12
BATCH = 500
#: after so many looks with nothing to renew the thread sleeps until it is woken
IDLE_LOOKS = 24
_UNTIL_WOKEN = _NEVER = inf
_SETTLING_LOOK = 0.005
#: a handler that runs for so many leases probably hangs; then each quarter of ``max_run``
_LEASES_OF_A_HANG = 4
#: seconds to pause after an unexpected error
_PAUSE = 0.5
#: seconds for which the end of a process waits for listeners
_LISTENING = 1.0

_logger = logging.getLogger("open_idempotency")


class _Watched:
    """A running attempt and the monotonic times (seconds) that matter to it."""

    __slots__ = ("attempt", "began", "due", "early", "lease", "mark", "until")

    def __init__(self, attempt: Attempt, lease: Lease, now: float) -> None:
        self.began = now
        self.attempt = attempt
        self.lease = lease
        # The lease counts from the moment at which its claim was sent. The reply may have been read long after that.
        self.due = min(now, attempt.sure_until - lease.duration) + lease.duration / BEATS_A_LEASE
        #: when it may be renewed ahead of time if a call has room for it; the first renewal is never early
        self.early = _NEVER
        self.until = now + attempt.policy.max_run
        #: when it is reported as hanging; the first of ``_next_mark``
        self.mark = now + min(lease.duration * _LEASES_OF_A_HANG, attempt.policy.max_run / 4)

    def renewed(self, now: float) -> None:
        """Note that the backend has replied about it, and when its next renewal is due."""
        self.due = now + self.lease.duration / BEATS_A_LEASE
        self.early = self.due - self.lease.duration / LOOKS_A_LEASE

    def remind(self, now: float, report: Callable[[Emit], None]) -> None:
        """Report that it still runs."""
        attempt, self.mark = self.attempt, self._next_mark(now)
        if attempt.phase is not Phase.RUNNING or attempt.lost:
            return
        record, renewed = events.short(self.lease.record_id), now < self.until
        event = events.StillRunning.of(
            record, self.lease.attempt, attempt.method, attempt.instance, now - self.began, renewed
        )
        report(Emit(event, attempt.policy.on_event, attempt))

    def _next_mark(self, now: float) -> float:
        most = self.attempt.policy.max_run
        quarters = [most * part / 4 for part in (1, 2, 3, 4)]
        marks = [self.began + run for run in (self.lease.duration * _LEASES_OF_A_HANG, *quarters) if run <= most]
        return min((mark for mark in marks if mark > now), default=_NEVER)


class _Beats:
    """The thread of one process and what it watches.

    Orders reach it through a ``SimpleQueue``, which can be put into from anywhere: also from a signal handler or the
    garbage collector, while they interrupt another put.
    """

    def __init__(self, backend: Backend, watched: dict[bytes, _Watched] | None = None) -> None:
        self._backend = backend
        self._watched = {} if watched is None else watched
        self._courier = Courier()
        self._recordings = Recordings(backend, self._courier.report, self._drop)
        self._look = _UNTIL_WOKEN
        self._idle = 0
        self._orders: queue.SimpleQueue[Pass | None] = queue.SimpleQueue()
        self._passes: list[Pass] = []
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        # whether the thread has ended, and takes no order any more
        self._gone = False

    def watch(self, attempt: Attempt, lease: Lease) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._ensure_thread()
        now = clocks.elapsed()
        self._watched[lease.owner] = entry = _Watched(attempt, lease, now)
        if lease.duration / LOOKS_A_LEASE < self._look or entry.due <= now:
            self._orders.put(None)

    def forget(self, lease: Lease) -> None:
        if lease.owner not in self._recordings.pending:
            self._watched.pop(lease.owner, None)

    def record(self, command: RecordLater, lease: Lease) -> bool:
        if not self._recordings.fits(command):
            return False
        try:
            self._ensure_thread()
        except BackendUnavailable:
            return False
        entry = self._watched.get(lease.owner) or _Watched(command.attempt, lease, clocks.elapsed())
        entry.until = command.until
        self._watched[lease.owner] = entry
        self._recordings.add(lease.owner, command)
        self._orders.put(None)
        return True

    def drain(self, order: Pass) -> None:
        self._orders.put(order)
        # The thread sets this before it takes the last orders; here it is read after the put. So one of both ends it.
        if self._gone:
            order.end()

    def report_lost(self) -> None:
        for lost in self._recordings.lost():
            report(lost)

    @property
    def has_running(self) -> bool:
        """Whether it renews a lease for anything but a recording."""
        return any(owner not in self._recordings.pending for owner in list(self._watched))

    def close(self, patience: float = 0.0) -> None:
        self._closed = True
        self._orders.put(None)
        if patience and self._thread is not None:
            self._thread.join(patience)

    def _drop(self, owner: bytes) -> None:
        self._watched.pop(owner, None)

    def _ensure_thread(self) -> None:
        """Start the thread, unless it lives. Raises ``BackendUnavailable`` where that is impossible now."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            return
        with self._starting:
            if self._thread is not None and self._thread.is_alive():
                return
            thread = threading.Thread(target=self._run, name="open-idempotency-heartbeat", daemon=True)
            # Before the thread begins, since the last thing that it does is to take both back.
            self._gone = False
            enlist(self)
            try:
                thread.start()
            except Exception as error:
                self._gone = True
                dismiss(self)
                raise BackendUnavailable("the thread that renews leases cannot be started") from error
            self._thread = thread

    def _run(self) -> None:
        try:
            self._go_on()
        finally:
            self._gone = True
            dismiss(self)
            if self._closed:  # attempts that still run are forgotten by the next heartbeat
                self._watched.clear()
            while not self._orders.empty():
                order = self._orders.get()
                if order is not None:
                    order.end()

    def _go_on(self) -> None:
        # A closed heartbeat still finishes its recordings.
        while not self._closed or len(self._recordings):
            try:
                self._turn()
            except BaseException:  # whatever it was, the other leases still have to be renewed
                with suppress(Exception):
                    _logger.exception("the thread that renews leases met an error, and goes on")
                time.sleep(_PAUSE)

    def _turn(self) -> None:
        order = self._sleep()
        if order is not None and not order.ended:
            self._passes.append(order)
            self._give_up(order)
            self._recordings.wake_all()
        self._renew_now()
        self._recordings.go_on(self._renew_now)
        self._courier.go()
        if self._passes:
            self._end_passes()

    def _renew_now(self) -> None:
        now = clocks.elapsed()
        for entry in list(self._watched.values()):
            if entry.mark <= now:
                entry.remind(now, self._courier.report)
        self._renew_due(now)

    def _renew_due(self, now: float) -> None:
        due = self._due(now)
        for start in range(0, len(due), BATCH):
            if not self._beat(due[start : start + BATCH], now):
                return

    def _due(self, now: float) -> list[_Watched]:
        """The leases to renew: all that are due, and as many that are nearly due as the last call has room for."""
        watched = list(self._watched.values())
        due = [entry for entry in watched if entry.due <= now]
        room = -len(due) % BATCH
        if room:
            due += [entry for entry in watched if entry.early <= now < entry.due][:room]
        return due

    def _sleep(self) -> Pass | None:
        """Wait until it is time to look, or until an order comes. Returns the order."""
        look = self._next_look()
        if self._passes:
            look = min(look, _SETTLING_LOOK)
        look = min(look, max(0.0, self._recordings.wake - clocks.elapsed()))
        try:
            return self._orders.get(timeout=None if look == _UNTIL_WOKEN else look)
        except queue.Empty:
            return None

    def _next_look(self) -> float:
        """Seconds until the next look; infinite after a while with nothing to do."""
        # Until the new time is known, each new attempt wakes the thread, so none is missed in between.
        before, self._look = self._look, _UNTIL_WOKEN
        durations = [entry.lease.duration for entry in list(self._watched.values())]
        self._idle = 0 if durations else self._idle + 1
        if durations:
            self._look = min(durations) / LOOKS_A_LEASE
        elif self._idle < IDLE_LOOKS:
            self._look = before
        return self._look

    def _give_up(self, order: Pass) -> None:
        for entry in list(self._watched.values()):
            if order.over:
                return
            if entry.attempt.phase is Phase.RUNNING and order.takes(entry.attempt):
                self.forget(entry.lease)
                order.released += not entry.attempt.lost and give_up(entry.attempt, self._backend, self._courier.report)

    def _end_passes(self) -> None:
        """End the passes that have nothing left to wait for, or no time left."""
        # A pass waits for responses that are being recorded: the end of the process would cut that off.
        settling = any(entry.attempt.phase is Phase.ENDED for entry in list(self._watched.values()))
        for order in list(self._passes):
            if order.over or not settling:
                self._passes.remove(order)
                self._courier.flush(min(_LISTENING, order.left))
                order.end()

    def _beat(self, due: list[_Watched], now: float) -> bool:
        """Renew these leases. False if the backend is down: further calls would fail too."""
        running = [entry for entry in due if self._may_renew(entry, now)]
        if not running:
            return True
        try:
            replies = self._backend.renew(Renew([entry.lease for entry in running]))
            replied = list(zip(running, replies, strict=True))
        except Exception as error:  # whatever a backend raises, the other leases still have to be renewed
            self._missed(running, error)
            return not isinstance(error, BackendUnavailable)
        self._heed(replied, now)
        return True

    def _may_renew(self, entry: _Watched, now: float) -> bool:
        """Whether the lease may be renewed. After ``max_run`` it may not: the handler may be deadlocked (L-01)."""
        if now < entry.until and not entry.attempt.lost:
            return True
        self.forget(entry.lease)
        return False

    def _heed(self, replied: list[tuple[_Watched, Renewal]], now: float) -> None:
        for entry, reply in replied:
            entry.renewed(now)
            if reply is Renewal.OWNED:
                entry.attempt.confirmed(now)
            # An attempt that is being settled may have given its record up itself; settlement knows better.
            if reply is Renewal.LOST and entry.attempt.phase is Phase.RUNNING:
                self._lose(entry)

    def _lose(self, entry: _Watched) -> None:
        entry.attempt.lose()
        self.forget(entry.lease)
        event = events.OwnershipLost(events.short(entry.lease.record_id), entry.lease.attempt)
        self._courier.report(Emit(event, entry.attempt.policy.on_event, entry.attempt))

    def _missed(self, running: list[_Watched], error: Exception) -> None:
        """Report that the backend did not reply. The next look tries again, and the lease may outlast the failure."""
        entry = running[0]
        failed = events.BackendFailed.of(events.short(entry.lease.record_id), "renew", error)
        self._courier.report(Emit(failed, entry.attempt.policy.on_event, entry.attempt))


class Heartbeat:
    """Keeps the leases of running attempts alive, in whatever process it is used."""

    def __init__(self, backend: Backend, make_watched: Callable[[], dict[bytes, Any]] = dict) -> None:
        """``make_watched``: makes the empty dictionary of the attempts that one process watches."""
        self._beats: PerProcess[_Beats] = PerProcess(lambda: _Beats(backend, make_watched()))
        weakref.finalize(self, _close, self._beats).atexit = False

    def keep(self, command: KeepAlive) -> None:
        """Renew the attempt's lease until it is forgotten, lost, or older than ``max_run``.

        Raises ``BackendUnavailable`` where that cannot be guaranteed, since no thread can be started.
        """
        attempt = command.attempt
        if attempt.lease is not None:
            if processes.limit != inf:
                attempt.end_by(clocks.elapsed() + processes.limit)
            self._beats.by_pid[os.getpid()].watch(attempt, attempt.lease)

    def record(self, command: RecordLater) -> bool:
        """Carry out the steps in the background, and renew the lease until they have ended (L-08)."""
        lease = command.attempt.lease
        assert lease is not None
        return self._beats.get().record(command, lease)

    def forget(self, attempt: Attempt) -> None:
        """Stop renewing the lease of an attempt that has ended. If its response is still being recorded, the recording
        stops it later.
        """
        if attempt.lease is not None:
            self._beats.by_pid[os.getpid()].forget(attempt.lease)

    def close(self) -> None:
        """End this process's thread. Pending responses are recorded first; leases of running attempts are not renewed.

        The next ``keep`` starts another thread.
        """
        _close(self._beats)

    def close_unless_running(self, patience: float) -> None:
        """End this process's thread, unless a handler still runs, whose lease has to be renewed.

        Waits at most ``patience`` seconds for responses that are being recorded.
        """
        if not self._beats.get().has_running:
            _close(self._beats, patience)


def _close(beats: PerProcess[_Beats], patience: float = 0.0) -> None:
    mine = beats.pop()
    if mine is not None:
        mine.close(patience)
