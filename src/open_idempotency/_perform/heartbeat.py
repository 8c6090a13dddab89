"""The heartbeat: one thread a process renews every lease that is running, in batches, with the blocking colour.

It is a thread so that a blocked event loop does not starve it. A lease is renewed once a third of it has passed, so a
handler that is faster costs no call. Nothing here decides who owns a record: the backend says so, and an attempt that
lost its lease is marked for its next stage to notice.
"""

from __future__ import annotations

import threading
import time

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Emit, Renew
from open_idempotency._core.models import Lease, Renewal
from open_idempotency._perform.processes import PerProcess
from open_idempotency._perform.telling import tell
from open_idempotency.backend import Backend

BEATS_A_LEASE = 3
#: how often the thread looks, as a part of the shortest lease: a renewal is at most this much late
LOOKS_A_LEASE = 12
BATCH = 500
#: after so many looks with nothing to renew the thread sleeps until it is woken
IDLE_LOOKS = 24


class _Watched:
    """A running attempt and the monotonic times (seconds) that matter to it."""

    __slots__ = ("attempt", "due", "lease", "until")

    def __init__(self, attempt: Attempt, lease: Lease, now: float) -> None:
        self.attempt = attempt
        self.lease = lease
        self.due = now + lease.duration / BEATS_A_LEASE
        self.until = now + attempt.policy.max_run


class _Beats:
    """The thread of one process and what it watches."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._watched: dict[bytes, _Watched] = {}
        self._look = float("inf")
        self._idle = 0
        self._asleep = threading.Event()
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, attempt: Attempt, lease: Lease) -> None:
        look = lease.duration / LOOKS_A_LEASE
        hurry = look < self._look
        if hurry:
            self._look = look
        self._watched[lease.owner] = _Watched(attempt, lease, time.monotonic())
        if self._thread is None:
            self._start()
        if hurry or self._asleep.is_set():
            self._wake.set()

    def forget(self, lease: Lease) -> None:
        self._watched.pop(lease.owner, None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="open-idempotency-heartbeat", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._nap())
            self._wake.clear()
            self._asleep.clear()
            now = time.monotonic()
            watched = list(self._watched.values())
            self._idle = 0 if watched else self._idle + 1
            due = [entry for entry in watched if entry.due <= now]
            for start in range(0, len(due), BATCH):
                self._beat(due[start : start + BATCH], now)

    def _nap(self) -> float | None:
        """Seconds until the next look; None, which is until woken, after a while with nothing to do."""
        if self._idle < IDLE_LOOKS:
            return self._look
        self._asleep.set()
        # Somebody may have come between the last look and the flag, and not have seen it.
        return self._look if self._watched else None

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
            entry.due = now + entry.lease.duration / BEATS_A_LEASE
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
        cause = type(error.__cause__ or error).__name__
        tell(
            Emit(
                events.BackendFailed(events.short(entry.lease.record_id), "renew", cause), entry.attempt.policy.on_event
            )
        )


class Heartbeat:
    """Keeps the leases of running attempts alive, in whatever process it is used."""

    def __init__(self, backend: Backend) -> None:
        self._beats: PerProcess[_Beats] = PerProcess(lambda: _Beats(backend))

    def watch(self, attempt: Attempt) -> None:
        """Renew the attempt's lease until it is forgotten, lost, or older than ``max_run``."""
        if attempt.lease is not None:
            self._beats.get().watch(attempt, attempt.lease)

    def forget(self, attempt: Attempt) -> None:
        """Stop renewing; the attempt has ended."""
        if attempt.lease is not None:
            self._beats.get().forget(attempt.lease)
