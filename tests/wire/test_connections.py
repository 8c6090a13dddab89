"""Requests with a key and features of the connection: pipelining, Expect, chunks, invalid header fields."""

from __future__ import annotations

import hashlib

import pytest

from tests.wire.case import Case
from tests.wire.client import chunked
from tests.wire.conftest import NewCase, Running
from tests.wire.kinds import wire_needs


@wire_needs("keep-alive")
def test_two_pipelined_requests_with_one_key_are_a_run_and_its_replay(served: str, new_case: NewCase) -> None:
    """O-01, O-02: both are sent before any response; the second one gets the outcome of the first."""
    case = new_case("charge")
    with case.connect() as connection:
        connection.send(case.request() * 2)
        first, second = connection.read(), connection.read()

    assert (first.status, first.replayed) == (201, False)
    assert (second.status, second.replayed, second.body) == (201, True, first.body)
    assert case.journal.lines() == ["ran"]


@wire_needs("keep-alive")
def test_a_connection_survives_a_problem_of_ours(served: str, new_case: NewCase) -> None:
    """O-05: a refused request is read to its end, so the next one on the connection is parsed correctly."""
    case = new_case("charge")
    with case.connect() as connection:
        connection.send(case.request())
        assert connection.read().status == 201
        connection.send(case.request(b"another body") + case.request())
        refused, replay = connection.read(), connection.read()

    assert (refused.status, replay.status, replay.replayed) == (422, 201, True)
    assert case.journal.lines() == ["ran"]


def test_a_body_that_waits_for_100_continue_is_asked_for_and_fingerprinted(served: str, new_case: NewCase) -> None:
    """O-01, O-05: the client sends its body only after the interim response."""
    case = new_case("charge")
    with case.connect() as connection:
        connection.send(case.head(b"Content-Length: 4", b"Expect: 100-continue"))
        assert connection.read_head().status == 100
        connection.send(b"body")
        response = connection.read()

    assert (response.status, response.values(b"x-body")) == (201, [hashlib.sha256(b"body").hexdigest().encode()])
    assert case.ask(b"body").replayed
    assert case.ask(b"ydob").status == 422


@wire_needs("unread malformed key")
def test_a_malformed_key_is_refused_without_its_body(served: str, new_case: NewCase) -> None:
    """O-06: the client waits for 100 Continue; 400 comes although it never sends its body."""
    case = new_case("charge")
    with case.connect() as connection:
        connection.send(case.head(b"Content-Length: 4", b"Expect: 100-continue", key=b'"unterminated'))
        response = connection.read()

    assert response.status == 400
    assert b"key-malformed" in response.body
    assert case.journal.lines() == []


@wire_needs("chunked upload")
def test_two_chunkings_of_one_body_are_the_same_request(served: str, new_case: NewCase) -> None:
    """O-02, O-05: the fingerprint covers the bytes of the body, not its framing."""
    case = new_case("charge")
    head = case.head(b"Transfer-Encoding: chunked")
    first = case.exchange(head + chunked([b"one body", b" in two"]))
    again = case.exchange(head + chunked([b"one", b" body in", b" two"]))
    counted = case.ask(b"one body in two")
    other = case.exchange(head + chunked([b"another body"]))

    assert (first.status, first.replayed) == (201, False)
    assert (again.replayed, again.body, counted.replayed, counted.body) == (True, first.body, True, first.body)
    assert other.status == 422
    assert case.journal.lines() == ["ran"]


@wire_needs("chunked upload")
def test_the_handler_gets_a_chunked_body_whole(served: str, new_case: NewCase) -> None:
    """R-09: the middleware gives back what it has read, also without a Content-Length."""
    case = new_case("charge")
    response = case.exchange(case.head(b"Transfer-Encoding: chunked") + chunked([b"a", b"b" * 70_000]))

    assert response.values(b"x-body") == [hashlib.sha256(b"a" + b"b" * 70_000).hexdigest().encode()]


@pytest.mark.parametrize("kind", ["gunicorn-sync", "gunicorn-gthread", "gunicorn-gevent"])
def test_a_chunked_body_that_django_would_not_read_is_refused(running: Running, kind: str) -> None:
    """O-05: two different bodies would be one request to Django, so with a key neither runs."""
    case = Case(running(kind), "django-wsgi", "charge")
    response = case.exchange(case.head(b"Transfer-Encoding: chunked") + chunked([b"a body"]))

    assert response.status == 411
    assert case.journal.lines() == []
    assert not case.ask().replayed


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((b'Idempotency-Key: "%b"', b'Idempotency-Key: "%b"'), id="two equal field lines"),
        pytest.param((b'Idempotency-Key: "%b"', b'idempotency-key: "other"'), id="two field lines"),
        pytest.param((b'Idempotency-Key: "caf\xe9-%b"',), id="latin-1"),
        pytest.param((b'Idempotency-Key: "caf\xc3\xa9-%b"',), id="utf-8"),
        pytest.param((b"Idempotency-Key: %b\r\n folded",), id="folded line"),
        pytest.param((b'Idempotency-Key: "%b\x01"',), id="control character"),
        pytest.param((b'Idempotency-Key: "%b\x00"',), id="NUL"),
        pytest.param((b"Idempotency-Key:",), id="empty"),
        pytest.param((b"Idempotency-Key:   ",), id="blank"),
        pytest.param((b'Idempotency-Key: "%b',), id="unterminated"),
    ],
)
def test_a_field_that_is_no_key_is_400_and_nothing_runs(
    served: str, new_case: NewCase, lines: tuple[bytes, ...]
) -> None:
    """H-07, H-08, H-09, H-04: the 400 may come from the server or from the middleware."""
    case = new_case("charge")
    key = case.key.encode()
    fields = [line.replace(b"%b", key) for line in lines]
    response = case.exchange(case.head(b"Content-Length: 2", b"Connection: close", *fields, key=None) + b"{}")

    assert response.status == 400
    assert case.journal.lines() == []
    assert not case.ask().replayed
