"""The heartbeat on a real memory backend, with very short leases; the backend's own signals end every wait."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Claim, KeepAlive, Renew
from open_idempotency._core.models import Leased, Renewal
from open_idempotency._engine.heartbeat import BATCH, IDLE_LOOKS, Heartbeat, _Beats, _Watched
from open_idempotency.exceptions import BackendUnavailable
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import PRINT, Clock, Listener, RecordingBackend, attempt_of, eventually, lease_of

FORK_SCRIPT = Path(__file__).with_name("fork_heartbeat.py")


class Desk:
    """A backend on a clock that stands still, its heartbeat, and the admitted attempts."""

    def __init__(self, backend: RecordingBackend | None = None) -> None:
        self.backend = backend or RecordingBackend(clock=Clock())
        self.heartbeat = Heartbeat(self.backend)
        self.listener = Listener()
        self.attempts: list[Attempt] = []

    def admit(self, name: bytes = b"r", lease: float = 0.15, **fields: Any) -> Attempt:
        """Claim a record and watch its attempt."""
        claim = Claim(name.ljust(32, b"."), PRINT, name.rjust(16, b"."), lease, 60.0)
        leased = self.backend.claim(claim)
        assert isinstance(leased, Leased)
        policy = IdempotencyPolicy(lease=lease, on_event=self.listener, **fields)
        attempt = Attempt.of(leased.lease, leased.stages, policy, "/")
        self.attempts.append(attempt)
        self.heartbeat.keep(KeepAlive(attempt))
        return attempt

    def close(self) -> None:
        """Forget all watched attempts."""
        for attempt in self.attempts:
            self.heartbeat.forget(attempt)


@pytest.fixture
def desk() -> Any:
    """A desk that is closed afterwards."""
    desk = Desk()
    yield desk
    desk.close()


def beating_threads() -> set[threading.Thread]:
    """The heartbeat threads of this process, including those of other tests."""
    return {thread for thread in threading.enumerate() if thread.name == "open-idempotency-heartbeat"}


def test_no_lease_is_renewed_before_a_third_of_it_has_passed(desk: Desk) -> None:
    """L-01: a faster handler costs no call."""
    before = time.monotonic()
    desk.admit(lease=0.3)
    desk.backend.await_beats()
    assert desk.backend.renewals[0][0] - before >= 0.1


def test_a_lease_is_renewed_again_and_again_while_the_handler_runs(desk: Desk) -> None:
    """L-01: at each third of the lease; the backend's clock stands still, so each renewal sets the same end."""
    before = time.monotonic()
    attempt = desk.admit()
    desk.backend.await_beats(3)
    # Each beat is due a third of the lease after the one before: a slow machine makes them later, never sooner.
    assert desk.backend.renewals[2][0] - before >= 3 * 0.05
    assert not attempt.lost


def test_a_renewal_moves_the_end_of_the_lease_on_the_backends_clock(desk: Desk) -> None:
    """L-01, L-07."""
    clock = Clock()
    desk.backend._table.now = clock
    attempt = desk.admit()
    clock.now += 0.1
    desk.backend.await_beats(2)
    record = next(iter(desk.backend.scan()))
    assert attempt.lease is not None
    assert record.lease_end == clock.now + attempt.lease.duration


def test_a_forgotten_attempt_is_not_renewed_any_more(desk: Desk) -> None:
    """L-01: after the call that may be in flight."""
    ended, running = desk.admit(b"ended"), desk.admit(b"running")
    desk.heartbeat.forget(ended)
    seen = len(desk.backend.renewals)
    eventually(lambda: len(desk.backend.renewals) > seen + 2)
    # One call may have been in flight when the attempt was forgotten.
    assert {count for _, count in desk.backend.renewals[seen + 1 :]} == {1}
    assert running.lease is not None


def test_an_attempt_without_a_lease_is_not_watched(desk: Desk) -> None:
    """A request without a key costs no backend call and no thread."""
    attempt = Attempt(IdempotencyPolicy())
    before = beating_threads()
    desk.heartbeat.keep(KeepAlive(attempt))
    desk.heartbeat.forget(attempt)
    assert beating_threads() <= before  # those of other tests may end meanwhile


def test_one_thread_serves_all_attempts(desk: Desk) -> None:
    """L-01: a process has one thread for all requests."""
    before = beating_threads()
    for number in range(20):
        desk.admit(b"%d" % number)
    desk.backend.await_beats()
    assert len(beating_threads() - before) == 1


