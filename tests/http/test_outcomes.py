"""The response that a client gets in each situation."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from open_idempotency import events
from open_idempotency._runtime import on_asyncio
from open_idempotency.backend import Claim, Leased
from open_idempotency.backends.sqlite import backend as loop_threads
from tests.http.behaviours import PATIENCE, Call, Reply, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, always_raising, charge, failing_once, gated, responding
from tests.http.sites import Case, assert_problem
from tests.http.variants import LIMIT, needs, on_memory_only


def test_the_first_request_gets_the_handlers_own_response(new_case: NewCase) -> None:
    """O-01: the response is unchanged."""
    case = new_case(charge)
    response = case.send()
    assert (response.status_code, response.json(), response.headers["location"]) == (201, {"charge": 1}, "/charges/1")
    assert "idempotent-replayed" not in response.headers


def test_a_handler_reads_the_whole_request(new_case: NewCase) -> None:
    """O-01: method, path, query and body arrive as they were sent."""
    case = new_case(charge)
    case.send("PATCH", "/a/b?x=1&y=%20", body=b"\x00\xff body")
    (call,) = case.runs
    assert (call.method, call.path, call.query, call.body) == ("PATCH", "/a/b", "x=1&y=%20", b"\x00\xff body")


def test_a_repeat_gets_the_stored_response(new_case: NewCase) -> None:
    """O-02: the handler does not run again."""
    case = new_case(charge)
    first, second = case.send(), case.send()
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 1


def test_a_repeat_while_the_first_runs_is_a_conflict(new_case: NewCase) -> None:
    """O-03: 409 at once, with Retry-After; the first is not disturbed."""
    case = new_case(gated)
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    conflict = case.send()
    case.script.release.set()
    assert_problem(conflict, "in-progress", 409, retryable=True)
    assert conflict.headers["retry-after"] == "1"
    assert first.result(PATIENCE).json() == {"charge": 1}
    assert len(case.runs) == 1


def test_a_duplicate_that_waits_gets_the_first_response(new_case: NewCase) -> None:
    """O-04: with ``wait=`` it waits until the first request has ended, and gets the replay."""
    case = new_case(gated, "waits")
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    duplicate = case.start()
    case.wait_for_a_waiter()
    case.script.release.set()
    assert duplicate.result(PATIENCE).content == first.result(PATIENCE).content
    assert duplicate.result().headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 1


def test_a_duplicate_does_not_wait_for_ever(new_case: NewCase) -> None:
    """O-04: it gets 409 when ``wait=`` is over."""
    case = new_case(gated, "waits briefly")
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    conflict = case.send()
    case.script.release.set()
    assert_problem(conflict, "in-progress", 409, retryable=True)
    assert case.verbs.count("Claim") > 2
    assert first.result(PATIENCE).status_code == 201


@on_memory_only
def test_a_client_may_ask_to_wait_within_bounds(new_case: NewCase) -> None:
    """O-04: ``Prefer: wait=60`` is cut to ``max_wait``."""
    case = new_case(gated, "waits if asked")
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    conflict = case.send(headers=[("prefer", "respond-async, wait=60")])
    case.script.release.set()
    assert_problem(conflict, "in-progress", 409, retryable=True)
    assert case.verbs.count("Claim") > 2
    assert first.result(PATIENCE).status_code == 201


def test_of_many_at_once_one_runs(new_case: NewCase) -> None:
    """O-03: the others get 409 while it runs, or its response after it has ended."""
    case = new_case(charge)
    responses = [outcome.result(PATIENCE) for outcome in [case.start() for _ in range(8)]]
    assert len(case.runs) == 1
    assert {response.status_code for response in responses} <= {201, 409}
    firsts = [r for r in responses if r.status_code == 201 and "idempotent-replayed" not in r.headers]
    assert len(firsts) == 1


OTHERS = {
    "body": {"body": b'{"amount": 2}'},
    "path": {"path": "/refunds"},
    "query": {"path": "/charges?currency=EUR"},
    "method": {"method": "PATCH"},
    "media type": {"headers": [("content-type", "text/plain")]},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_a_key_cannot_be_used_for_another_request(new_case: NewCase, change: dict[str, object]) -> None:
    """O-05: the client gets 422 if method, path, query, media type or body differ."""
    case = new_case(charge)
    case.send()
    path = str(change.get("path", "/charges")).partition("?")[0]
    assert_problem(case.send(**change), "key-reused", 422, retryable=False, path=path)
    assert len(case.runs) == 1


def test_a_key_cannot_be_used_for_another_request_meanwhile(new_case: NewCase) -> None:
    """O-05: 422, not 409, while the first still runs."""
    case = new_case(gated)
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    reused = case.send(body=b"other")
    case.script.release.set()
    assert_problem(reused, "key-reused", 422, retryable=False)
    assert first.result(PATIENCE).status_code == 201


def test_a_refused_duplicate_changes_nothing(new_case: NewCase) -> None:
    """After a 422 and a 409 the stored response is still that of the first request."""
    case = new_case(charge)
    first = case.send()
    assert case.send(body=b"other").status_code == 422
    assert (case.send().status_code, case.send().content) == (201, first.content)


@on_memory_only
def test_parameters_of_the_media_type_do_not_matter(new_case: NewCase) -> None:
    """A retry may write its charset in another way."""
    case = new_case(charge)
    case.send()
    assert case.send(headers=[("content-type", "application/json; charset=utf-8")]).status_code == 201


@on_memory_only
def test_json_is_compared_by_meaning_if_asked(new_case: NewCase) -> None:
    """With ``fingerprint="json"`` member order and white space do not matter, number lexemes do."""
    case = new_case(charge, "json")
    case.send(body=b'{"a": 1, "b": 2}')
    assert case.send(body=b'{"b":2,"a":1}').headers["idempotent-replayed"] == "true"
    assert case.send(body=b'{"a": 1.0, "b": 2}').status_code == 422


@on_memory_only
def test_a_missing_key_is_refused_where_one_is_required(new_case: NewCase) -> None:
    """O-06: by the policy of the whole application."""
    case = new_case(charge, "required")
    assert_problem(case.send(key=None), "key-missing", 400, retryable=False)
    assert (case.runs, case.commands) == ([], [])


@needs("routes")
@on_memory_only
def test_a_missing_key_is_refused_on_a_route_that_requires_one(new_case: NewCase) -> None:
    """O-06: by the route's own decorator."""
    case = new_case(charge)
    refused = case.send(path="/required/charges", key=None)
    assert_problem(refused, "key-missing", 400, retryable=False, path="/required/charges")
    assert case.send(path="/required/charges").status_code == 201
    assert len(case.runs) == 1


