"""Guarantees for clients: which problems may be retried, a reference for support, and CORS headers for web pages."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

import httpx
import pytest

from open_idempotency import events
from tests.http.behaviours import PATIENCE, Behaviour, Call, Reply
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, charge, gated, responding
from tests.http.sites import Case
from tests.http.variants import ORIGIN, on_memory_only

Headers = Sequence[tuple[str, str]]
PAGE, OTHER = "https://app.example", "https://other.example"


def obedient(case: Case, bodies: Iterator[bytes]) -> httpx.Response:
    """Send a request as the docs say: stop at a problem that is not retryable, and wait out every other problem."""
    while True:
        response = case.send(body=next(bodies))
        if response.headers["content-type"] != "application/problem+json" or not response.json()["retryable"]:
            return response
        time.sleep(float(response.headers["retry-after"]))


def test_a_client_whose_retry_differs_stops_and_pays_once(new_case: NewCase) -> None:
    """O-31: such as a body with the time in it. A new key would be a second charge."""
    case = new_case(gated)
    first = case.start(body=b'{"sent_at": 0}')
    assert case.script.arrived.wait(PATIENCE)
    last = obedient(case, iter([b'{"sent_at": 1}']))
    case.script.release.set()
    first.result(PATIENCE)
    assert (last.status_code, last.json()["retryable"]) == (422, False)
    assert len(case.runs) == 1


@on_memory_only
@on_memory_only
def test_another_key_is_another_request(new_case: NewCase) -> None:
    """O-01: a client that makes a new key for each try pays for each. The server cannot know that it is one order."""
    case = new_case(charge)
    responses = [case.send(key=str(uuid4())) for _ in range(2)]
    assert [response.status_code for response in responses] == [201, 201]
    assert len(case.runs) == 2


def test_a_client_that_waits_for_retry_after_gets_the_first_response(new_case: NewCase) -> None:
    """O-31: it sends the same request with the same key."""
    case = new_case(gated)
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)

    def bodies() -> Iterator[bytes]:
        yield b'{"amount": 1}'
        case.script.release.set()
        while True:
            yield b'{"amount": 1}'

    last = obedient(case, bodies())
    assert (last.status_code, last.content) == (201, first.result(PATIENCE).content)
    assert len(case.runs) == 1


@on_memory_only
@pytest.mark.parametrize("others", [{"body": b"other"}, {"key": "bad key,"}, {"body": b"x" * 2000}])
def test_the_reference_of_a_problem_is_in_the_log(
    new_case: NewCase, others: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """O-32: and in the event, together with the record. Two problems never have the same reference."""
    case = new_case(charge, "small")
    case.send()
    with caplog.at_level(logging.INFO, "open_idempotency"):
        problems = [case.send(**others).json() for _ in range(2)]
    reported = [event for event in case.events if isinstance(event, events.ProblemSent)]
    assert [event.reference for event in reported] == [problem["reference"] for problem in problems]
    assert len({event.reference for event in reported}) == 2
    (claimed,) = [event for event in case.events if isinstance(event, events.Claimed)]
    for event, problem in zip(reported, problems, strict=True):
        assert problem["type"].endswith(event.problem)
        assert event.record == (claimed.record if event.problem == "key-reused" else "")
        assert event.attempt is None
        logged = [line.getMessage() for line in caplog.records if problem["reference"] in line.getMessage()]
        (line,) = logged
        assert line.startswith(f"{event} (POST")


@on_memory_only
def test_the_reference_of_an_attempt_that_was_refused_names_the_attempt(new_case: NewCase) -> None:
    """O-32: here the first attempt, whose response was too long to store."""
    case = new_case(responding(200, b"x" * 2000), "small")
    case.send()
    problem = case.send().json()
    (claimed,) = [event for event in case.events if isinstance(event, events.Claimed)]
    (reported,) = [event for event in case.events if isinstance(event, events.ProblemSent)]
    assert (reported.reference, reported.record, reported.problem) == (
        problem["reference"],
        claimed.record,
        "not-replayable",
    )


@on_memory_only
@pytest.mark.parametrize("media_type", ["text/plain;charset=UTF-8", "text/json", "application/json"])
def test_a_json_body_that_a_page_sends_as_text_is_compared_as_json(new_case: NewCase, media_type: str) -> None:
    """H-13: ``fetch`` sends a string as text/plain."""
    case = new_case(charge, "json")
    headers = [("content-type", media_type)]
    case.send(body=b'{"a": 1, "b": 2}', headers=headers)
    again = case.send(body=b'{"b":2,"a":1}', headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert case.send(body=b'{"b":3,"a":1}', headers=headers).status_code == 422


# Pages of another origin


def allowing(*headers: tuple[str, str]) -> Behaviour:
    """An endpoint that sets CORS headers itself, as a decorator does."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(201, [("Content-Type", "application/json"), *headers], json.dumps(len(call.script.runs)).encode())

    return endpoint


ALLOWED = (
    ("Access-Control-Allow-Origin", PAGE),
    ("Access-Control-Expose-Headers", "Location"),
)
CORS = {name.lower(): value for name, value in ALLOWED}


def cors_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def from_origin(origin: str | None) -> Headers:
    return [] if origin is None else [("Origin", origin)]


def test_a_page_gets_its_cors_headers_again(new_case: NewCase) -> None:
    """R-11: once, and with all other headers."""
    case = new_case(allowing(*ALLOWED))
    first, again = case.send(headers=from_origin(PAGE)), case.send(headers=from_origin(PAGE))
    assert again.headers["idempotent-replayed"] == "true"
    assert cors_of(first) == cors_of(again) == CORS
    assert len(again.headers.get_list("access-control-allow-origin")) == 1
    assert not any(name.startswith("idempotency-") for name in again.headers)
    assert len(case.runs) == 1


@on_memory_only
@pytest.mark.parametrize("allowed", [PAGE, "*"])
@pytest.mark.parametrize(("first", "later"), [(PAGE, OTHER), (PAGE, None), (None, PAGE), (PAGE, "null")])
def test_another_origin_gets_none_of_them(
    new_case: NewCase, allowed: str, first: str | None, later: str | None
) -> None:
    """R-11: the application has not decided about this origin."""
    case = new_case(allowing(("Access-Control-Allow-Origin", allowed)))
    case.send(headers=from_origin(first))
    again = case.send(headers=from_origin(later))
    assert again.headers["idempotent-replayed"] == "true"
    assert cors_of(again) == {}


@on_memory_only
def test_a_client_that_is_no_page_gets_the_headers_that_it_got_at_first(new_case: NewCase) -> None:
    """R-11, R-01: no ``Origin`` is compared like any other origin."""
    case = new_case(allowing(("Access-Control-Allow-Origin", "*")))
    first, again = case.send(), case.send()
    assert cors_of(first) == cors_of(again) == {"access-control-allow-origin": "*"}


@on_memory_only
def test_every_problem_has_the_headers_that_a_page_needs(new_case: NewCase) -> None:
    """R-12: ``problem_headers``, on 400, 409, 413 and 422."""
    case = new_case(gated, "for pages")
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    problems = [case.send(), case.send(body=b"other"), case.send(key=None), case.send(body=b"x" * 2000)]
    case.script.release.set()
    assert sorted(problem.status_code for problem in problems) == [400, 409, 413, 422]
    for problem in problems:
        assert problem.headers.get_list("access-control-allow-origin") == [ORIGIN]
    assert "access-control-allow-origin" not in first.result(PATIENCE).headers
