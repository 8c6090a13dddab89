"""A client that leaves: after its request, during its upload, and during the response."""

from __future__ import annotations

import pytest

from tests.wire.case import Case
from tests.wire.client import Connection
from tests.wire.conftest import NewCase, StartServer
from tests.wire.kinds import wire_needs

LEAVING = {"closes": Connection.close, "resets": Connection.reset, "half-closes": Connection.half_close}


@wire_needs("handler goes on")
@pytest.mark.parametrize("leaves", LEAVING)
def test_a_handler_whose_client_left_finishes_and_the_retry_replays(
    served: str, new_case: NewCase, leaves: str
) -> None:
    """L-05: the response is stored although nobody reads it, and there is one effect."""
    case = new_case("gated")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        LEAVING[leaves](connection)
        during = case.ask()
        case.journal.gate().set()
        _, retry = case.ask_until_admitted()

    assert (during.status, retry.status, retry.replayed) == (409, 201, True)
    assert case.journal.lines() == ["arrived", "ran"]


@wire_needs("asgi", "native")
def test_receive_reports_that_the_client_left_and_the_response_is_stored(served: str, native_case: NewCase) -> None:
    """R-06, L-05: after the body `receive()` blocks until the real disconnect; what is sent after it is stored."""
    case = native_case("/leaves")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        assert case.ask().status == 409
        connection.close()
        case.journal.await_line("finished")
    retry = case.ask()

    assert (retry.status, retry.replayed, retry.body) == (201, True, b"nobody reads this")
    assert case.journal.lines() == ["arrived", "http.disconnect", "finished"]


@wire_needs("cancelled")
@pytest.mark.parametrize("leaves", ["closes", "resets"])
def test_a_cancelled_async_view_keeps_its_stages_and_the_retry_resumes_at_once(
    served: str, new_case: NewCase, leaves: str
) -> None:
    """L-04: `fail` is recorded although the task is cancelled, so the retry does not wait for the lease of 30 s."""
    case = new_case("staged")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        LEAVING[leaves](connection)
        _, retry = case.ask_until_admitted()
    case.journal.gate().set()

    assert (retry.status, retry.replayed, retry.body) == (201, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "arrived", "charge"]


def test_a_stream_whose_client_left_is_produced_to_its_end_and_replayed(served: str, new_case: NewCase) -> None:
    """L-05a, R-04: the stream ends without its client, even if the server closes or cancels it."""
    case = new_case("events")
    with case.begin() as connection:
        head = connection.read_head()
        assert connection.read_piece(head, 13) == b"data: first\n\n"
        connection.reset()  # so that the server's next write fails
        case.journal.gate().set()
        _, retry = case.ask_until_admitted()

    assert (retry.status, retry.replayed) == (200, True)
    assert retry.body.startswith(b"data: first\n\ndata: ")
    assert case.journal.lines() == ["ran"]


@wire_needs("handler goes on")
def test_a_stream_whose_client_left_before_it_began_is_produced_and_replayed(served: str, new_case: NewCase) -> None:
    """L-05, L-05a: the grace begins with the stream, even if the framework sees the disconnect before."""
    case = new_case("late events")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        connection.reset()
        assert case.ask().status == 409
        case.journal.gate().set()
        _, retry = case.ask_until_admitted()

    assert (retry.status, retry.replayed) == (200, True)
    assert case.journal.lines() == ["arrived"]


def test_a_stream_without_an_end_is_closed_when_its_grace_is_over(served: str, new_case: NewCase) -> None:
    """L-05a: its attempt fails and keeps its stages, and the retry runs at once."""
    case = new_case("endless", variant="brief")
    with case.begin() as connection:
        head = connection.read_head()
        connection.read_piece(head, 12)
        connection.reset()
        case.journal.await_line("closed")
        _, retry = case.ask_until_admitted()

    assert (retry.status, retry.replayed, retry.body) == (200, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "closed"]


@pytest.mark.parametrize(
    "pair", ["uvicorn-httptools:fastapi", "hypercorn:asgi", "granian:django-asgi", "gunicorn-gthread:flask"]
)
def test_streams_whose_clients_left_hold_neither_threads_nor_the_shutdown(start_server: StartServer, pair: str) -> None:
    """L-05a, L-06: with as many streams as threads, the server serves other clients, and ends at SIGTERM."""
    kind, _, adapter = pair.partition(":")
    server = start_server(kind)
    for _ in range(8):
        _leave(Case(server, adapter, "endless", variant="brief"))
    assert Case(server, adapter, "charge").ask().status == 201
    _leave(Case(server, adapter, "endless", variant="brief"))
    server.terminate()
    assert server.wait(10), "it did not end"


def _leave(case: Case) -> None:
    with case.begin() as connection:
        connection.read_head()
        connection.reset()


@wire_needs("asgi", "native")
def test_sending_to_a_client_that_left_in_the_middle_does_not_stop_the_handler(
    served: str, native_case: NewCase
) -> None:
    """L-05a: every further `send` comes after the disconnect, which is withheld, and the response is stored."""
    case = native_case("/in-pieces")
    with case.begin() as connection:
        head = connection.read_head()
        assert connection.read_piece(head, 5) == b"first"
        connection.reset()
        case.journal.gate().set()
        case.journal.await_line("finished")
    retry = case.ask()

    assert (retry.status, retry.replayed, retry.body) == (200, True, b"first" + b"more" * 5 + b"last")
    assert case.journal.lines() == ["ran", "finished"]


@pytest.mark.parametrize("framing", ["counted", "chunked"])
@pytest.mark.parametrize("leaves", ["closes", "resets", "half-closes"])
def test_half_an_upload_is_not_admitted_and_leaves_its_key_free(
    served: str, new_case: NewCase, framing: str, leaves: str
) -> None:
    """L-05, B-01: nothing is claimed before the body is complete, so another body may use the key."""
    case = new_case("charge")
    lines, part = {
        "counted": ((b"Content-Length: 100",), b"x" * 50),
        "chunked": ((b"Transfer-Encoding: chunked",), b"32\r\n" + b"x" * 50 + b"\r\n"),
    }[framing]
    with case.connect() as connection:
        connection.send(case.head(*lines) + part)
        LEAVING[leaves](connection)
        whole = case.ask(b"a body that is whole")

    assert (whole.status, whole.replayed) == (201, False)
    assert case.ask(b"a body that is whole").replayed
    assert case.journal.lines() == ["ran"]
