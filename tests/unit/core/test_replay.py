"""Which responses are stored, what is stored of them, and how a stored response is sent again."""

from __future__ import annotations

import pytest

from open_idempotency._core.models import Response
from open_idempotency._core.rendering import replayed
from open_idempotency._core.stored_response import Capture, is_stored_header, is_stored_status, location, storable
from open_idempotency.policy import IdempotencyPolicy

GIVEN_BACK = {307, 308, 401, 403, 407, 408, 409, 421, 423, 425, 429}


def test_a_status_is_kept_by_its_class() -> None:
    """O-13: 2xx, 3xx and 4xx except eleven; never 1xx, never 5xx."""
    kept = [status for status in range(100, 600) if is_stored_status(status)]
    assert kept == [status for status in range(200, 500) if status not in GIVEN_BACK]


NOT_REPLAYED = [
    "authorization",
    "idempotency-omitted",
    "set-cookie",
    "date",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-connection",
    "content-length",
    "www-authenticate",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "authentication-info",
    "alt-svc",
    "age",
    "server-timing",
    "traceparent",
    "tracestate",
    "x-request-id",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "idempotent-replayed",
    "idempotency-status",
]


@pytest.mark.parametrize("name", NOT_REPLAYED)
def test_a_field_of_the_moment_is_not_kept_in_any_case(name: str) -> None:
    """R-02."""
    response = Response(200, [(name.title().encode(), b"v"), (b"X-Kept", b"1")], b"")
    assert storable(response, IdempotencyPolicy(max_response_bytes=10)).headers == [(b"X-Kept", b"1")]


@pytest.mark.parametrize("name", [b"location", b"content-type", b"etag", b"link", b"vary", b"content-encoding"])
def test_a_field_of_the_outcome_is_kept(name: bytes) -> None:
    """R-01."""
    assert is_stored_header(name)


def test_fields_that_connection_names_are_not_kept() -> None:
    """R-02: the Connection header may have several lines, spaces, and any case."""
    headers = [(b"Connection", b"close, X-Hop"), (b"connection", b"x-other ,"), (b"x-hop", b"1"), (b"X-Other", b"2")]
    assert storable(
        Response(200, [*headers, (b"x-end", b"3")], b""), IdempotencyPolicy(max_response_bytes=10)
    ).headers == [(b"x-end", b"3")]


def test_kept_fields_stay_in_order_with_duplicates() -> None:
    """R-01."""
    headers = [(b"Link", b"1"), (b"ETag", b"e"), (b"Link", b"2")]
    assert storable(Response(200, headers, b""), IdempotencyPolicy(max_response_bytes=10)).headers == headers


@pytest.mark.parametrize(("size", "whole"), [(0, True), (10, True), (11, False)])
def test_a_body_over_the_limit_leaves_a_tombstone(size: int, whole: bool) -> None:
    """O-11, R-04."""
    body = b"x" * size
    assert storable(Response(200, [], body), IdempotencyPolicy(max_response_bytes=10)).body == (body if whole else None)


def test_the_live_response_is_left_as_it_is() -> None:
    """R-02: the first client gets all headers."""
    live = Response(200, [(b"set-cookie", b"a")], b"x" * 20)
    storable(live, IdempotencyPolicy(max_response_bytes=10))
    assert live == Response(200, [(b"set-cookie", b"a")], b"x" * 20)


def test_a_replay_is_marked_and_counted_anew() -> None:
    """O-02, R-02: it has the replay mark and a Content-Length of its own."""
    response = replayed(Response(201, [(b"x", b"1")], b"abc"))
    headers = [(b"x", b"1"), (b"idempotent-replayed", b"true"), (b"content-length", b"3")]
    assert response == Response(201, headers, b"abc")


def test_an_empty_body_is_replayed_with_its_length() -> None:
    """R-01."""
    assert (b"content-length", b"0") in replayed(Response(200, [], b"")).headers


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("body", [b"", b"an application's mistake"])
def test_a_bodiless_status_is_replayed_without_length_and_body(status: int, body: bytes) -> None:
    """R-01, CWE-444: a 204 or 304 has neither."""
    assert replayed(Response(status, [], body)) == Response(status, [(b"idempotent-replayed", b"true")], b"")


def test_the_location_is_found_in_any_case() -> None:
    """O-11."""
    assert location([(b"x", b"1"), (b"LoCation", b"/2"), (b"location", b"/3")]) == b"/2"
    assert location([]) is None


def capture_of(limit: int, *chunks: bytes) -> Response:
    """The stored body of a response that is sent in these chunks."""
    capture = Capture(limit)
    capture.start(200, [(b"x", b"1")])
    for chunk in chunks:
        capture.add(chunk)
    return capture.response()


def test_a_stream_within_the_bound_is_kept_whole() -> None:
    """R-04."""
    assert capture_of(4, b"ab", b"", b"cd") == Response(200, [(b"x", b"1")], b"abcd")


def test_a_stream_that_outgrows_the_bound_is_let_go() -> None:
    """R-04, O-11: later chunks do not change that."""
    assert capture_of(4, b"abc", b"de", b"", b"f").body is None
