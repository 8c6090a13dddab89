"""A backend that is down when a handler has finished: the client does not wait, and the outcome is not lost (L-08).

Also: a worker that cannot renew a lease runs nothing (L-11).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from open_idempotency import events
from tests.http.behaviours import PATIENCE, Call, Reply
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, charge, failing_once
from tests.http.sites import Case, assert_problem
from tests.http.variants import on_memory_only


@contextmanager
def away(case: Case) -> Iterator[None]:
    """The backend does not reply to an owner."""
    case.watched.away.set()
    try:
        yield
    finally:
        case.watched.away.clear()


def test_a_finished_response_goes_out_in_time_and_is_recorded_behind_it(new_case: NewCase) -> None:
    """L-08: it has a mark; until it is recorded a retry gets 409, and then the replay. Nothing runs twice."""
    case = new_case(charge, "responds soon")
    with away(case):
        before = time.monotonic()
        first = case.send()
        assert time.monotonic() - before < PATIENCE / 2
        assert (first.status_code, first.headers["idempotency-status"]) == (201, "unrecorded")
        assert_problem(case.send(), "in-progress", 409, retryable=True)
        assert events.Unrecorded in kinds(case)
    case.wait_until_reported(events.RecordedLate)
    second = case.send()
    assert (second.status_code, second.content) == (201, first.content)
    assert (second.headers["idempotent-replayed"], "idempotency-status" in second.headers) == ("true", False)
    assert len(case.runs) == 1


def test_a_response_that_is_recorded_in_time_is_not_marked(new_case: NewCase) -> None:
    """L-08: a short failure does not concern the client."""
    case = new_case(charge)
    with away(case):
        first = case.start()
        case.wait_until_reported(events.BackendFailed)
    assert "idempotency-status" not in first.result(PATIENCE).headers
    assert case.send().content == first.result().content


@pytest.mark.parametrize("status", [None, 500, 403], ids=["raised", "500", "403"])
def test_a_failure_and_a_refusal_are_recorded_behind_the_response(new_case: NewCase, status: int | None) -> None:
    """L-08, L-04: the response is sent at once and unmarked; the retry runs as soon as the backend is available, and
    waits for no lease.
    """
    case = new_case(failing_once(status))
    with away(case):
        first = case.send()
        assert first.status_code == (status or 500)
        assert "idempotency-status" not in first.headers
        assert case.send().status_code == 409
    case.wait_until_reported(events.Released if status == 403 else events.Failed)
    assert case.send().status_code == 201
    assert case.script.notes == [1, 1 if status == 403 else 2]


def test_a_stream_is_recorded_behind_its_end(new_case: NewCase) -> None:
    """L-08, R-04: its headers have left before, so only the event reports it."""
    case = new_case(streaming, "responds soon")
    with away(case):
        assert case.send().content == b"one two"
        assert events.Unrecorded in kinds(case)
    case.wait_until_reported(events.RecordedLate)
    assert case.send().content == b"one two"
    assert len(case.runs) == 1


@on_memory_only
def test_a_request_whose_lease_nobody_can_renew_is_refused_and_the_next_one_runs(
    new_case: NewCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-11: no thread can be started once; the claim is released, and the log says so with the cause."""
    case = new_case(charge, "unrenewed")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _refusing(threading.Thread.start))
        for _ in range(2):
            assert_problem(case.send(), "backend-unavailable", 503, retryable=True)
    assert case.runs == []
    refused = [event for event in case.events if isinstance(event, events.NotRenewable)]
    assert [(event.error, event.detail) for event in refused] == [("RuntimeError", "can't start new thread")] * 2
    assert case.verbs == ["Claim", "Release"] * 2
    assert case.send().status_code == 201


def _refusing(start: Any) -> Any:
    def refuse(thread: threading.Thread) -> None:
        if thread.name == "open-idempotency-heartbeat":
            raise RuntimeError("can't start new thread")
        start(thread)

    return refuse


def streaming(call: Call) -> Steps:
    """Sends two chunks."""
    yield from ()
    return Reply(201, [("Content-Type", "text/plain")], [b"one ", b"two"])


def kinds(case: Case) -> list[type[events.Event]]:
    """The classes of the events so far."""
    return [type(event) for event in case.events]
