"""Recordings in the background, on a real memory backend that becomes unavailable and available again (L-08)."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import pytest

from open_idempotency import drain, events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive, RecordLater
from open_idempotency._core.models import Busy, Completed, Finished, Leased, Renewal, Response
from open_idempotency._core.settlement import Fate, abort, finish
from open_idempotency._engine import shutdown
from open_idempotency._engine.engine import Engine, Performer
from open_idempotency._runtime import clocks, processes
from open_idempotency.backend import Claim, Complete, Fail, Get, Renew, Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from tests.unit.builders import PRINT, Clock, Listener, engine_of, eventually

LEASE = 30.0
DONE = Response(201, [], b"made")


class Store(MemoryBackend):
    """A memory backend with a clock that stands still and an ``away`` switch; notes each verb of an owner."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(clock=self.clock)
        self.away = threading.Event()
        self.verbs: list[str] = []
        self.asked = threading.Semaphore(0)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Renew, if the backend is available."""
        self._note(c)
        return super().renew(c)

    def complete(self, c: Complete, /) -> Completed:
        """Complete, if the backend is available."""
        self._note(c)
        return super().complete(c)

    def fail(self, c: Fail, /) -> None:
        """Fail, if the backend is available."""
        self._note(c)
        super().fail(c)

    def _note(self, c: object) -> None:
        self.verbs.append(type(c).__name__)
        self.asked.release()
        if self.away.is_set():
            raise BackendUnavailable("away")


class Desk:
    """An engine on such a backend, and requests that ended while it was away."""

    def __init__(self, store: Store | None = None, **fields: Any) -> None:
        self.store = store or Store()
        self.listener = Listener()
        self.engine: Engine = engine_of(
            self.store, **{"respond_within": 0, "lease": LEASE, "on_event": self.listener, **fields}
        )

    def claim(self, name: bytes = b"r", owner: bytes = b"") -> Any:
        """Claim a record."""
        command = Claim(name.ljust(32, b"."), PRINT, (owner or name).rjust(16, b"."), self.engine.policy.lease, 60.0)
        return self.store.claim(command)

    def admit(self, name: bytes = b"r", owner: bytes = b"") -> Attempt:
        """Begin an attempt."""
        leased = self.claim(name, owner)
        assert isinstance(leased, Leased)
        attempt = Attempt.of(leased.lease, leased.stages, self.engine.policy, "/")
        self.engine.heartbeat.keep(KeepAlive(attempt))
        return attempt

    def finish(self, attempt: Attempt, response: Response = DONE) -> Fate | Response:
        """End the attempt, as an adapter does."""
        try:
            return self.engine.sync.run(finish(attempt, response))
        finally:
            self.engine.heartbeat.forget(attempt)

    def fate(self, name: bytes = b"r") -> Status:
        """The status of the record."""
        record = self.store.get(Get(name.ljust(32, b".")))
        return Status.NONE if record is None else record.status

    @property
    def watched(self) -> int:
        """How many leases are renewed."""
        return len(self.engine.heartbeat._beats.get()._watched)

    def close(self) -> None:
        """End all recordings, so that none affects another test."""
        self.store.away.clear()
        eventually(lambda: len(self.engine.heartbeat._beats.get()._recordings) == 0)
        self.engine.heartbeat.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    """A desk whose backend is away."""
    desk = Desk()
    yield desk
    desk.close()


def test_it_is_recorded_when_the_store_is_back(desk: Desk) -> None:
    """L-08: once, although the adapter has forgotten the attempt; afterwards nothing is renewed."""
    attempt = desk.admit()
    desk.store.away.set()
    assert desk.finish(attempt) is Fate.UNRECORDED
    for _ in range(4):
        assert desk.store.asked.acquire(timeout=10)
    assert (desk.fate(), desk.watched) == (Status.IN_PROGRESS, 1)
    desk.store.away.clear()
    eventually(lambda: desk.fate() is Status.COMPLETED)
    eventually(lambda: desk.watched == 0)
    eventually(lambda: desk.listener.kinds()[-1] is events.RecordedLate)
    assert desk.listener.kinds().count(events.Unrecorded) == 1
    assert isinstance(desk.claim(owner=b"retry"), Finished)


def test_the_lease_is_renewed_while_it_waits_to_be_recorded() -> None:
    """L-08, L-01: no other worker takes over while the backend accepts renewals."""

    class Full(Store):
        """A backend that accepts renewals, and nothing else, while it is away."""

        def renew(self, c: Renew, /) -> Sequence[Renewal]:
            self.asked.release()
            return MemoryBackend.renew(self, c)

    desk = Desk(Full(), lease=0.3)
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    known = attempt.sure_until
    eventually(lambda: attempt.sure_until != known)
    known = attempt.sure_until
    eventually(lambda: attempt.sure_until > known)
    assert not attempt.lost
    desk.close()
    assert desk.fate() is Status.COMPLETED


def test_a_recording_that_comes_back_to_a_takeover_is_dropped_and_harms_nothing(desk: Desk) -> None:
    """L-03, L-08: the backend was available again just after the lease had ended, and the retry runs."""
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    desk.store.clock.now += LEASE + 1
    successor = desk.admit(owner=b"retry")
    assert successor.lease is not None
    assert successor.lease.attempt == 2
    desk.store.away.clear()
    eventually(lambda: desk.listener.kinds()[-2:] == [events.OwnershipLost, events.RecordingLost])
    assert desk.listener.seen[-1].reason == "superseded"
    eventually(lambda: desk.watched == 1)
    assert desk.fate() is Status.IN_PROGRESS
    assert desk.finish(successor, Response(202, [], b"theirs")) is Fate.KEPT
    assert not successor.lost


def test_of_two_recordings_of_one_key_the_later_attempts_counts(desk: Desk) -> None:
    """B-03, L-08: whichever is written first."""
    first = desk.admit()
    desk.store.away.set()
    desk.finish(first)
    desk.store.clock.now += LEASE + 1
    second = desk.admit(owner=b"retry")
    desk.finish(second, Response(202, [], b"theirs"))
    desk.store.away.clear()
    eventually(lambda: {events.RecordedLate, events.RecordingLost} <= set(desk.listener.kinds()))
    assert [event.status for event in desk.listener.seen if isinstance(event, events.RecordedLate)] == [202]
    assert [event.status for event in desk.listener.seen if isinstance(event, events.RecordingLost)] == [201]
    assert desk.fate() is Status.COMPLETED


def test_a_lease_that_ended_without_a_takeover_is_completed_all_the_same(desk: Desk) -> None:
    """L-08: no other attempt has run meanwhile."""
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    desk.store.clock.now += LEASE + 1
    desk.store.away.clear()
    eventually(lambda: desk.fate() is Status.COMPLETED)


def test_a_record_that_vanished_meanwhile_is_made_anew(desk: Desk) -> None:
    """B-08a, L-08: the backend lost it while it was away."""
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    assert attempt.lease is not None
    desk.store.delete(attempt.lease.record_id)
    desk.store.away.clear()
    eventually(lambda: desk.listener.kinds()[-2:] == [events.Recreated, events.RecordedLate])
    assert isinstance(desk.claim(owner=b"retry"), Finished)


def test_a_failure_is_recorded_when_the_store_is_back(desk: Desk) -> None:
    """L-04, L-08: the retry runs then, and waits for no lease."""
    attempt = desk.admit()
    desk.store.away.set()
    desk.engine.sync.run(abort(attempt, ValueError()))
    desk.engine.heartbeat.forget(attempt)
    assert isinstance(desk.claim(owner=b"retry"), Busy)
    desk.store.away.clear()
    eventually(lambda: desk.fate() is Status.FAILED)
    retry = desk.claim(owner=b"retry")
    assert isinstance(retry, Leased)
    assert retry.lease.attempt == 2


def test_a_hundred_recordings_ask_a_store_that_is_away_once_a_round(desk: Desk) -> None:
    """L-01, L-08: each call may take its timeout, and renewals must not wait for a hundred calls."""
    beats = desk.engine.heartbeat._beats.get()
    desk.store.away.set()
    pending = shutdown.Recordings(desk.store, beats._courier.report, lambda _: None)
    for number in range(100):
        attempt = desk.admit(b"%d" % number)
        pending.add(b"%d" % number, later_of(desk, attempt))
        desk.engine.heartbeat.forget(attempt)
    renewed: list[float] = []
    pending.go_on(lambda: renewed.append(time.monotonic()))  # each pauses first
    assert len(renewed) == 100
    desk.store.verbs.clear()
    for _ in range(3):
        pending.wake_all()
        pending.go_on(lambda: renewed.append(time.monotonic()))
    assert desk.store.verbs == ["Complete"] * 3
    desk.store.away.clear()
    renewed.clear()
    pending.wake_all()
    pending.go_on(lambda: renewed.append(time.monotonic()))
    assert (len(pending), len(renewed)) == (0, 100)


def test_a_recording_that_fails_lets_the_others_go_first(desk: Desk) -> None:
    """L-08: one of several servers may be away for long."""
    pending = shutdown.Recordings(desk.store, lambda _: None, lambda _: None)
    for name in (b"1", b"2"):
        attempt = desk.admit(name)
        pending.add(name, later_of(desk, attempt))
        desk.engine.heartbeat.forget(attempt)
    pending.go_on(lambda: None)
    pending.wake_all()
    desk.store.away.set()
    pending.go_on(lambda: None)
    assert pending.pending[b"2"].wake < pending.pending[b"1"].wake
    assert pending.wake > clocks.elapsed() - 1.0
    desk.store.away.clear()
    desk.store.verbs.clear()
    pending._left_alone = 0.0
    pending.go_on(lambda: None)
    assert list(pending.pending) in ([b"1"], [])


def test_a_store_that_is_away_is_asked_once_a_second_however_much_waits(desk: Desk) -> None:
    """L-08: neither the backend nor the log is flooded."""
    pending = shutdown.Recordings(desk.store, lambda _: None, lambda _: None)
    for number in range(20):
        attempt = desk.admit(b"%d" % number)
        pending.add(b"%d" % number, later_of(desk, attempt))
        desk.engine.heartbeat.forget(attempt)
    pending.go_on(lambda: None)
    desk.store.away.set()
    pauses = []
    for _ in range(8):
        pending.wake_all()
        before = time.monotonic()
        pending.go_on(lambda: None)
        pauses.append(round(pending._left_alone - before, 1))
        pending.go_on(lambda: None)  # too early
    assert pauses == sorted(pauses)
    assert 0.9 <= pauses[-1] <= 1.1
    assert desk.store.verbs == ["Complete"] * 8


def later_of(desk: Desk, attempt: Attempt) -> RecordLater:
    """The recording that is handed over when this attempt ends now."""
    handed: list[RecordLater] = []

    class Keeper:
        """Accepts recordings, and carries none out."""

        def keep(self, command: KeepAlive) -> None:
            """Nothing."""

        def record(self, command: RecordLater) -> bool:
            """Accept the recording."""
            handed.append(command)
            return True

    class Away(MemoryBackend):
        def complete(self, c: Complete, /) -> Completed:
            raise BackendUnavailable("away")

    Performer(Away(), Keeper()).run(finish(attempt, DONE))
    return handed[0]


@pytest.mark.parametrize(("bound", "size"), [("MOST", 1), ("MOST_BYTES", 100)])
def test_what_waits_to_be_recorded_is_bounded_and_what_is_lost_is_reported(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, bound: str, size: int
) -> None:
    """L-08: the bound is in number and in bytes."""
    monkeypatch.setattr(shutdown, bound, size)
    desk.store.away.set()
    body = Response(201, [], b"x" * 60)
    first, second = desk.admit(b"1"), desk.admit(b"2")
    assert desk.finish(first, body) is Fate.UNRECORDED
    assert desk.finish(second, body) is Fate.UNRECORDED
    lost = [event for event in desk.listener.seen if isinstance(event, events.RecordingLost)]
    assert [event.reason for event in lost] == ["room"]
    assert desk.watched == 1


def test_a_process_that_drains_waits_for_what_is_being_recorded(desk: Desk) -> None:
    """L-06, L-08: a process that exits now would lose the recording."""
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    threading.Timer(0.3, desk.store.away.clear).start()
    assert drain(timeout=20.0) == 0
    assert desk.fate() is Status.COMPLETED
    assert not attempt.lost


def test_a_drain_waits_no_longer_than_its_timeout_and_the_recording_goes_on(desk: Desk) -> None:
    """L-06, L-08: if the process exits then, the lost recording is reported."""
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    before = time.monotonic()
    drain(timeout=0.2)
    assert time.monotonic() - before < 5.0
    desk.engine.heartbeat._beats.get().report_lost()
    lost = [event for event in desk.listener.seen if isinstance(event, events.RecordingLost)]
    assert [event.reason for event in lost] == ["exit"]
    desk.store.away.clear()
    eventually(lambda: desk.fate() is Status.COMPLETED)


@pytest.mark.parametrize("how", ["closed", "thrown away"])
def test_a_heartbeat_that_nobody_needs_any_more_records_what_it_has(how: str) -> None:
    """L-08, L-01: then its thread ends."""
    desk = Desk()
    attempt = desk.admit()
    desk.store.away.set()
    desk.finish(attempt)
    store, thread = desk.store, desk.engine.heartbeat._beats.get()._thread
    assert thread is not None
    gone = weakref.ref(desk.engine.heartbeat)
    if how == "closed":
        desk.engine.heartbeat.close()
    del desk
    gc.collect()
    assert gone() is None
    assert thread.is_alive()
    store.away.clear()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(store.claim(Claim(b"r".ljust(32, b"."), PRINT, b"x" * 16, 30.0, 60.0)), Finished)


def test_the_end_of_a_request_is_known_where_the_server_says_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """L-08: two seconds before the server kills its worker; without such a limit there is none."""
    monkeypatch.setattr(processes, "limit", inf)
    assert desk.admit(b"1").ends_at == inf
    processes.limit_requests(30.0)
    before = clocks.elapsed()
    assert before + 28.0 <= desk.admit(b"2").ends_at <= clocks.elapsed() + 28.0


def test_an_attempt_that_outlived_max_run_is_renewed_again_while_it_is_recorded() -> None:
    """L-01, L-08: its handler has ended, so it does not hang."""
    desk = Desk(lease=0.06, max_run=0.06, record_within=30)
    attempt = desk.admit()
    eventually(lambda: desk.watched == 0)
    desk.store.away.set()
    desk.finish(attempt)
    eventually(lambda: "Renew" in desk.store.verbs[-4:])
    desk.close()
    eventually(lambda: desk.fate() is Status.COMPLETED)
