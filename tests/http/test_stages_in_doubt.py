"""Stages in doubt behind every adapter (S-04): the client gets 409, and a retry asks the other system."""

from __future__ import annotations

import json
from typing import Any

from open_idempotency import NOT_DONE, UNKNOWN, Found, OutcomeUnknown
from tests.http.behaviours import Behaviour, Call, Reply, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Declined, Steps


def charging(*fails: int, **terms: Any) -> Behaviour:
    """Charges in an external stage, which raises after its effect in the runs with these numbers."""

    def endpoint(call: Call) -> Steps:
        script = call.script

        def effect() -> str:
            script.notes.append("charged")
            if len(script.runs) in fails:
                raise Declined("after the effect")
            return f"run {len(script.runs)}"

        value = yield Run("charge", effect, terms)
        return Reply(201, [("Content-Type", "application/json")], json.dumps(value).encode())

    return endpoint


def test_an_interrupted_external_stage_gets_409_and_does_not_run_again(new_case: NewCase) -> None:
    """S-04: ``on_doubt="raise"``, the default of ``external=True``."""
    case = new_case(charging(1, external=True))
    assert case.send().status_code == 500
    for _ in range(2):
        response = case.send()
        problem = response.json()
        assert (response.status_code, problem["type"].rpartition(":")[2]) == (409, "outcome-unknown")
        assert problem["retryable"] is False
        assert response.headers["content-type"] == "application/problem+json"
    assert case.script.notes == ["charged"]


def test_a_stage_that_the_other_side_knows_gets_its_value_from_there(new_case: NewCase) -> None:
    """S-04: ``reconcile`` returns Found; the effect happens once, and the next retry replays."""
    case = new_case(charging(1, reconcile=lambda: Found("ch_1")))
    assert case.send().status_code == 500
    first, second = case.send(), case.send()
    assert (first.status_code, first.json()) == (201, "ch_1")
    assert second.headers["idempotent-replayed"] == "true"
    assert case.script.notes == ["charged"]


def test_a_stage_that_the_other_side_never_saw_runs_again(new_case: NewCase) -> None:
    """S-04: ``reconcile`` returns NOT_DONE."""
    case = new_case(charging(1, reconcile=lambda: NOT_DONE))
    assert case.send().status_code == 500
    assert case.send().json() == "run 2"
    assert case.script.notes == ["charged", "charged"]


def test_while_the_other_system_does_not_know_a_client_may_retry(new_case: NewCase) -> None:
    """S-04: ``reconcile`` returns UNKNOWN: 409, retryable with the same key."""
    outcomes = [UNKNOWN, Found("ch_2")]
    case = new_case(charging(1, reconcile=lambda: outcomes.pop(0)))
    case.send()
    unknown = case.send()
    assert (unknown.status_code, unknown.json()["retryable"]) == (409, True)
    assert int(unknown.headers["retry-after"]) >= 1
    assert case.send().json() == "ch_2"
    assert case.script.notes == ["charged"]


def test_a_stage_that_may_be_repeated_runs_again(new_case: NewCase) -> None:
    """S-04: ``on_doubt="rerun"``."""
    case = new_case(charging(1, external=True, on_doubt="rerun"))
    assert case.send().status_code == 500
    assert case.send().json() == "run 2"


def test_an_external_stage_costs_one_round_trip_more(new_case: NewCase) -> None:
    """S-04: claim, intent, stage, completion."""
    case = new_case(charging(external=True))
    assert case.send().status_code == 201
    assert [type(c).__name__ for c in case.commands] == ["Claim", "SaveStage", "SaveStage", "Complete"]


def test_a_view_may_respond_to_a_doubt_itself(new_case: NewCase) -> None:
    """S-04: a response below 500 of the view's own is the response."""

    def endpoint(call: Call) -> Steps:
        try:
            return (yield from charging(1, external=True)(call))
        except OutcomeUnknown:
            return Reply(202, [], b"we are looking into it")

    case = new_case(endpoint)
    assert case.send().status_code == 500
    assert (case.send().status_code, case.script.notes) == (202, ["charged"])