def test_many_leases_are_renewed_in_batches(desk: Desk) -> None:
    """B-04: one call for at most 500."""
    for number in range(2 * BATCH + 7):
        desk.admit(b"%d" % number, lease=2.0)
    desk.backend.await_beats(3)
    counts = [count for _, count in desk.backend.renewals]
    assert BATCH == 500
    assert max(counts) <= BATCH
    eventually(lambda: sum(count for _, count in desk.backend.renewals) >= 2 * BATCH + 7)


def test_leases_that_are_nearly_due_fill_a_call_that_goes_out_anyway(desk: Desk) -> None:
    """Requests that began at different times are renewed together, in full calls."""
    beats = _Beats(desk.backend)
    for number, due in enumerate([5.0, 12.0, 14.0]):
        entry = _Watched(attempt_of(), lease_of(), 0.0)
        entry.due, entry.early = due, due - 2.5
        beats._watched[b"%d" % number] = entry
    assert [entry.due for entry in beats._due(10.0)] == [5.0, 12.0]
    assert beats._due(4.0) == []


def test_a_call_is_filled_no_further_than_it_has_room(desk: Desk) -> None:
    """B-04: one call for 500, and no second call for leases that are not due."""
    beats = _Beats(desk.backend)
    for number in range(BATCH + 3):
        entry = _Watched(attempt_of(), lease_of(), 0.0)
        entry.due, entry.early = (5.0 if number < 2 else 12.0), 2.5
        beats._watched[b"%d" % number] = entry
    assert len(beats._due(10.0)) == BATCH


def test_no_lease_is_renewed_early_before_its_first_beat(desk: Desk) -> None:
    """A short handler costs no renewal when another request's lease is renewed."""
    desk.admit(b"running", lease=0.3)
    desk.backend.await_beats()
    before = time.monotonic()
    desk.admit(b"new", lease=0.3)
    eventually(lambda: 2 in [count for _, count in desk.backend.renewals])
    first = next(at for at, count in desk.backend.renewals if count == 2)
    assert first - before >= 0.1


def test_a_backend_that_hangs_delays_no_beat_of_another() -> None:
    """L-01, I11: each backend has a thread of its own."""
    hanging, other = Desk(HangingBackend()), Desk()
    try:
        hanging.admit()
        assert isinstance(hanging.backend, HangingBackend)
        assert hanging.backend.entered.wait(10.0)
        other.admit()
        other.backend.await_beats(3)
        assert not hanging.backend.go_on.is_set()
    finally:
        hanging.backend.go_on.set()
        hanging.close()
        other.close()


class HangingBackend(RecordingBackend):
    """A backend whose renewals reply only when a test lets them."""

    def __init__(self) -> None:
        super().__init__(clock=Clock())
        self.entered, self.go_on = threading.Event(), threading.Event()

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Signal the call, and wait."""
        self.entered.set()
        self.go_on.wait(30.0)
        return super().renew(c)


def test_a_lost_lease_marks_its_attempt_and_is_reported_once(desk: Desk) -> None:
    """L-03, S-07."""
    lost, kept = desk.admit(b"lost"), desk.admit(b"kept")
    assert lost.lease is not None
    lost.lease.token -= 1
    desk.backend.await_beats(4)
    eventually(lambda: lost.lost)
    assert not kept.lost
    eventually(lambda: desk.listener.kinds() == [events.OwnershipLost])
    assert desk.backend.renewals[-1][1] == 1


def test_an_attempt_that_is_being_settled_is_not_called_lost(desk: Desk) -> None:
    """L-03: its own failure or release may just have ended the record."""
    settled = desk.admit(b"settled")
    assert settled.lease is not None
    settled.phase = Phase.ENDED
    settled.lease.token -= 1
    desk.backend.await_beats(2)
    desk.heartbeat.forget(settled)
    assert not settled.lost
    assert desk.listener.seen == []


def test_a_record_that_vanished_is_not_a_lost_lease(desk: Desk) -> None:
    """B-08a: its owner may recreate it."""
    attempt = desk.admit()
    assert attempt.lease is not None
    desk.backend.delete(attempt.lease.record_id)
    desk.backend.await_beats(2)
    assert not attempt.lost
    assert desk.listener.seen == []


@pytest.mark.parametrize("failure", [BackendUnavailable("down"), RuntimeError("a backend's own bug")])
def test_a_backend_that_is_down_is_asked_again(desk: Desk, failure: Exception) -> None:
    """L-01, B-10: the lease may outlast the failure, so the thread must continue."""
    desk.backend.failure = failure
    attempt = desk.admit()
    desk.backend.await_beats(3)
    eventually(lambda: len(desk.listener.seen) >= 2)
    assert set(desk.listener.kinds()) == {events.BackendFailed}
    desk.backend.failure = None
    desk.backend.await_beats(2)
    count = len(desk.listener.seen)
    desk.backend.await_beats(3)
    assert len(desk.listener.seen) <= count + 1
    assert not attempt.lost


class Miscounting(RecordingBackend):
    """A backend that once returns too few results."""

    wrong = 1

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Leave the last result out, the first time."""
        renewals = super().renew(c)
        if self.wrong:
            self.wrong -= 1
            return renewals[:-1]
        return renewals


