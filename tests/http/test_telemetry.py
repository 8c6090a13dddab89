"""Events, metrics and log lines of real requests, on every adapter."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import pytest
from prometheus_client import generate_latest

from open_idempotency import events, idem
from open_idempotency.telemetry import RequestFilter
from tests.http.behaviours import PATIENCE, Call, Reply, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import charge, failing_once, gated
from tests.http.measured import HEARD, REGISTRY, TRACED
from tests.http.sites import Case, poll
from tests.http.variants import needs, on_memory_only
from tests.unit.telemetry.reading import outcomes

pytestmark = on_memory_only

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ROUTES = {
    "asgi": "",
    "wsgi": "",
    "starlette": "/{rest:path}",
    "fastapi": "/{rest:path}",
    "flask": "/<path:rest>",
    "django-wsgi": "<path:rest>",
    "django-asgi": "<path:rest>",
    "rest-framework": "<path:rest>",
}
SECRETS = ("4111-1111", "in-the-path", "in-the-query", "in-a-header", "mallory", "in-the-response", "in-a-stage")


def test_each_event_says_which_request_it_is_about(new_case: NewCase) -> None:
    """P-25: by method, the framework's route and the trace of its header; an outcome has the status."""
    case = new_case(charge)
    sent = [("traceparent", TRACEPARENT)]
    case.send(headers=sent)
    case.send(headers=sent)
    case.send(headers=sent, body=b"other")
    expected = events.RequestContext("POST", ROUTES[case.site.adapter], TRACEPARENT)
    poll(lambda: len(case.events) == 5)
    assert [(type(event).__name__, event.request) for event in case.events] == [
        (name, expected) for name in ("Claimed", "Completed", "Replayed", "KeyReused", "ProblemSent")
    ]
    assert [getattr(event, "status", None) for event in case.events] == [None, 201, 201, 422, 422]


def test_an_event_of_a_failed_attempt_says_which_request_it_is_about(new_case: NewCase) -> None:
    """P-25: also after a handler that raised, and for a duplicate."""
    case = new_case(failing_once())
    case.send()
    second = new_case(gated)
    running = second.start()
    assert second.script.arrived.wait(PATIENCE)
    second.send()
    second.script.release.set()
    running.result(PATIENCE)
    poll(lambda: {"Failed", "Completed"} <= {type(event).__name__ for event in case.events})
    found = [event.request for event in case.events if not isinstance(event, events.ProblemSent)]
    assert set(found) == {events.RequestContext("POST", ROUTES[case.site.adapter], "")}


@pytest.mark.parametrize("sent", ["00-0-0-01", TRACEPARENT.upper(), "x" * 400, TRACEPARENT.replace("4b", "\u00e9e")])
def test_a_trace_that_is_none_is_left_out(sent: str, new_case: NewCase) -> None:
    """P-25, P-29: an invalid trace of a client is in no event."""
    case = new_case(charge)
    case.raw(
        (b"Idempotency-Key", f'"{case.key}"'.encode()),
        (b"traceparent", sent.encode("latin-1")),
    )
    poll(lambda: len(case.events) == 2)
    assert {event.request.traceparent for event in case.events} == {""}


def test_a_line_of_the_log_says_which_request_it_is_about(new_case: NewCase, caplog: pytest.LogCaptureFixture) -> None:
    """P-25: after the event, without a listener."""
    case = new_case(charge, "unheard")
    with caplog.at_level(logging.DEBUG, "open_idempotency"):
        case.send(headers=[("traceparent", TRACEPARENT)])
        poll(lambda: "Completed" in caplog.text)
    route = f" {ROUTES[case.site.adapter]}" if ROUTES[case.site.adapter] else ""
    assert f"stored=True) (POST{route} trace {TRACEPARENT[3:35]})" in caplog.text


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.addFilter(RequestFilter())
        self.seen: list[tuple[Any, Any]] = []

    def emit(self, record: Any) -> None:
        self.seen.append((record.record, record.attempt))


def _log_in_view(call: Call) -> Generator[Any, Any, Reply]:
    yield from ()
    logging.getLogger("tests.shop").warning("charged")
    return Reply(201, [], b"")


def _lines_of(case: Case, path: str) -> list[tuple[Any, Any]]:
    handler, logger = _Lines(), logging.getLogger("tests.shop")
    logger.addHandler(handler)
    try:
        case.send(path=path)
    finally:
        logger.removeHandler(handler)
    return handler.seen


def test_a_line_that_a_view_logs_has_the_record_and_the_attempt(new_case: NewCase) -> None:
    """P-35: on every adapter."""
    case = new_case(_log_in_view)
    assert _lines_of(case, "/charges") == [(case.events[0].record, 1)]


@needs("async")
def test_a_line_that_a_view_logs_in_a_thread_has_the_record_and_the_attempt(new_case: NewCase) -> None:
    """P-35: blocking endpoints that the framework runs in threads."""
    case = new_case(_log_in_view)
    assert _lines_of(case, "/sync/charges") == [(case.events[0].record, 1)]


def _with_secrets(call: Call) -> Generator[Any, Any, Reply]:
    """Fails the first time, with a secret in each value that a view can set."""
    yield Run("charge", lambda: "in-a-stage")
    if len(call.script.runs) == 1:
        raise ValueError("in-the-response")
    assert idem.resumed
    return Reply(201, [("X-Secret", "in-the-response")], b"in-the-response")


def test_no_label_attribute_or_line_has_anything_that_a_client_or_a_view_has_made(
    new_case: NewCase, caplog: pytest.LogCaptureFixture
) -> None:
    """P-29: keys, callers, paths, queries, headers, bodies, stages and errors, through each outcome of a request."""
    case = new_case(_with_secrets, "measured")
    sent: dict[str, Any] = {
        "path": "/in-the-path?of=in-the-query",
        "headers": [("X-User", "mallory"), ("X-Secret", "in-a-header"), ("traceparent", "in-a-header")],
    }
    body = b'{"card": "4111-1111"}'
    with caplog.at_level(logging.DEBUG, "open_idempotency"):
        for each in (body, body, body, b'{"card": "4111-1111", "other": 1}'):
            case.send(body=each, **sent)
        case.send(key='4111-1111"in-the-path', **sent)
        poll(lambda: any(isinstance(event, events.ProblemSent) for event in HEARD))
    said = [record.getMessage() for record in caplog.records if record.name == "open_idempotency"]
    exposed = generate_latest(REGISTRY).decode()
    for secret in (*SECRETS, case.key):
        assert secret not in exposed, secret
        assert secret not in TRACED.everything, secret
        assert not [line for line in said if secret in line], secret
        assert not [event for event in HEARD if secret in repr((event, event.request))], secret
    kinds = {outcome for outcome, _, _ in outcomes(REGISTRY)}
    assert {"claimed", "failed", "resumed", "completed", "replayed", "key_reused", "key_malformed"} <= kinds
