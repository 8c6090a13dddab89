"""The answers of our own: application/problem+json."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core import problems
from open_idempotency._core.models import Busy, Refusal
from open_idempotency._core.problems import Problem, retry_after
from open_idempotency._core.rendering import render
from open_idempotency._core.requests import Response
from open_idempotency.policy import IdempotencyPolicy

POLICY = IdempotencyPolicy()
# problem, its name, status, retryable, reuse_key
ALL: list[tuple[Problem, str, int, bool, bool]] = [
    (problems.key_missing("d"), "key-missing", 400, True, False),
    (problems.key_malformed("d"), "key-malformed", 400, True, False),
    (problems.not_authenticated("d", "Bearer"), "not-authenticated", 401, True, True),
    (problems.forbidden("d"), "forbidden", 403, False, False),
    (problems.key_reused(), "key-reused", 422, True, False),
    (problems.body_too_large(9), "body-too-large", 413, False, False),
    (problems.in_progress(Busy(1.0, 1.0)), "in-progress", 409, True, True),
    (problems.superseded(), "in-progress", 409, True, True),
    (problems.outcome_unknown(Refusal.FAILED), "outcome-unknown", 409, False, False),
    (problems.outcome_unknown(Refusal.ABANDONED), "outcome-unknown", 409, False, False),
    (problems.outcome_unknown(Refusal.ATTEMPTS), "outcome-unknown", 409, False, False),
    (problems.not_replayable(201, "/1"), "not-replayable", 409, False, False),
    (problems.backend_unavailable(), "backend-unavailable", 503, True, True),
    (problems.response_unreachable(), "backend-unavailable", 503, True, True),
    (problems.stage_in_doubt(False), "outcome-unknown", 409, False, False),
    (problems.stage_in_doubt(True), "outcome-unknown", 409, True, True),
    (problems.record_unreadable(), "record-unreadable", 503, True, True),
]


@pytest.mark.parametrize(("problem", "name", "status", "retryable", "reuse"), ALL, ids=[row[1] for row in ALL])
def test_a_problem_has_the_members_of_rfc_9457_and_ours(
    problem: Problem, name: str, status: int, retryable: bool, reuse: bool
) -> None:
    """O-03 to O-12."""
    answer = render(problem, POLICY, "/charges")
    members = json.loads(answer.body or b"")
    assert answer.status == members["status"] == status
    assert members["type"] == f"urn:problem-type:open-idempotency:{name}"
    assert (members["retryable"], members["reuse_key"], members["instance"]) == (retryable, reuse, "/charges")
    assert members["title"]
    assert members["detail"]


@pytest.mark.parametrize("problem", [row[0] for row in ALL], ids=[row[1] for row in ALL])
def test_a_problem_is_typed_counted_and_never_cached(problem: Problem) -> None:
    answer = render(problem, POLICY, "/")
    headers = dict(answer.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"content-length"] == b"%d" % len(answer.body or b"")


@pytest.mark.parametrize("problem", [row[0] for row in ALL if row[2] == 503 or row[1] == "in-progress"])
def test_a_problem_that_passes_says_when_to_retry(problem: Problem) -> None:
    """O-03, O-12."""
    assert int(dict(render(problem, POLICY, "/").headers)[b"retry-after"]) >= 1


@pytest.mark.parametrize("make", [problems.key_reused, lambda **named: problems.in_progress(Busy(1.0, 1.0), **named)])
def test_a_service_without_a_name_says_that_it_has_none(make: Any) -> None:
    """O-22: where another service may pass a key on to it; one with a name says nothing of it."""
    assert "application=" in make(unnamed=True).detail
    assert "application=" not in make(unnamed=False).detail


def test_a_docs_url_is_linked_from_every_problem() -> None:
    """``describedby``."""
    policy = IdempotencyPolicy(docs_url="https://example.com/idempotency")
    answer = render(problems.key_reused(), policy, "/")
    assert (b"link", b'<https://example.com/idempotency>; rel="describedby"') in answer.headers


def test_a_hook_renders_problems_otherwise() -> None:
    """It is given the whole problem."""
    policy = IdempotencyPolicy(render_problem=lambda problem: Response(problem.status, [], problem.instance.encode()))
    assert render(problems.key_reused(), policy, "/a") == Response(422, [], b"/a")


def test_an_answer_that_could_not_be_kept_tells_its_status_and_location() -> None:
    """O-11."""
    members = json.loads(render(problems.not_replayable(201, "/1"), POLICY, "/").body or b"")
    assert (members["original_status"], members["location"]) == (201, "/1")


def test_an_answer_that_could_not_be_kept_and_had_no_location_tells_none() -> None:
    """O-11."""
    assert "location" not in json.loads(render(problems.not_replayable(200, None), POLICY, "/").body or b"")


@pytest.mark.parametrize(
    ("elapsed", "remaining", "seconds"),
    [
        (0.0, 30.0, 1),
        (0.9, 30.0, 1),
        (1.2, 30.0, 2),
        (5.0, 30.0, 5),
        (9.1, 30.0, 10),
        (10.0, 30.0, 10),
        (600.0, 30.0, 10),
        (10.0, 3.0, 4),
        (10.0, 3.2, 4),
        (10.0, 0.5, 1),
        (10.0, 0.0, 1),
        (10.0, -5.0, 1),
    ],
)
def test_retry_after_follows_the_time_it_has_run(elapsed: float, remaining: float, seconds: int) -> None:
    """O-03: clamp(elapsed, 1, 10), never past the lease end + 1."""
    assert retry_after(Busy(elapsed, remaining)) == seconds


durations: Any = st.floats(0, 1e6)


@given(durations, durations)
def test_retry_after_is_never_past_the_end_of_the_lease_and_one(elapsed: float, remaining: float) -> None:
    """O-03."""
    assert 1 <= retry_after(Busy(elapsed, remaining)) <= min(10, remaining + 1)


STRIPE = IdempotencyPolicy(compat="stripe")
# problem, and the status, type, code and Stripe-Should-Retry that stand for it
AS_STRIPE: list[tuple[Problem, int, str, str, bytes]] = [
    (problems.key_missing("d"), 400, "invalid_request_error", "key_missing", b"false"),
    (problems.key_malformed("d"), 400, "invalid_request_error", "key_malformed", b"false"),
    (problems.not_authenticated("d", "Bearer"), 401, "invalid_request_error", "not_authenticated", b"false"),
    (problems.forbidden("d"), 403, "invalid_request_error", "forbidden", b"false"),
    (problems.key_reused(), 400, "idempotency_error", "key_reused", b"false"),
    (problems.body_too_large(9), 413, "invalid_request_error", "body_too_large", b"false"),
    (problems.in_progress(Busy(1.0, 1.0)), 409, "invalid_request_error", "idempotency_key_in_use", b"true"),
    (problems.superseded(), 409, "invalid_request_error", "idempotency_key_in_use", b"true"),
    (problems.outcome_unknown(Refusal.FAILED), 409, "api_error", "outcome_unknown", b"false"),
    (problems.not_replayable(201, "/1"), 409, "api_error", "not_replayable", b"false"),
    (problems.backend_unavailable(), 503, "api_error", "backend_unavailable", b"true"),
    (problems.record_unreadable(), 503, "api_error", "record_unreadable", b"true"),
]


@pytest.mark.parametrize(("problem", "status", "kind", "code", "again"), AS_STRIPE, ids=[row[3] for row in AS_STRIPE])
def test_for_those_who_migrate_a_problem_is_an_error_of_stripe(
    problem: Problem, status: int, kind: str, code: str, again: bytes
) -> None:
    """``compat="stripe"``: its client libraries read type, code and Stripe-Should-Retry."""
    answer = render(problem, STRIPE, "/charges")
    error = json.loads(answer.body or b"")["error"]
    assert answer.status == status
    assert (error["type"], error["code"], error["message"]) == (kind, code, problem.detail)
    assert (b"stripe-should-retry", again) in answer.headers


def test_every_problem_has_a_form_of_stripe() -> None:
    """``compat="stripe"``: the table above forgets none."""
    assert {row[0].name for row in AS_STRIPE} == {row[1] for row in ALL}


@pytest.mark.parametrize("problem", [row[0] for row in AS_STRIPE], ids=[row[3] for row in AS_STRIPE])
def test_an_error_of_stripe_is_json_counted_and_never_cached(problem: Problem) -> None:
    """As our own form, but for the media type."""
    answer = render(problem, STRIPE, "/")
    headers, ours = dict(answer.headers), dict(render(problem, POLICY, "/").headers)
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(answer.body or b"")
    assert headers[b"cache-control"] == b"no-store"
    assert headers.get(b"retry-after") == ours.get(b"retry-after")


def test_an_error_of_stripe_points_to_the_docs_as_stripe_does() -> None:
    """``docs_url``, in the error as well."""
    answer = render(problems.key_reused(), STRIPE.replace(docs_url="https://example.com/i"), "/")
    assert json.loads(answer.body or b"")["error"]["doc_url"] == "https://example.com/i"
    assert (b"link", b'<https://example.com/i>; rel="describedby"') in answer.headers


def test_an_error_of_stripe_tells_what_could_not_be_kept() -> None:
    """O-11: the original status and location."""
    error = json.loads(render(problems.not_replayable(201, "/1"), STRIPE, "/").body or b"")["error"]
    assert (error["original_status"], error["location"]) == (201, "/1")


def test_a_hook_counts_before_compat() -> None:
    """So that one route may render otherwise under a policy for all."""
    policy = STRIPE.replace(render_problem=lambda problem: Response(problem.status, [], b""))
    assert render(problems.key_reused(), policy, "/") == Response(422, [], b"")
