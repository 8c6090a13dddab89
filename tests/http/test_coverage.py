"""Which requests are covered, and how many round trips each costs."""

from __future__ import annotations

import pytest

from tests.http.behaviours import PATIENCE, Call, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, charge, gated
from tests.http.variants import on_memory_only


def test_a_request_without_a_key_costs_no_round_trip(new_case: NewCase) -> None:
    """It passes through each time."""
    case = new_case(charge)
    assert [case.send(key=None).json() for _ in range(2)] == [{"charge": 1}, {"charge": 2}]
    assert case.commands == []


def test_a_new_key_costs_two_round_trips(new_case: NewCase) -> None:
    """The claim and the completion; a short handler has no heartbeat."""
    case = new_case(charge)
    case.send()
    assert case.verbs == ["Claim", "Complete"]


def test_each_stage_costs_one_more(new_case: NewCase) -> None:

    def endpoint(call: Call) -> Steps:
        yield Run("one", lambda: 1)
        yield Run("two", lambda: 2)
        return (yield from charge(call))

    case = new_case(endpoint)
    case.send()
    assert case.verbs == ["Claim", "SaveStage", "SaveStage", "Complete"]


def test_a_replay_costs_one_round_trip(new_case: NewCase) -> None:
    case = new_case(charge)
    case.send()
    before = len(case.commands)
    case.send()
    assert case.verbs[before:] == ["Claim"]


def test_a_mismatch_costs_one_round_trip(new_case: NewCase) -> None:
    case = new_case(charge)
    case.send()
    before = len(case.commands)
    assert case.send(body=b"other").status_code == 422
    assert case.verbs[before:] == ["Claim"]


def test_a_conflict_costs_one_round_trip(new_case: NewCase) -> None:
    case = new_case(gated)
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    before = len(case.commands)
    assert case.send().status_code == 409
    assert case.verbs[before:] == ["Claim"]
    case.script.release.set()
    assert first.result(PATIENCE).status_code == 201


@on_memory_only
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_not_covered(new_case: NewCase, method: str) -> None:
    """A key on them has no effect; PUT and DELETE are covered only if the policy says so."""
    case = new_case(charge)
    case.send(method)
    case.send(method)
    assert (len(case.runs), case.commands) == (2, [])


@on_memory_only
def test_further_methods_opt_in(new_case: NewCase) -> None:
    """The policy names them in ``methods=``."""
    case = new_case(charge, "puts")
    case.send("PUT")
    assert case.send("PUT").headers["idempotent-replayed"] == "true"


@on_memory_only
def test_a_malformed_key_on_an_uncovered_method_is_not_looked_at(new_case: NewCase) -> None:
    """GET is never covered."""
    assert new_case(charge).send("GET", key='"').status_code == 201
