"""Problem responses of the library: application/problem+json, and the form of Stripe."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core import problems
from open_idempotency._core.models import Busy, Refusal, Response
from open_idempotency._core.problems import Problem, retry_after
from open_idempotency._core.rendering import render
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy

POLICY = IdempotencyPolicy()
# problem, its name, its status
ALL: list[tuple[Problem, str, int]] = [
    (problems.key_missing("d"), "key-missing", 400),
    (problems.key_malformed("d"), "key-malformed", 400),
    (problems.not_authenticated("d", "Bearer"), "not-authenticated", 401),
    (problems.forbidden("d"), "forbidden", 403),
    (problems.key_reused(), "key-reused", 422),
    (problems.body_too_large(9), "body-too-large", 413),
    (problems.in_progress(Busy(1.0, 1.0)), "in-progress", 409),
    (problems.superseded(), "in-progress", 409),
    (problems.outcome_unknown(Refusal.FAILED), "outcome-unknown", 409),
    (problems.outcome_unknown(Refusal.ABANDONED), "outcome-unknown", 409),
    (problems.outcome_unknown(Refusal.ATTEMPTS), "outcome-unknown", 409),
    (problems.outcome_unknown(Refusal.WITHDRAWN), "outcome-unknown", 409),
    (problems.not_replayable(201, "/1"), "not-replayable", 409),
    (problems.too_many_keys(90.0), "too-many-keys", 429),
    (problems.backend_unavailable(), "backend-unavailable", 503),
    (problems.ledger_unreachable(), "backend-unavailable", 503),
    (problems.response_unreachable(), "backend-unavailable", 503),
    (problems.stage_in_doubt(False), "outcome-unknown", 409),
    (problems.stage_in_doubt(True), "outcome-unknown", 409),
    (problems.record_unreadable(), "record-unreadable", 503),
    (problems.uncommitted(), "not-committed", 500),
    (problems.not_awaited(), "not-committed", 500),
]

STOP, AGAIN = False, True
# Each maker of a problem, the reaction of a safe client, and the result of the same request with the same key.
# No problem is AGAIN if a client could conclude that a changed request, or another key, is safe.
CLIENT: dict[Any, tuple[bool, str]] = {
    problems.key_missing: (STOP, "it still has no key, and with a new one it would be another request"),
    problems.key_malformed: (STOP, "the key is as wrong as before"),
    problems.not_authenticated: (STOP, "its credentials name nobody, however often they are sent"),
    problems.forbidden: (STOP, "the caller is not permitted to do this"),
    problems.key_reused: (STOP, "it is not the request that the key belongs to, which may have run"),
    problems.body_too_large: (STOP, "the body is as large as before"),
    problems.in_progress: (AGAIN, "the first request ends, and is replayed"),
    problems.superseded: (AGAIN, "the attempt that took over ends, and is replayed"),
    problems.outcome_unknown: (STOP, "no further attempt is admitted for as long as the record lasts"),
    problems.withdrawn: (AGAIN, "nothing has run, and the key is free"),
    problems.not_replayable: (STOP, "it has run, and its response will never be there"),
    problems.too_many_keys: (AGAIN, "another key of the caller has expired; nothing has run"),
    problems.backend_unavailable: (AGAIN, "the backend works again; nothing has run"),
    problems.ledger_unreachable: (AGAIN, "the ledger works again, and says what has run"),
    problems.response_unreachable: (AGAIN, "the backend works again, and has the response"),
    problems.record_unreadable: (AGAIN, "a worker of the newer version, or with the right key, reads the record"),
    problems.not_awaited: (AGAIN, "nothing is stored, so the next attempt does the work, once the code awaits it"),
    problems.uncommitted: (AGAIN, "the work was not committed, so the next attempt does it"),
}


def makers() -> list[Any]:
    """The functions that make problems."""
    return [f for f in vars(problems).values() if getattr(f, "__annotations__", {}).get("return") == "Problem"]


def test_what_a_safe_client_does_is_decided_for_each_problem() -> None:
    """O-31: a new kind of problem must be decided too. The caller of ``stage_in_doubt`` decides it."""
    assert set(makers()) == set(CLIENT) | {problems.stage_in_doubt}
    arguments: dict[Any, tuple[Any, ...]] = {
        problems.key_missing: ("d",),
        problems.key_malformed: ("d",),
        problems.not_authenticated: ("d", "Bearer"),
        problems.forbidden: ("d",),
        problems.body_too_large: (9,),
        problems.in_progress: (Busy(1.0, 1.0),),
        problems.outcome_unknown: (Refusal.FAILED,),
        problems.not_replayable: (201, "/1"),
        problems.too_many_keys: (90.0,),
    }
    found = {maker: maker(*arguments.get(maker, ())).retryable for maker in CLIENT}
    assert found == {maker: again for maker, (again, _) in CLIENT.items()}


@pytest.mark.parametrize("reason", list(Refusal))
def test_a_request_that_is_never_admitted_again_is_not_retryable(reason: Refusal) -> None:
    """O-31: O-09 and O-10 are final; a withdrawn request leaves no record (B-08c)."""
    assert problems.outcome_unknown(reason).retryable is (reason is Refusal.WITHDRAWN)


@pytest.mark.parametrize("again", [True, False])
def test_a_stage_in_doubt_is_retryable_where_the_other_side_may_know_later(again: bool) -> None:
    """O-31, S-04: ``reconcile`` returned UNKNOWN."""
    assert problems.stage_in_doubt(again).retryable is again


@pytest.mark.parametrize("form", [None, "stripe"])
@pytest.mark.parametrize("problem", [row[0] for row in ALL], ids=[row[1] for row in ALL])
def test_a_problem_is_retryable_where_it_says_when(problem: Problem, form: Any) -> None:
    """O-31: ``retryable`` and Retry-After agree, in both forms."""
    response = render(problem, IdempotencyPolicy(compat=form))
    headers, members = dict(response.headers), json.loads(response.body or b"")
    if form is None:
        assert members["retryable"] is problem.retryable
        assert "reuse_key" not in members
    else:
        assert headers[b"stripe-should-retry"] == (b"true" if problem.retryable else b"false")
    assert (b"retry-after" in headers) is problem.retryable
    assert int(headers.get(b"retry-after", b"1")) >= 1


def test_the_text_of_a_reused_key_asks_nobody_to_send_the_request_under_a_new_key() -> None:
    """O-31: a client that did so with a changed retry would run the request twice."""
    assert "exactly as the request was first sent" in problems.key_reused().detail


@pytest.mark.parametrize(("problem", "name", "status"), ALL, ids=[row[1] for row in ALL])
def test_a_problem_has_the_members_of_rfc_9457_and_ours(problem: Problem, name: str, status: int) -> None:
    """O-03 to O-12: each problem has the members of RFC 9457 and those of the library."""
    response = render(replace(problem, instance="/charges", reference="c0ffee"), POLICY)
    members = json.loads(response.body or b"")
    assert response.status == members["status"] == status
    assert members["type"] == f"urn:problem-type:open-idempotency:{name}"
    assert (members["instance"], members["reference"]) == ("/charges", "c0ffee")
    assert members["title"]
    assert members["detail"]


@pytest.mark.parametrize("problem", [row[0] for row in ALL], ids=[row[1] for row in ALL])
def test_a_problem_is_typed_counted_and_never_cached(problem: Problem) -> None:
    response = render(problem, POLICY)
    headers = dict(response.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"content-length"] == b"%d" % len(response.body or b"")


@pytest.mark.parametrize("make", [problems.key_reused, lambda **named: problems.in_progress(Busy(1.0, 1.0), **named)])
def test_a_service_without_a_name_says_that_it_has_none(make: Any) -> None:
    """O-22: another service may have passed the key on; a service with a name does not mention it."""
    assert "application=" in make(unnamed=True).detail
    assert "application=" not in make(unnamed=False).detail


def test_a_docs_url_is_linked_from_every_problem() -> None:
    """Each problem has a Link header with ``rel="describedby"``."""
    policy = IdempotencyPolicy(docs_url="https://example.com/idempotency")
    response = render(problems.key_reused(), policy)
    assert (b"link", b'<https://example.com/idempotency>; rel="describedby"') in response.headers


@pytest.mark.parametrize("compat", [None, "stripe"])
def test_a_docs_url_may_have_a_page_for_each_problem(compat: str | None) -> None:
    """``{type}`` is the problem's name, in the header and in Stripe's error."""
    policy = IdempotencyPolicy(docs_url="https://example.com/{type}.html", compat=compat)  # type: ignore[arg-type]  # one of two
    response = render(problems.key_reused(), policy)
    assert (b"link", b'<https://example.com/key-reused.html>; rel="describedby"') in response.headers
    error = json.loads(response.body or b"").get("error", {})
    assert error.get("doc_url") == (compat and "https://example.com/key-reused.html")


def test_a_hook_renders_problems_otherwise() -> None:
    """``render_problem`` gets the whole problem."""
    policy = IdempotencyPolicy(render_problem=lambda problem: Response(problem.status, [], problem.instance.encode()))
    assert render(replace(problems.key_reused(), instance="/a"), policy) == Response(422, [], b"/a")


def test_a_response_that_could_not_be_kept_says_its_status_and_location() -> None:
    """O-11."""
    members = json.loads(render(problems.not_replayable(201, "/1"), POLICY).body or b"")
    assert (members["original_status"], members["location"]) == (201, "/1")


def test_a_response_that_could_not_be_kept_and_had_no_location_says_none() -> None:
    """O-11."""
    assert "location" not in json.loads(render(problems.not_replayable(200, None), POLICY).body or b"")


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
    """O-03: clamp(elapsed, 1, 10), never past the end of the lease plus 1."""
    assert retry_after(Busy(elapsed, remaining)) == seconds


durations: Any = st.floats(0, 1e6)


@given(durations, durations)
def test_retry_after_is_never_past_the_end_of_the_lease_and_one(elapsed: float, remaining: float) -> None:
    """O-03: at most the rest of the lease plus 1."""
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
    (problems.too_many_keys(90.0), 429, "invalid_request_error", "rate_limit", b"true"),
    (problems.uncommitted(), 500, "api_error", "not_committed", b"true"),
    (problems.backend_unavailable(), 503, "api_error", "backend_unavailable", b"true"),
    (problems.record_unreadable(), 503, "api_error", "record_unreadable", b"true"),
]


@pytest.mark.parametrize(("problem", "status", "kind", "code", "again"), AS_STRIPE, ids=[row[3] for row in AS_STRIPE])
def test_for_those_who_migrate_a_problem_is_an_error_of_stripe(
    problem: Problem, status: int, kind: str, code: str, again: bytes
) -> None:
    """With ``compat="stripe"``; Stripe's client libraries read type, code and Stripe-Should-Retry."""
    response = render(problem, STRIPE)
    error = json.loads(response.body or b"")["error"]
    assert response.status == status
    assert (error["type"], error["code"], error["message"]) == (kind, code, problem.detail)
    assert (b"stripe-should-retry", again) in response.headers


