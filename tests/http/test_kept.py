"""Which responses are stored, and how exactly they are sent again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import httpx
import pytest

from open_idempotency import idem
from tests.http.behaviours import Behaviour, Call, Reply
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, charge, responding
from tests.http.variants import needs, on_memory_only

KEPT = (200, 201, 202, 204, 301, 302, 303, 304, 400, 402, 404, 405, 410, 412, 422, 451)
NOT_KEPT = (307, 308, 401, 403, 407, 408, 409, 421, 423, 425, 429)


@on_memory_only
@pytest.mark.parametrize("status", KEPT)
def test_an_outcome_is_kept(new_case: NewCase, status: int) -> None:
    """O-13: 2xx, 3xx, and the 4xx that state the outcome of the request."""
    case = new_case(responding(status))
    first, second = case.send(), case.send()
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert first.status_code == status
    assert second.headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 1


@on_memory_only
@pytest.mark.parametrize("status", NOT_KEPT)
def test_a_refusal_of_the_moment_is_not_kept(new_case: NewCase, status: int) -> None:
    """O-13: the retry runs, as attempt 1 of a request that has not begun."""

    def endpoint(call: Call) -> Steps:
        call.script.notes.append(idem.attempt)
        return (yield from responding(status)(call))

    case = new_case(endpoint)
    assert [case.send().status_code for _ in range(2)] == [status, status]
    assert case.script.notes == [1, 1]


@on_memory_only
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_not_kept(new_case: NewCase, status: int) -> None:
    """A 5xx is never stored; the retry is another attempt."""
    case = new_case(responding(status))
    responses = [case.send(), case.send()]
    assert [r.status_code for r in responses] == [status, status]
    assert "idempotent-replayed" not in responses[1].headers
    assert len(case.runs) == 2


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_that_keeps_the_method_leaves_the_key_to_the_request_that_follows_it(
    new_case: NewCase, status: int
) -> None:
    """O-13: the client sends the same request to another path, with the same key (RFC 9110, 15.4.8 and 15.4.9)."""

    def endpoint(call: Call) -> Steps:
        if call.path == "/v1/charges":
            yield from ()
            return Reply(status, [("Location", "/charges")])
        return (yield from charge(call))

    case = new_case(endpoint)
    assert case.send(path="/v1/charges").status_code == status
    followed, again = case.send(path="/charges"), case.send(path="/charges")
    assert (followed.status_code, again.content) == (201, followed.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 2


def test_a_retry_after_a_refusal_of_the_moment_may_be_another_request(new_case: NewCase) -> None:
    """A response that was not stored does not bind the key."""
    case = new_case(responding(429))
    case.send()
    case.script.behaviour = charge
    assert case.send(body=b"another body").status_code == 201


@on_memory_only
def test_the_policy_overrules_what_is_kept(new_case: NewCase) -> None:
    """``store=`` stores the 429 and not the 201."""
    case = new_case(responding(429), "own rule")
    case.send()
    assert case.send().headers["idempotent-replayed"] == "true"
    other = new_case(responding(201), "own rule")
    other.send()
    assert "idempotent-replayed" not in other.send().headers


@on_memory_only
def test_the_policy_sees_the_body(new_case: NewCase) -> None:
    """R-13: a 401 that is a step of a login is stored, as it has an effect; a 401 that is a refusal is not."""
    step = new_case(responding(401, b"next: prove your address"), "own rule")
    assert [step.send().headers.get("idempotent-replayed") for _ in range(2)] == [None, "true"]
    assert len(step.runs) == 1
    refusal = new_case(responding(401, b"log in first"), "own rule")
    assert [refusal.send().headers.get("idempotent-replayed") for _ in range(2)] == [None, None]
    assert len(refusal.runs) == 2


@on_memory_only
def test_the_policy_sees_the_body_of_a_stream(new_case: NewCase) -> None:
    """R-13: the body was collected on its way to the first client."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(401, [("Content-Type", "text/plain")], iter([b"ne", b"xt"]))

    case = new_case(endpoint, "own rule")
    assert [case.send().content for _ in range(2)] == [b"next", b"next"]
    assert len(case.runs) == 1


def _wishing(wish: Callable[[], None], status: int) -> Behaviour:
    def endpoint(call: Call) -> Steps:
        wish()
        return (yield from responding(status)(call))

    return endpoint


def test_a_view_can_keep_its_response(new_case: NewCase) -> None:
    """``idem.keep()``, even a 503."""
    case = new_case(_wishing(idem.keep, 503))
    case.send()
    second = case.send()
    assert (second.status_code, second.headers["idempotent-replayed"]) == (503, "true")


