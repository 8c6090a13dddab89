"""A replay sends what the first client got, and only that (R-01, R-02), as the bytes on the wire show."""

from __future__ import annotations

import pytest

from tests.wire.client import Response
from tests.wire.conftest import NewCase
from tests.wire.endpoints import REPLIES
from tests.wire.http2 import over_http2
from tests.wire.kinds import wire_needs
from tests.wire.native import FILE_BODY

#: set by the server for each message, or for its framing
OF_THE_MESSAGE = {b"date", b"server", b"connection", b"keep-alive", b"content-length", b"transfer-encoding", b"via"}
NOT_REPLAYED = {b"set-cookie", b"age"}
CORS = b"access-control-"


def fields(response: Response) -> list[tuple[bytes, bytes]]:
    """The header fields that the application has set, in order."""
    return [field for field in response.headers if field[0] not in OF_THE_MESSAGE]


def stored(response: Response) -> list[tuple[bytes, bytes]]:
    """The header fields of a first response that every replay has too."""
    return [field for field in fields(response) if field[0] not in NOT_REPLAYED and not field[0].startswith(CORS)]


@pytest.mark.parametrize("reply", ["204", "304", "empty", "binary", "gzip", "latin", "one cookie"])
def test_a_replay_is_the_first_response(served: str, new_case: NewCase, reply: str) -> None:
    """R-01: status, body bytes, and the stored header fields in order."""
    case = new_case(reply)
    first, replay = case.ask(), case.ask()

    expected = REPLIES[reply]
    assert (first.status, first.body) == (expected.status, expected.body)
    assert (replay.status, replay.body) == (first.status, first.body)
    assert sorted(fields(replay)) == sorted([*stored(first), (b"idempotent-replayed", b"true")])
    assert case.journal.lines() == ["ran"]


@wire_needs("field order")
def test_the_fields_of_a_replay_are_in_the_order_of_the_first_response(served: str, new_case: NewCase) -> None:
    """R-01: fields of the middleware come last."""
    case = new_case("moment")
    first, replay = case.ask(), case.ask()

    added = [(b"idempotent-replayed", b"true"), (b"access-control-allow-origin", b"*")]
    assert fields(replay) == [*stored(first), *added]


@wire_needs("duplicate fields", "field order")
def test_fields_of_one_name_are_replayed_each_and_in_order(served: str, new_case: NewCase) -> None:
    """R-01: three lines of one field are neither joined nor dropped."""
    case = new_case("duplicates")
    first, replay = case.ask(), case.ask()

    assert first.values(b"x-trail") == [b"one", b"two", b"one"]
    assert fields(replay) == [*stored(first), (b"idempotent-replayed", b"true")]


@wire_needs("duplicate fields")
def test_cookies_and_fields_of_the_moment_reach_the_first_client_only(served: str, new_case: NewCase) -> None:
    """R-02: the first client gets both cookies, a replay none. R-11: CORS headers reach the same origin."""
    case = new_case("moment")
    first, replay = case.ask(), case.ask()

    assert first.values(b"set-cookie") == [b"a=1", b"b=2"]
    assert first.values(b"access-control-allow-origin") == replay.values(b"access-control-allow-origin") == [b"*"]
    assert not NOT_REPLAYED & {name for name, _ in replay.headers}
    assert replay.values(b"x-kept") == [b"yes"]


@pytest.mark.parametrize("reply", ["204", "304"])
@wire_needs("bodiless keep-alive")
def test_a_replay_without_a_body_does_not_disturb_the_next_response(served: str, new_case: NewCase, reply: str) -> None:
    """R-01: afterwards the connection is at the start of the next message."""
    case = new_case(reply)
    with case.connect() as connection:
        connection.send(case.request() * 3)
        responses = [connection.read() for _ in range(3)]

    assert [response.replayed for response in responses] == [False, True, True]
    assert {response.status for response in responses} == {int(reply)}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_safe_method_with_a_key_is_not_touched(served: str, new_case: NewCase, method: str) -> None:
    """R-01: the application responds each time, as without a key."""
    case = new_case("charge", path="/any")
    first, second = (case.ask(b"", method=method) for _ in range(2))

    assert not first.replayed
    assert not second.replayed
    assert len(case.journal.lines()) == (2 if first.status == 201 else 0)


@wire_needs("asgi", "native", "pathsend")
def test_a_file_that_the_server_could_send_by_path_is_sent_as_bytes_and_replayed(
    served: str, native_case: NewCase
) -> None:
    """R-06: the extension is hidden while a response is captured, and offered otherwise."""
    case = native_case("/file")
    plain, first, replay = case.ask(key=None), case.ask(), case.ask()

    assert plain.body == first.body == replay.body == FILE_BODY
    assert replay.replayed
    assert case.journal.lines() == ["pathsend True", "pathsend False"]


@wire_needs("wsgi", "native")
def test_a_wrapped_file_is_sent_and_replayed(served: str, native_case: NewCase) -> None:
    """R-07: without a key the server's own wrapper sends it; with a key, one that can be read."""
    case = native_case("/file")
    plain, first, replay = case.ask(key=None), case.ask(), case.ask()

    assert plain.body == first.body == replay.body == FILE_BODY
    assert replay.replayed
    kind = served.partition(":")[0].partition("-")[0]
    assert case.journal.lines() == [f"wrapper of {kind}", "wrapper of wsgiref"]


@wire_needs("asgi", "native", "trailers")
def test_trailers_pass_and_are_not_stored(served: str, native_case: NewCase) -> None:
    """R-06: the first client gets them after the body, over HTTP/2; a replay has none."""
    case = native_case("/trailing")
    first, first_trailers = over_http2(case)
    replay, replay_trailers = over_http2(case)

    assert (first.status, first.body, first_trailers) == (200, b"summed", [(b"x-sum", b"42")])
    assert (replay.status, replay.body, replay_trailers) == (200, b"summed", [])
    assert replay.replayed
    assert case.journal.lines() == ["ran"]