def test_every_problem_has_a_form_of_stripe() -> None:
    """With ``compat="stripe"``: the table above is complete."""
    assert {row[0].name for row in AS_STRIPE} == {row[1] for row in ALL}


@pytest.mark.parametrize("problem", [row[0] for row in AS_STRIPE], ids=[row[3] for row in AS_STRIPE])
def test_an_error_of_stripe_is_json_counted_and_never_cached(problem: Problem) -> None:
    """It has the headers of the other form, except for the media type."""
    response = render(problem, STRIPE)
    headers, ours = dict(response.headers), dict(render(problem, POLICY).headers)
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(response.body or b"")
    assert headers[b"cache-control"] == b"no-store"
    assert headers.get(b"retry-after") == ours.get(b"retry-after")


def test_an_error_of_stripe_points_to_the_docs_as_stripe_does() -> None:
    """``docs_url`` is in the error as well."""
    response = render(problems.key_reused(), STRIPE.replace(docs_url="https://example.com/i"))
    assert json.loads(response.body or b"")["error"]["doc_url"] == "https://example.com/i"
    assert (b"link", b'<https://example.com/i>; rel="describedby"') in response.headers


def test_an_error_of_stripe_says_what_could_not_be_kept() -> None:
    """O-11: the original status and location."""
    error = json.loads(render(problems.not_replayable(201, "/1"), STRIPE).body or b"")["error"]
    assert (error["original_status"], error["location"]) == (201, "/1")