@needs("routes")
@on_memory_only
def test_an_exempt_route_is_not_covered(new_case: NewCase) -> None:
    """The key of the request does not matter."""
    case = new_case(charge)
    case.send(path="/exempt/charges")
    assert "idempotent-replayed" not in case.send(path="/exempt/charges").headers
    assert (len(case.runs), case.commands) == (2, [])


@on_memory_only
def test_a_malformed_key_is_explained(new_case: NewCase) -> None:
    """O-06: the problem document does not repeat the key."""
    case = new_case(charge)
    refused = case.send(key='secret-key-secret"key')
    assert_problem(refused, "key-malformed", 400, retryable=False)
    assert "secret" not in refused.text


@on_memory_only
def test_a_body_over_the_limit_is_refused(new_case: NewCase) -> None:
    """O-07: by its Content-Length."""
    case = new_case(charge, "small")
    refused = case.send(body=b"x" * (LIMIT + 1))
    assert_problem(refused, "body-too-large", 413, retryable=False)
    assert (case.runs, case.commands) == ([], [])


@on_memory_only
def test_a_chunked_body_over_the_limit_is_refused(new_case: NewCase) -> None:
    """O-07: where no length was announced."""
    case = new_case(charge, "small")

    def body() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * (LIMIT // 2)

    assert_problem(case.send(body=body()), "body-too-large", 413, retryable=False)
    assert case.runs == []


@on_memory_only
def test_a_body_at_the_limit_goes_through_disk_unchanged(new_case: NewCase) -> None:
    """R-09: spooled while it is hashed, and read by the handler as it was sent."""
    case = new_case(charge, "small")
    body = os.urandom(LIMIT)
    assert case.send(body=body).status_code == 201
    assert case.runs[0].body == body


def test_a_handler_that_raised_runs_again(new_case: NewCase) -> None:
    """O-08, L-04: the first client gets the framework's 500, the retry is attempt 2."""
    case = new_case(failing_once())
    first, second = case.send(), case.send()
    assert (first.status_code, second.status_code) == (500, 201)
    assert "idempotent-replayed" not in second.headers
    assert case.script.notes == [1, 2]


def test_a_handler_that_responded_5xx_runs_again(new_case: NewCase) -> None:
    """O-08: the first client gets that response."""
    case = new_case(failing_once(503))
    first, second = case.send(), case.send()
    assert (first.status_code, first.text, second.status_code) == (503, "not now", 201)
    assert case.script.notes == [1, 2]


def test_after_the_retry_worked_its_response_is_replayed(new_case: NewCase) -> None:
    """O-08, O-02: the outcome is that of the second attempt."""
    case = new_case(failing_once())
    case.send()
    second, third = case.send(), case.send()
    assert third.content == second.content
    assert third.headers["idempotent-replayed"] == "true"


def test_a_failed_request_is_not_run_again_if_the_policy_says_so(new_case: NewCase) -> None:
    """O-08: ``on_failed="reject"``."""
    case = new_case(always_raising, "rejects failed")
    assert case.send().status_code == 500
    assert_problem(case.send(), "outcome-unknown", 409, retryable=False)
    assert len(case.runs) == 1


def test_a_failed_response_is_replayed_if_the_policy_says_so(new_case: NewCase) -> None:
    """O-08: ``on_failed="replay"``."""
    case = new_case(responding(500, b"broken"), "replays failed")
    first, second = case.send(), case.send()
    assert (second.status_code, second.text) == (first.status_code, first.text) == (500, "broken")
    assert second.headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 1


def _claimed_by_a_dead_owner(case: Case, lease: float) -> None:
    """Claim the case's record as a worker that never comes back, with the claim of an earlier request."""
    behaviour, case.script.behaviour = case.script.behaviour, responding(429)
    assert case.send().status_code == 429
    case.script.behaviour = behaviour
    case.runs.clear()
    (claim,) = (command for command in case.commands if isinstance(command, Claim))
    result = case.watched.inner.claim(replace(claim, owner=os.urandom(16), lease=lease))
    assert isinstance(result, Leased)


def test_a_request_whose_worker_died_runs_again_when_the_lease_has_ended(new_case: NewCase) -> None:
    """O-09: the retry is attempt 2."""
    case = new_case(failing_once(201))
    _claimed_by_a_dead_owner(case, lease=0.0)
    assert case.send().status_code == 201
    assert case.script.notes == [2]


def test_a_request_whose_worker_died_is_a_conflict_until_then(new_case: NewCase) -> None:
    """O-09, O-03: a dead owner cannot be distinguished from a slow one."""
    case = new_case(charge)
    _claimed_by_a_dead_owner(case, lease=60.0)
    assert_problem(case.send(), "in-progress", 409, retryable=True)
    assert case.runs == []


def test_retry_after_does_not_reach_past_the_end_of_the_lease(new_case: NewCase) -> None:
    """O-03: at most the rest of the lease plus one second."""
    case = new_case(charge)
    _claimed_by_a_dead_owner(case, lease=60.0)
    assert 1 <= int(case.send().headers["retry-after"]) <= 10


def test_an_abandoned_request_is_not_run_again_if_the_policy_says_so(new_case: NewCase) -> None:
    """O-09: ``on_abandoned="reject"``."""
    case = new_case(charge, "rejects abandoned")
    _claimed_by_a_dead_owner(case, lease=0.0)
    assert_problem(case.send(), "outcome-unknown", 409, retryable=False)
    assert case.runs == []


def test_no_attempt_is_made_beyond_the_last(new_case: NewCase) -> None:
    """O-10: ``max_attempts=2``."""
    case = new_case(always_raising, "two attempts")
    assert [case.send().status_code for _ in range(2)] == [500, 500]
    assert_problem(case.send(), "outcome-unknown", 409, retryable=False)
    assert len(case.runs) == 2


def _too_big(call: Call) -> Steps:
    yield from ()
    return Reply(201, [("Location", "/charges/1")], b"x" * (LIMIT + 1))


def test_a_response_that_could_not_be_kept_is_not_made_again(new_case: NewCase) -> None:
    """O-11: the first client gets the whole response, a repeat gets its status and Location."""
    case = new_case(_too_big, "small")
    assert len(case.send().content) == LIMIT + 1
    document = assert_problem(case.send(), "not-replayable", 409, retryable=False)
    assert (document["original_status"], document["location"]) == (201, "/charges/1")
    assert len(case.runs) == 1


def test_nothing_runs_while_the_backend_is_down(new_case: NewCase) -> None:
    """O-12: 503 with Retry-After."""
    case = new_case(charge, "down")
    refused = case.send()
    assert_problem(refused, "backend-unavailable", 503, retryable=True)
    assert int(refused.headers["retry-after"]) >= 1
    assert case.runs == []


def test_a_request_runs_unprotected_if_the_policy_says_so(new_case: NewCase) -> None:
    """O-12: ``fail_open=True``, and an event counts it."""
    case = new_case(charge, "down, open")
    assert case.send().status_code == 201
    assert len(case.runs) == 1
    assert [type(event) for event in case.events].count(events.FailedOpen) == 1


@on_memory_only
def test_a_request_without_a_key_runs_while_the_backend_is_down(new_case: NewCase) -> None:
    """Such a request does not need the backend."""
    case = new_case(charge, "down")
    assert case.send(key=None).status_code == 201


@on_memory_only
def test_problems_link_to_the_documentation(new_case: NewCase) -> None:
    """``docs_url``."""
    case = new_case(charge, "documented")
    refused = case.send(key='"')
    assert refused.headers["link"] == '<https://example.org/idempotency>; rel="describedby"'


def _local_failures() -> list[Exception]:
    return [
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        MemoryError(),
    ]


def test_a_completion_that_fails_locally_is_made_after_all(new_case: NewCase) -> None:
    """B-10a: the effect has happened, so its response is sent, and the retry replays it."""
    case = new_case(charge)
    case.watched.failures += _local_failures()
    first, second = case.send(), case.send()
    assert not case.watched.failures
    assert (first.status_code, first.json()) == (201, {"charge": 1})
    assert "idempotency-status" not in first.headers
    assert (second.status_code, second.content) == (201, first.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 1
    assert [event.error for event in case.events if isinstance(event, events.BackendFailed)]


def _charging_in_a_stage(call: Call) -> Steps:
    charged = yield Run("charge", lambda: {"charge": len(call.script.runs)})
    return Reply(201, [("Content-Type", "application/json")], json.dumps(charged).encode())


def test_a_stage_that_fails_locally_is_saved_after_all(new_case: NewCase) -> None:
    """B-10a: its effect happens once, and the view continues."""
    case = new_case(_charging_in_a_stage)
    case.watched.failures += _local_failures()
    first, second = case.send(), case.send()
    assert not case.watched.failures
    assert (first.status_code, first.json()) == (201, {"charge": 1})
    assert (second.status_code, second.content) == (201, first.content)
    assert len(case.runs) == 1


def _in_want_of_threads(call: Call) -> Steps:
    """After the effect no thread can be started for a moment, and none is idle."""
    reply = yield from charge(call)
    loop_threads._idle.pop()
    on_asyncio._executors.pop()
    real, left = threading.Thread.start, [2]

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("open-idempotency") and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        threading.Thread.start = real
        real(thread)

    threading.Thread.start = start
    return reply


@pytest.mark.on_backends("sqlite")
def test_a_completion_for_which_there_is_no_thread_is_made_after_all(new_case: NewCase) -> None:
    """B-10a: this concerns event loops whose backend uses threads; other backends need none."""
    case = new_case(_in_want_of_threads)
    real = threading.Thread.start
    try:
        first, second = case.send(), case.send()
    finally:
        threading.Thread.start = real
    assert (first.status_code, first.json()) == (201, {"charge": 1})
    assert (second.status_code, second.content) == (201, first.content)
    assert len(case.runs) == 1
