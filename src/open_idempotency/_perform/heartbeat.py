"""The heartbeat: one thread a process renews every lease that is running, in batches, with the blocking colour.

It is a thread so that a blocked event loop does not starve it. A lease is renewed once a third of it has passed, so a
handler that is faster costs no call. Nothing here decides who owns a record: the backend says so, and an attempt that
lost its lease is marked for its next stage to notice. It knows every running lease, so it also gives them up when the
process has to end (``drain``).
"""

from __future__ import annotations

import queue
import threading
import time
import weakref

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Emit, Renew
from open_idempotency._core.models import Lease, Renewal
from open_idempotency._perform.drain import Pass, dismiss, enlist, give_up
from open_idempotency._perform.processes import PerProcess
from open_idempotency._perform.telling import tell
from open_idempotency.backend import Backend

BEATS_A_LEASE = 3
#: how often the thread looks, as a part of the shortest running lease: a renewal is at most this much late
LOOKS_A_LEASE = 12
BATCH = 500
#: after so many looks with nothing to renew the thread sleeps until it is woken
IDLE_LOOKS = 24
_UNTIL_WOKEN = _NEVER = float("inf")
_SETTLING_LOOK = 0.005


class _Watched:
    """A running attempt and the monotonic times (seconds) that matter to it."""

    __slots__ = ("attempt", "due", "early", "lease", "until")

    def __init__(self, attempt: Attempt, lease: Lease, now: float) -> None:
        self.attempt = attempt
        self.lease = lease
        self.due = now + lease.duration / BEATS_A_LEASE
        #: from when on it may be renewed where a call has room for it; the first time never before it is due
        self.early = _NEVER
        self.until = now + attempt.policy.max_run

    def renewed(self, now: float) -> None:
        """The backend has answered for it."""
        self.due = now + self.lease.duration / BEATS_A_LEASE
        self.early = self.due - self.lease.duration / LOOKS_A_LEASE


