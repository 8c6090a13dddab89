"""Stages whose value cannot be stored, behind every adapter (S-02a), and values by declared type (S-02)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from open_idempotency import Found, events
from tests.http.behaviours import Behaviour, Call, Reply, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Declined, Steps
from tests.http.sites import assert_problem
from tests.http.variants import on_memory_only


class Receipt:
    """An object of a client library."""

    def __repr__(self) -> str:
        return "receipt"


def charging(make: Callable[[], Any], fails: int = 1, **terms: Any) -> Behaviour:
    """Charges in a stage that returns ``make()``, and fails after it in the first ``fails`` runs."""

    def endpoint(call: Call) -> Steps:
        script = call.script

        def effect() -> Any:
            script.notes.append("charged")
            return make()

        value = yield Run("charge", effect, terms)
        if len(script.runs) <= fails:
            raise Declined("after the stage")
        return Reply(201, [("Content-Type", "application/json")], json.dumps(repr(value)).encode())

    return endpoint


@pytest.mark.parametrize("variant", ["default", "encrypted"])
@pytest.mark.parametrize("terms", [{}, {"external": True}], ids=["plain", "external"])
def test_an_effect_whose_value_cannot_be_kept_is_not_repeated(
    new_case: NewCase, terms: dict[str, Any], variant: str
) -> None:
    """S-02a: the first attempt fails after the stage; the retries get 409."""
    case = new_case(charging(Receipt, **terms), variant)
    assert case.send().status_code == 500
    for _ in range(3):
        assert_problem(case.send(), "outcome-unknown", 409, retryable=False)
    assert case.script.notes == ["charged"]


@on_memory_only
@pytest.mark.parametrize(
    "value",
    [Decimal("1.10"), {"at": datetime(2026, 1, 1, tzinfo=timezone.utc)}, "x" * 70_000, {1: 2}],
    ids=["decimal", "datetime", "too long", "numbered members"],
)
def test_whatever_cannot_be_kept_is_not_repeated(new_case: NewCase, value: Any) -> None:
    """S-02a: one error is logged, in the first attempt."""
    case = new_case(charging(lambda: value))
    assert [case.send().status_code for _ in range(3)] == [500, 409, 409]
    assert case.script.notes == ["charged"]
    assert [type(event) for event in case.events].count(events.StageValueNotKept) == 1


def test_the_first_attempt_goes_on_with_the_value_itself(new_case: NewCase) -> None:
    """S-02a: its response is stored, and a retry gets it."""
    case = new_case(charging(Receipt, fails=0))
    first, second = case.send(), case.send()
    assert (first.status_code, first.json()) == (201, "receipt")
    assert (second.json(), second.headers["idempotent-replayed"]) == ("receipt", "true")
    assert case.script.notes == ["charged"]


def test_a_default_stands_for_the_value_on_later_attempts(new_case: NewCase) -> None:
    """S-02a: ``default=``; the effect happens once."""
    case = new_case(charging(Receipt, default="sent before"))
    assert case.send().status_code == 500
    assert case.send().json() == "'sent before'"
    assert case.script.notes == ["charged"]


def test_the_other_side_is_asked_for_the_value_on_later_attempts(new_case: NewCase) -> None:
    """S-02a: ``reconcile=``; the effect happens once."""
    case = new_case(charging(Receipt, reconcile=lambda: Found("ch_1")))
    assert case.send().status_code == 500
    assert case.send().json() == "'ch_1'"
    assert case.script.notes == ["charged"]


@on_memory_only
def test_an_error_whose_arguments_cannot_be_kept_is_not_repeated(new_case: NewCase) -> None:
    """S-02a, S-07: the stage was declined, and does not run again."""

    def decline() -> None:
        raise Declined(Receipt())

    case = new_case(charging(decline, memo_errors=(Declined,)))
    assert [case.send().status_code for _ in range(3)] == [500, 409, 409]
    assert case.script.notes == ["charged"]


@on_memory_only
def test_a_declared_type_that_cannot_be_kept_fails_before_the_effect(new_case: NewCase) -> None:
    """S-02a: a stage with such a declaration charges nothing."""
    case = new_case(charging(Receipt, returns=Receipt))
    assert [case.send().status_code for _ in range(2)] == [500, 500]
    assert case.script.notes == []


@pytest.mark.parametrize("variant", ["default", "encrypted"])
def test_a_value_of_a_declared_type_comes_back_as_it_was(new_case: NewCase, variant: str) -> None:
    """S-02: on a later attempt, from every backend."""
    value = {UUID(int=7): [Decimal("1.10"), Decimal("-0")], UUID(int=8): []}
    case = new_case(charging(lambda: value, returns=dict[UUID, list[Decimal]]), variant)
    assert case.send().status_code == 500
    assert case.send().json() == repr(value)
    assert case.script.notes == ["charged"]
