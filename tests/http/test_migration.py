"""A client that was written for Stripe's API, with ``compat="stripe"``."""

from __future__ import annotations

from typing import Any

import httpx

from tests.http.behaviours import PATIENCE
from tests.http.conftest import NewCase
from tests.http.endpoints import charge, failing_once, gated
from tests.http.variants import on_memory_only


def error_of(response: httpx.Response, status: int, *, again: bool) -> dict[str, Any]:
    """Assert that a response is an error as Stripe writes it; return the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["stripe-should-retry"] == str(again).lower()
    assert "idempotent-replayed" not in response.headers
    document: dict[str, Any] = response.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert error["message"]
    return error


@on_memory_only
def test_a_key_of_another_request_is_stripes_idempotency_error(new_case: NewCase) -> None:
    """O-05: Stripe responds 400."""
    case = new_case(charge, "as stripe")
    case.send()
    assert error_of(case.send(body=b"other"), 400, again=False)["type"] == "idempotency_error"
    assert len(case.runs) == 1


@on_memory_only
def test_a_repeat_while_the_first_runs_is_stripes_key_in_use(new_case: NewCase) -> None:
    """O-03: Stripe responds 409 too, which its client libraries retry."""
    case = new_case(gated, "as stripe")
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    repeat = case.send()
    case.script.release.set()
    error = error_of(repeat, 409, again=True)
    assert (error["type"], error["code"]) == ("invalid_request_error", "idempotency_key_in_use")
    assert repeat.headers["retry-after"] == "1"
    assert first.result(PATIENCE).status_code == 201


@on_memory_only
def test_a_missing_or_malformed_key_is_an_invalid_request(new_case: NewCase) -> None:
    """O-06: 400 in both forms."""
    case = new_case(charge, "as stripe")
    responses = [case.send(key=None), case.send(key='bad"key')]
    errors = [error_of(response, 400, again=False) for response in responses]
    assert [(error["type"], error["code"]) for error in errors] == [
        ("invalid_request_error", "key_missing"),
        ("invalid_request_error", "key_malformed"),
    ]
    assert case.runs == []


@on_memory_only
def test_an_unknown_outcome_is_not_tried_again(new_case: NewCase) -> None:
    """O-08: Stripe's client libraries would retry this 409 without the header that forbids it."""
    case = new_case(failing_once(500), "rejects failed as stripe")
    assert case.send().status_code == 500
    assert error_of(case.send(), 409, again=False)["code"] == "outcome_unknown"
    assert len(case.runs) == 1


@on_memory_only
def test_a_replay_is_the_one_that_everybody_gets(new_case: NewCase) -> None:
    """O-02: Stripe's header for replays is the library's header."""
    case = new_case(charge, "as stripe")
    first, second = case.send(), case.send()
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert "stripe-should-retry" not in second.headers