class _Beats:
    """The thread of one process and what it watches.

    It is told things by a ``SimpleQueue``, which takes them from anywhere: from a signal handler or the garbage
    collector that interrupt somebody who is telling it something.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._watched: dict[bytes, _Watched] = {}
        self._look = _UNTIL_WOKEN
        self._idle = 0
        self._orders: queue.SimpleQueue[Pass | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, attempt: Attempt, lease: Lease) -> None:
        self._watched[lease.owner] = _Watched(attempt, lease, time.monotonic())
        if self._thread is None:
            self._start()
        if lease.duration / LOOKS_A_LEASE < self._look:
            self._orders.put(None)

    def forget(self, lease: Lease) -> None:
        self._watched.pop(lease.owner, None)

    def drain(self, order: Pass) -> None:
        self._orders.put(order)

    def close(self) -> None:
        self._closed = True
        self._orders.put(None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="open-idempotency-heartbeat", daemon=True)
                enlist(self)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            order = self._sleep()
            if order is not None:
                self._give_up(order)
            self._renew_due(time.monotonic())
        dismiss(self)
        while not self._orders.empty():
            order = self._orders.get()
            if order is not None:
                order.end()

    def _renew_due(self, now: float) -> None:
        due = self._due(now)
        for start in range(0, len(due), BATCH):
            self._beat(due[start : start + BATCH], now)

    def _due(self, now: float) -> list[_Watched]:
        """What is to be renewed, and what is nearly due where the last call has room: so calls become full."""
        watched = list(self._watched.values())
        due = [entry for entry in watched if entry.due <= now]
        room = -len(due) % BATCH
        if room:
            due += [entry for entry in watched if entry.early <= now < entry.due][:room]
        return due

    def _sleep(self) -> Pass | None:
        """Return when it is time to look, or with what somebody wants."""
        look = self._next_look()
        try:
            return self._orders.get(timeout=None if look == _UNTIL_WOKEN else look)
        except queue.Empty:
            return None

    def _next_look(self) -> float:
        """Seconds until then; infinite after a while with nothing to do."""
        # Until the new time is known whoever comes wakes the thread, so nobody comes unseen in between.
        before, self._look = self._look, _UNTIL_WOKEN
        durations = [entry.lease.duration for entry in list(self._watched.values())]
        self._idle = 0 if durations else self._idle + 1
        if durations:
            self._look = min(durations) / LOOKS_A_LEASE
        elif self._idle < IDLE_LOOKS:
            self._look = before
        return self._look

    def _give_up(self, order: Pass) -> None:
        try:
            for entry in list(self._watched.values()):
                if order.over:
                    return
                if entry.attempt.phase is Phase.RUNNING and order.takes(entry.attempt):
                    self.forget(entry.lease)
                    order.released += not entry.attempt.lost and give_up(entry.attempt, self._backend)
            # The others are being recorded by their own handlers: a process that ended now would cut that off.
            while self._settling() and not order.over:
                time.sleep(_SETTLING_LOOK)
        finally:
            order.end()

    def _settling(self) -> bool:
        return any(entry.attempt.phase is Phase.ENDED for entry in list(self._watched.values()))

    def _beat(self, due: list[_Watched], now: float) -> None:
        running = [entry for entry in due if self._may_renew(entry, now)]
        if not running:
            return
        try:
            answers = self._backend.renew(Renew([entry.lease for entry in running]))
            answered = list(zip(running, answers, strict=True))
        except Exception as error:  # whatever a backend raises, the other leases still need their beats
            self._missed(running, error)
            return
        self._heed(answered, now)

    def _may_renew(self, entry: _Watched, now: float) -> bool:
        """A handler over ``max_run`` is not kept alive: it may be deadlocked (L-01)."""
        if now < entry.until and not entry.attempt.lost:
            return True
        self.forget(entry.lease)
        return False

    def _heed(self, answered: list[tuple[_Watched, Renewal]], now: float) -> None:
        for entry, answer in answered:
            entry.renewed(now)
            if answer is Renewal.OWNED:
                entry.attempt.confirmed(now)
            # An attempt that is being settled may have given its record up itself; settlement knows better.
            if answer is Renewal.LOST and entry.attempt.phase is Phase.RUNNING:
                self._lose(entry)

    def _lose(self, entry: _Watched) -> None:
        entry.attempt.lost = True
        self.forget(entry.lease)
        event = events.OwnershipLost(events.short(entry.lease.record_id), entry.lease.attempt)
        tell(Emit(event, entry.attempt.policy.on_event))

    def _missed(self, running: list[_Watched], error: Exception) -> None:
        """The backend did not answer: the next look tries again, and the lease may outlast the trouble."""
        entry = running[0]
        failed = events.BackendFailed.of(events.short(entry.lease.record_id), "renew", error)
        tell(Emit(failed, entry.attempt.policy.on_event))


class Heartbeat:
    """Keeps the leases of running attempts alive, in whatever process it is used."""

    def __init__(self, backend: Backend) -> None:
        self._beats: PerProcess[_Beats] = PerProcess(lambda: _Beats(backend))
        weakref.finalize(self, _close, self._beats).atexit = False

    def watch(self, attempt: Attempt) -> None:
        """Renew the attempt's lease until it is forgotten, lost, or older than ``max_run``."""
        if attempt.lease is not None:
            self._beats.get().watch(attempt, attempt.lease)

    def forget(self, attempt: Attempt) -> None:
        """Stop renewing; the attempt has ended."""
        if attempt.lease is not None:
            self._beats.get().forget(attempt.lease)

    def close(self) -> None:
        """End this process's thread; what still runs is renewed no more. The next ``watch`` starts another one."""
        _close(self._beats)


def _close(beats: PerProcess[_Beats]) -> None:
    mine = beats.pop()
    if mine is not None:
        mine.close()
