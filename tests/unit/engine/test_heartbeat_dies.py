"""The heartbeat's thread cannot start, dies, or is held up: running attempts are renewed all the same."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from open_idempotency import drain, events
from open_idempotency._core.commands import Emit, Renew
from open_idempotency._core.models import Renewal
from open_idempotency._engine import event_log, heartbeat
from open_idempotency._engine.event_log import Courier
from open_idempotency._engine.heartbeat import _Beats
from open_idempotency._engine.shutdown import Pass, _leases
from open_idempotency._runtime import clocks
from open_idempotency.exceptions import BackendUnavailable
from tests.unit.builders import Clock, Listener, RecordingBackend, eventually
from tests.unit.engine.test_heartbeat import Desk, beating_threads, desk

__all__ = ["desk"]


def refusing(names: str, error: Exception) -> Callable[[threading.Thread], None]:
    """``Thread.start`` that fails for threads of this name, as at a process limit."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == names:
            raise error
        start(thread)

    return refuse


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), OSError("no room")])
def test_a_thread_that_cannot_be_started_is_reported_and_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """L-11: the next claim tries again, and is renewed."""
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refusing("open-idempotency-heartbeat", error))
        for name in (b"first", b"second"):
            with pytest.raises(BackendUnavailable) as caught:
                desk.admit(name)
            assert caught.value.__cause__ is error
    assert not desk.heartbeat._beats.get()._watched
    desk.admit(b"third")
    desk.backend.await_beats(2)


class Interrupted(RecordingBackend):
    """A backend whose renewals end the calling thread for a while."""

    error: BaseException | None = None
    interruptions = 0

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Raise the prepared exception once."""
        error, self.error = self.error, None
        if error is not None:
            self.interruptions += 1
            raise error
        return super().renew(c)


@pytest.mark.parametrize("error", [SystemExit(), MemoryError(), KeyboardInterrupt(), GeneratorExit()])
def test_no_error_ends_the_thread(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """L-01: nothing else renews the running attempts."""
    monkeypatch.setattr("open_idempotency._engine.heartbeat._PAUSE", 0.01)
    backend = Interrupted(clock=Clock())
    desk = Desk(backend)
    backend.error = error
    attempt = desk.admit()
    desk.backend.await_beats(2)
    assert (backend.interruptions, attempt.lost) == (1, False)
    desk.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_was_ended_from_outside_is_started_again_by_the_next_claim(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-01: the new thread renews the earlier attempts, too."""

    def end(*_: object) -> None:
        raise SystemExit

    before = beating_threads()
    first = desk.admit(b"first")
    (thread,) = beating_threads() - before
    with monkeypatch.context() as patched:
        patched.setattr("open_idempotency._engine.heartbeat.time.sleep", end)
        patched.setattr("open_idempotency._engine.heartbeat._logger.exception", lambda *_: None)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(10)
    assert not thread.is_alive()
    assert_nothing_waits_for(desk.heartbeat._beats.get())
    seen = len(desk.backend.renewals)
    desk.admit(b"second")
    eventually(lambda: 2 in [count for _, count in desk.backend.renewals[seen:]])
    assert not first.lost


def test_a_thread_that_has_ended_delays_no_drain() -> None:
    """L-06: a drain may have found the thread alive just before it ended."""
    desk = Desk(RecordingBackend(clock=Clock()))
    before = beating_threads()
    desk.admit()
    (thread,) = beating_threads() - before
    beats = desk.heartbeat._beats.get()
    desk.heartbeat.close()
    thread.join(10)
    assert not thread.is_alive()
    assert_nothing_waits_for(beats)


def assert_nothing_waits_for(beats: _Beats) -> None:
    assert beats not in _leases.get()
    order = Pass(time.monotonic() + 60)
    beats.drain(order)
    assert order.ended


# Listeners