def test_a_backend_that_miscounts_does_not_stop_the_heartbeat() -> None:
    """L-01: otherwise one wrong result would cost every lease of the process."""
    desk = Desk(Miscounting(clock=Clock()))
    attempt = desk.admit()
    desk.backend.await_beats(3)
    assert not attempt.lost
    eventually(lambda: desk.listener.kinds()[:1] == [events.BackendFailed])
    desk.close()


def test_a_listener_that_raises_does_not_stop_the_heartbeat(desk: Desk) -> None:
    """A listener's error affects no request."""

    def listener(event: events.Event) -> None:
        raise RuntimeError("a listener's bug")

    desk.backend.failure = BackendUnavailable("down")
    desk.listener = listener
    desk.admit()
    desk.backend.await_beats(3)


def test_a_handler_over_max_run_is_not_kept_alive(desk: Desk) -> None:
    """L-01: a deadlocked handler does not hold its key for ever."""
    deadlocked, running = desk.admit(b"deadlocked", lease=0.06, max_run=0.06), desk.admit(b"running", lease=0.06)
    watched = desk.heartbeat._beats.get()._watched
    eventually(lambda: len(watched) == 1)
    assert running.lease is not None
    assert list(watched) == [running.lease.owner]
    assert not deadlocked.lost


def test_an_idle_thread_sleeps_and_is_woken_by_the_next_request(desk: Desk) -> None:
    """An idle process costs nothing; the next lease is renewed all the same."""
    attempt = desk.admit(lease=0.03)
    beats = desk.heartbeat._beats.get()
    desk.heartbeat.forget(attempt)
    assert IDLE_LOOKS > 0
    eventually(lambda: beats._look == inf)
    seen = len(desk.backend.renewals)
    desk.admit(b"next", lease=0.03)
    eventually(lambda: len(desk.backend.renewals) > seen)


def test_a_shorter_lease_hurries_a_thread_that_naps_for_a_longer_one(desk: Desk) -> None:
    """L-01: routes may have different leases."""
    desk.admit(b"long", lease=600.0)
    before = time.monotonic()
    desk.admit(b"short", lease=0.15)
    desk.backend.await_beats()
    assert desk.backend.renewals[0][1] == 1
    assert desk.backend.renewals[0][0] - before < 5.0


def test_one_short_lease_does_not_hurry_the_thread_for_ever(desk: Desk) -> None:
    """The thread wakes as often as the current leases need it."""
    desk.admit(b"long", lease=12.0)
    beats = desk.heartbeat._beats.get()
    eventually(lambda: beats._look == 1.0)
    short = desk.admit(b"short", lease=0.12)
    eventually(lambda: beats._look == 0.01)
    desk.heartbeat.forget(short)
    eventually(lambda: beats._look == 1.0)


def test_a_closed_heartbeat_ends_its_thread_and_beats_again_when_it_is_used_again(desk: Desk) -> None:
    """L-01: an application that is discarded leaves no thread behind."""
    before = beating_threads()
    desk.admit(lease=0.06)
    desk.backend.await_beats()
    (thread,) = beating_threads() - before
    desk.heartbeat.close()
    thread.join(10)
    assert not thread.is_alive()
    desk.admit(b"next", lease=0.06)
    desk.backend.await_beats()
    assert len(beating_threads() - before) == 1
    desk.heartbeat.close()


def test_the_thread_ends_with_the_heartbeat_that_nobody_has_any_more() -> None:
    """L-01: a discarded application leaves no thread behind even if nothing closes its heartbeat."""
    before = beating_threads()
    desk = Desk()
    desk.admit(lease=0.06)
    (thread,) = beating_threads() - before
    gone = weakref.ref(desk.heartbeat)
    del desk
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_forked_child_has_a_heartbeat_of_its_own() -> None:
    """B-11: threads do not survive a fork (gunicorn --preload)."""
    ended = subprocess.run([sys.executable, str(FORK_SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, ["child", "beats", "parent", "beats"]), ended.stderr
