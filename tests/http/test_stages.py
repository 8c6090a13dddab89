"""``idem`` behind every adapter: retries resume after the recorded stages."""

from __future__ import annotations

import pytest

from open_idempotency import NotStarted, idem
from tests.http.behaviours import Call, Reply, Run, Save, call_of
from tests.http.conftest import NewCase
from tests.http.endpoints import Declined, Steps, charge, staged
from tests.http.variants import needs, on_memory_only


def test_a_retry_resumes_after_the_last_stage(new_case: NewCase) -> None:
    """O-08, S-01: recorded stages of the first attempt do not run again."""
    case = new_case(staged)
    assert case.send().status_code == 500
    body = case.send().json()
    assert case.script.notes == ["reserve", "charge"]
    assert body["reserved"] == {"name": "reserve", "run": 1}
    assert body["charged"] == {"name": "charge", "run": 2}


def test_a_retry_knows_that_it_is_one(new_case: NewCase) -> None:
    """It reads ``attempt`` and ``resumed``."""
    case = new_case(staged)
    case.send()
    body = case.send().json()
    assert (body["attempt"], body["resumed"]) == (2, True)


@needs("async")
def test_a_blocking_endpoint_in_the_threadpool_resumes_too(new_case: NewCase) -> None:
    """S-08: ``idem.run`` works in a thread of an async application."""
    case = new_case(staged)
    assert case.send(path="/sync/charges").status_code == 500
    assert case.send(path="/sync/charges").json()["reserved"] == {"name": "reserve", "run": 1}
    assert case.script.notes == ["reserve", "charge"]


def test_saved_stages_can_be_looked_up_by_the_next_attempt(new_case: NewCase) -> None:
    """By ``save_stage``, ``stages`` and ``load``."""

    def endpoint(call: Call) -> Steps:
        if len(call.script.runs) == 1:
            yield Save("reserved", {"items": [1, 2]})
            raise Declined
        call.script.notes.append(([(s.name, s.value) for s in idem.stages], idem.load("reserved"), idem.load("no")))
        return (yield from charge(call))

    case = new_case(endpoint)
    case.send()
    case.send()
    assert case.script.notes == [([("reserved", {"items": [1, 2]})], {"items": [1, 2]}, None)]


def test_the_key_for_a_downstream_api_is_the_same_on_each_attempt(new_case: NewCase) -> None:
    """``key_for`` gives another key for another name."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        call.script.notes.append((idem.key_for("charge"), idem.key_for("refund")))
        if len(call.script.runs) == 1:
            raise Declined
        return (yield from charge(call))

    case = new_case(endpoint)
    case.send()
    case.send()
    first, second = case.script.notes
    assert first == second
    assert first[0] != first[1]


def test_without_a_key_stages_run_plainly(new_case: NewCase) -> None:
    """S-03: on a covered route nothing is stored."""
    case = new_case(staged)
    assert case.send(key=None).status_code == 500
    assert case.send(key=None).status_code == 201
    assert case.script.notes == ["reserve", "reserve", "charge"]
    assert case.commands == []


@on_memory_only
def test_without_a_key_stages_can_be_refused(new_case: NewCase) -> None:
    """S-03: ``strict_stages=True`` raises NotStarted."""

    def endpoint(call: Call) -> Steps:
        try:
            yield Run("charge", lambda: 1)
        except NotStarted:
            call.script.notes.append("not started")
        return Reply(200)

    case = new_case(endpoint, "strict stages")
    case.send(key=None)
    assert case.script.notes == ["not started"]


@on_memory_only
def test_on_an_uncovered_method_there_is_nothing_to_record(new_case: NewCase) -> None:
    """S-03: ERR_NOT_STARTED."""

    def endpoint(call: Call) -> Steps:
        try:
            yield Run("charge", lambda: 1)
        except NotStarted as error:
            call.script.notes.append(error.code)
        return Reply(200)

    case = new_case(endpoint)
    assert case.send("GET").status_code == 200
    assert case.script.notes == ["ERR_NOT_STARTED"]


def test_the_request_does_not_linger_in_the_context(new_case: NewCase) -> None:
    """S-03: an uncovered request does not see the request before it, on any thread or task."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        call.script.notes.append(idem.active)
        return Reply(200)

    case = new_case(endpoint)
    case.send("POST")
    for _ in range(8):
        case.send("GET")
    assert case.script.notes == [True] + [False] * 8


def test_outside_of_a_request_there_is_nothing_to_record() -> None:
    """S-03: ERR_NOT_STARTED."""
    with pytest.raises(NotStarted):
        idem.save_stage("charge")


def test_a_call_knows_its_script() -> None:
    """The suite itself: a request without a script is an error, not a silent success."""
    with pytest.raises(KeyError):
        call_of("POST", "/", "", b"", "nobody's")