def test_a_view_can_discard_its_response(new_case: NewCase) -> None:
    """``idem.discard()``; a retry runs."""
    case = new_case(_wishing(idem.discard, 200))
    assert [case.send().status_code for _ in range(2)] == [200, 200]
    assert len(case.runs) == 2


def test_a_binary_body_is_replayed_byte_for_byte(new_case: NewCase) -> None:
    """R-01: all byte values, at a size of several chunks."""
    body = bytes(range(256)) * 1024 + os.urandom(999)

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(200, [("Content-Type", "application/octet-stream")], body)

    case = new_case(endpoint)
    assert case.send().content == body
    second = case.send()
    assert second.content == body
    assert second.headers["content-length"] == str(len(body))


def test_an_empty_body_is_replayed_empty(new_case: NewCase) -> None:
    """R-01: a 200 with an empty body."""
    case = new_case(responding(200, b""))
    case.send()
    second = case.send()
    assert (second.content, second.headers["content-length"]) == (b"", "0")


def test_a_204_is_replayed_without_a_body(new_case: NewCase) -> None:
    """R-01: it has no Content-Length either."""
    case = new_case(responding(204))
    case.send()
    second = case.send()
    assert (second.status_code, second.content, second.headers["idempotent-replayed"]) == (204, b"", "true")
    assert "content-length" not in second.headers


def test_the_headers_of_the_response_are_replayed(new_case: NewCase) -> None:
    """R-01: with their values."""
    case = new_case(charge)
    first, second = case.send(), case.send()
    for name in ("location", "x-ledger", "content-type"):
        assert second.headers.get_list(name) == first.headers.get_list(name)


@needs("duplicates")
def test_headers_are_replayed_in_order_and_with_duplicates(new_case: NewCase) -> None:
    """R-01: several headers of one name stay several, in the order in which the first client got them."""
    fields = [("X-Note", "b"), ("X-Other", "x"), ("X-Note", "a"), ("X-Note", "b"), ("X-Latin", "\xe9t\xe9")]

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(201, fields, b"{}")

    case = new_case(endpoint)
    wanted = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]

    def seen(response: httpx.Response) -> list[tuple[bytes, bytes]]:
        return [(n.lower(), v) for n, v in response.headers.raw if (n.lower(), v) in wanted]

    first = seen(case.send())
    # waitress sorts what it sends
    assert sorted(first) == sorted(wanted)
    assert seen(case.send()) == first


PASSING = [
    ("Set-Cookie", "session=1"),
    ("WWW-Authenticate", "Basic"),
    ("Alt-Svc", 'h3=":443"'),
    ("Age", "7"),
    ("Server-Timing", "db;dur=1"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=b"),
    ("X-Request-ID", "r-1"),
    ("Proxy-Status", "cache"),
    ("Authentication-Info", "nextnonce=1"),
]


def _with_passing_fields(call: Call) -> Steps:
    yield from ()
    return Reply(201, [*PASSING, ("X-Kept", "yes")], json.dumps(len(call.script.runs)).encode())


@on_memory_only
@pytest.mark.parametrize("field", PASSING, ids=[name for name, _ in PASSING])
def test_what_belongs_to_one_moment_is_not_replayed(new_case: NewCase, field: tuple[str, str]) -> None:
    """R-02: the first client gets such a header, a later one does not."""
    case = new_case(_with_passing_fields)
    first, second = case.send(), case.send()
    assert first.headers[field[0]] == field[1]
    assert field[0] not in second.headers
    assert (second.headers["x-kept"], second.headers["idempotent-replayed"]) == ("yes", "true")


def test_the_date_is_not_replayed(new_case: NewCase) -> None:
    """R-02: a Date of the handler is not sent again."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(200, [("Date", "Thu, 01 Jan 1970 00:00:00 GMT")], b"")

    case = new_case(endpoint)
    assert "Thu, 01 Jan 1970 00:00:00 GMT" in case.send().headers.get_list("date")
    assert "Thu, 01 Jan 1970 00:00:00 GMT" not in case.send().headers.get_list("date")


def test_problems_are_never_replayed(new_case: NewCase) -> None:
    """The response to a repeat of a refused request is a new one."""
    case = new_case(charge)
    case.send()
    for _ in range(2):
        refused = case.send(body=b"other")
        assert refused.status_code == 422
        assert "idempotent-replayed" not in refused.headers