def test_a_hook_counts_before_compat() -> None:
    """``render_problem`` takes precedence, so one route may render its problems otherwise."""
    policy = STRIPE.replace(render_problem=lambda problem: Response(problem.status, [], b""))
    assert render(problems.key_reused(), policy) == Response(422, [], b"")


# Further headers of every problem


CORS = {"Access-Control-Allow-Origin": "https://app.example", "Vary": "Origin"}


@pytest.mark.parametrize(
    "further", [{}, {"compat": "stripe"}, {"render_problem": lambda problem: Response(problem.status, [], b"")}]
)
def test_further_headers_are_on_every_problem_in_every_form(further: Any) -> None:
    """R-12: ``problem_headers``, such as the headers that a browser's script needs to read a problem."""
    policy = IdempotencyPolicy(problem_headers=CORS, **further)
    for problem, *_ in ALL:
        headers = render(problem, policy).headers
        assert (b"access-control-allow-origin", b"https://app.example") in headers
        assert (b"vary", b"Origin") in headers


def test_a_header_of_the_renderer_counts_before_one_for_every_problem() -> None:
    """R-12: the header is not sent twice."""
    own = [(b"Vary", b"Cookie")]
    policy = IdempotencyPolicy(problem_headers=CORS, render_problem=lambda problem: Response(400, own, b""))
    assert [header for header in render(problems.key_reused(), policy).headers if header[0].lower() == b"vary"] == own


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ("Vary: Origin", "a mapping"),
        (7, "a mapping"),
        ({"Vary": 1}, "a mapping"),
        ({"Va ry": "Origin"}, "not a name"),
        ({"": "Origin"}, "not a name"),
        ({"Vary": "Origin\r\nSet-Cookie: a=b"}, "the value of Vary"),
        ({"Vary": ""}, "the value of Vary"),
        ({"Vary": " Origin"}, "the value of Vary"),
        ({"X-Town": "K\u00f6ln"}, "the value of X-Town"),
        ({"Vary": "Origin", "vary": "Cookie"}, "twice"),
        ({"Content-Length": "1"}, "remove it"),
        ({"Retry-After": "1"}, "remove it"),
        ({"Proxy-Status": "a"}, "remove it"),
    ],
)
def test_headers_for_problems_are_checked_at_start(headers: Any, said: str) -> None:
    """R-12: headers that break HTTP are not left to the first request."""
    with pytest.raises(ConfigurationError, match=f"problem_headers: .*{said}"):
        IdempotencyPolicy(problem_headers=headers)


def test_headers_for_problems_are_kept_when_a_route_changes_the_policy() -> None:
    """R-12: a rule's fields are applied to a policy that is validated again, and policies can be compared."""
    policy = IdempotencyPolicy(problem_headers=CORS)
    assert policy.replace(lease=60).problem_headers == tuple(CORS.items())
    assert hash(policy) == hash(IdempotencyPolicy(problem_headers=CORS))