class Held(Listener):
    """A listener that returns only when its gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self, event: events.Event) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        super().__call__(event)


def test_a_listener_that_blocks_delays_no_renewal(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """L-01: listeners run on another thread; the log has the event at once, and the listener gets it later."""
    listener = desk.listener = Held()
    lost = desk.admit(b"lost")
    desk.admit(b"kept")
    assert lost.lease is not None
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        lost.lease.token -= 1
        assert listener.entered.wait(10)
        desk.backend.await_beats(5)
        assert "OwnershipLost" in caplog.text
    assert listener.seen == []
    listener.gate.set()
    eventually(lambda: listener.kinds() == [events.OwnershipLost])


def test_a_listener_that_blocks_does_not_keep_a_process_from_draining(desk: Desk) -> None:
    """L-06, L-01: the process can exit as well."""
    listener = desk.listener = Held()
    desk.admit(b"r", lease=30.0)
    try:
        assert drain(timeout=20.0) == 1
        assert listener.entered.wait(10)
    finally:
        listener.gate.set()
    eventually(lambda: listener.kinds() == [events.Failed])


def test_what_a_drain_reports_has_reached_the_listener_when_it_returns(desk: Desk) -> None:
    """L-06: the process may end a moment later."""
    desk.admit(b"r", lease=30.0)
    drain()
    assert desk.listener.kinds() == [events.Failed]


def test_events_that_do_not_fit_are_counted_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """L-01: the queue is bounded, and no event is dropped silently."""
    monkeypatch.setattr(event_log, "MOST_WAITING", 3)
    carrier, listener = Courier(), Held()
    with caplog.at_level(logging.DEBUG, "open_idempotency"):
        reported = [events.Claimed(f"{number:012}", 1) for number in range(6)]
        carrier.report(Emit(reported[0], listener))
        assert listener.entered.wait(10)
        for event in reported[1:]:
            carrier.report(Emit(event, listener))
        assert carrier.dropped == 2
        assert all(event.record in caplog.text for event in reported)
        assert "3 events wait for it" in caplog.text
        listener.gate.set()
        eventually(lambda: "2 events were logged only" in caplog.text)
    assert listener.seen == reported[:4]


def test_a_listener_that_ends_its_thread_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """L-01: the heartbeat and other events continue."""
    carrier, listener = Courier(), Listener()

    def leave(event: events.Event) -> None:
        raise SystemExit

    carrier.report(Emit(events.Claimed("0", 1), leave))
    carrier.report(Emit(events.Claimed("1", 1), listener))
    eventually(lambda: len(listener.seen) == 1)
    assert "the on_event listener raised on Claimed" in caplog.text


def test_without_a_thread_events_wait_and_the_end_of_the_process_delivers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """L-01: Python starts no thread while the interpreter exits."""
    carrier, listener = Courier(), Listener()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refusing("open-idempotency-events", RuntimeError("shutdown")))
        carrier.report(Emit(events.Claimed("0", 1), listener))
        assert listener.seen == []
        carrier.flush(0.0)
        assert len(listener.seen) == 1
    carrier.report(Emit(events.Claimed("1", 1), listener))
    eventually(lambda: len(listener.seen) == 2)


# Handlers that hang


def reports(desk: Desk) -> list[events.StillRunning]:
    """The reports of handlers that hang."""
    return [event for event in desk.listener.seen if isinstance(event, events.StillRunning)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the heartbeats: marks that pass together are reported once."""
    clock = Clock(clocks.elapsed())
    monkeypatch.setattr(heartbeat, "clocks", SimpleNamespace(elapsed=clock))
    return clock


def run_to(desk: Desk, clock: Clock, *marks: float) -> None:
    """Move the clock to these marks one after the other; each has to be reported."""
    began = clock.now
    for number, mark in enumerate(marks, 1):
        clock.now = began + mark
        eventually(lambda number=number: len(reports(desk)) == number)


def test_a_handler_that_hangs_is_reported_at_four_leases_and_each_quarter_of_max_run(
    desk: Desk, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """L-12: with its route and its record; the last report says that the lease is not renewed any more."""
    attempt = desk.admit(lease=0.06, max_run=1.2)
    attempt.method, attempt.instance = "POST", "/charges/\n7"
    assert attempt.lease is not None
    record = events.short(attempt.lease.record_id)
    marks = (0.24, 0.3, 0.6, 0.9, 1.2)
    run_to(desk, clock, *(mark + 0.001 for mark in marks))
    said = reports(desk)
    assert [event.seconds for event in said] == pytest.approx(marks, abs=0.06)  # it is rounded
    assert [event.renewed for event in said] == [True] * 4 + [False]
    assert {(event.record, event.method, event.path) for event in said} == {(record, "POST", "/charges/?7")}
    warned = [entry for entry in caplog.records if "is still running after" in entry.getMessage()]
    assert len(warned) == 5
    assert all(entry.levelno == logging.WARNING and record in entry.getMessage() for entry in warned)


def test_a_handler_that_is_faster_is_not_reported(desk: Desk) -> None:
    """L-12."""
    ended = desk.admit(b"ended", lease=0.06)
    desk.heartbeat.forget(ended)
    desk.admit(b"running", lease=0.06)
    eventually(lambda: len(reports(desk)) == 1)
    assert reports(desk)[0].record == events.short(b"running".ljust(32, b"."))


def test_where_max_run_is_short_only_its_quarters_count(desk: Desk, clock: Clock) -> None:
    """L-12: four leases would be past it."""
    desk.admit(lease=0.2, max_run=0.4)
    run_to(desk, clock, 0.101, 0.201, 0.301, 0.401)
