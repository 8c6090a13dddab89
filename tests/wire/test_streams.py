"""Streams: sent live to the first client, stored within the limit, a tombstone over it, durable before their end."""

from __future__ import annotations

from tests.wire.conftest import NewCase
from tests.wire.kinds import wire_needs


def test_the_first_event_arrives_before_the_handler_goes_on(served: str, new_case: NewCase) -> None:
    """R-03, R-04: the gate opens only when the client has the first event; the replay is equal byte for byte."""
    case = new_case("events")
    with case.begin() as connection:
        head = connection.read_head()
        first = connection.read_piece(head, 13)
        during = case.ask()
        case.journal.gate().set()
        body = first + connection.read_body(head)
    replay = case.ask()

    assert (head.status, first, during.status) == (200, b"data: first\n\n", 409)
    assert (replay.status, replay.replayed, replay.body) == (200, True, body)
    assert case.journal.lines() == ["ran"]


def test_a_stream_over_the_limit_is_whole_for_its_client_and_a_tombstone_for_the_next(
    served: str, new_case: NewCase
) -> None:
    """R-04, O-11: a retry never runs again."""
    case = new_case("long events", variant="small")
    with case.begin() as connection:
        head = connection.read_head()
        first = connection.read_piece(head, 13)
        case.journal.gate().set()
        body = first + connection.read_body(head)
    later = case.ask()

    assert body == b"data: first\n\n" + (b"data: " + b"x" * 90 + b"\n\n") * 30
    assert later.status == 409
    assert b"not-replayable" in later.body
    assert case.journal.lines() == ["ran"]


@wire_needs("wsgi", "native")
def test_what_is_written_is_live_and_replayed(served: str, native_case: NewCase) -> None:
    """R-07, R-04: `write()` sends at once; the replay has both the written and the returned bytes."""
    case = native_case("/writes")
    with case.begin() as connection:
        head = connection.read_head()
        first = connection.read_piece(head, 13)
        case.journal.gate().set()
        body = first + connection.read_body(head)
    replay = case.ask()

    assert first == b"data: first\n\n"
    assert body == b"data: first\n\ndata: second\n\ndata: third\n\n"
    assert (replay.replayed, replay.body) == (True, body)
    assert case.journal.lines() == ["ran"]


@wire_needs("wsgi", "native")
def test_the_iterable_is_closed_once(served: str, native_case: NewCase) -> None:
    """R-07: the server's `close()` closes the application's iterable, once."""
    case = native_case("/closes")
    response = case.ask()
    case.journal.await_line("closed")
    replay = case.ask()

    assert (response.body, replay.body, replay.replayed) == (b"one two", b"one two", True)
    assert case.journal.lines() == ["closed"]


@wire_needs("background")
def test_a_duplicate_is_replayed_while_the_background_task_still_runs(served: str, new_case: NewCase) -> None:
    """R-05: neither the response nor duplicates wait for the task, which runs to its end."""
    case = new_case("background")
    first = case.ask()
    case.journal.await_line("task began")
    duplicate = case.ask()
    unfinished = case.journal.lines()
    case.journal.gate().set()
    case.journal.await_line("task ended")

    assert (first.status, duplicate.status, duplicate.replayed) == (201, 201, True)
    assert duplicate.body == first.body
    assert unfinished == ["ran", "task began"]
