"""How a response leaves: durable before its last byte, streams live, background tasks afterwards."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as NotYet

import pytest

from open_idempotency import AlreadyCompleted, idem
from open_idempotency.events import Completed, Failed
from tests.http.behaviours import PATIENCE, Call, Reply
from tests.http.conftest import NewCase
from tests.http.endpoints import Declined, Steps, charge, gated
from tests.http.sites import Case
from tests.http.variants import LIMIT, needs

# waitress collects 18,000 bytes before it sends
FIRST, SECOND, LAST = b"1" * 32_768, b"2", b"3"


def _streaming(call: Call) -> Steps:
    """Sends chunks, and waits for the gate before the last one.

    If the last chunk cannot be recognised, an adapter may hold each chunk until the next one comes.
    """
    yield from ()
    return Reply(200, [], [FIRST, SECOND, call.script.release, LAST])


def _events(call: Call) -> Steps:
    """Sends one event, and waits for the gate."""
    yield from ()
    return Reply(200, [("Content-Type", "text/event-stream")], [FIRST, call.script.release, LAST])


def test_the_response_is_durable_before_its_last_byte_leaves(new_case: NewCase) -> None:
    """R-03, I4: no byte of a response in one message leaves before its completion is acknowledged."""
    case = new_case(charge)
    case.watched.completing.clear()
    case.watched.may_complete.clear()
    try:
        outcome = case.start()
        assert case.watched.completing.wait(PATIENCE)
        with pytest.raises(NotYet):
            outcome.result(0.1)
    finally:
        case.watched.may_complete.set()
    assert outcome.result(PATIENCE).status_code == 201


def test_the_first_chunk_of_a_stream_is_not_held_back(new_case: NewCase) -> None:
    """R-03, R-04: the client reads it while the handler still runs."""
    case = new_case(_streaming)
    with case.stream() as response:
        pieces = response.iter_raw()
        received = _read_first(pieces)
        case.script.release.set()
        assert received + b"".join(pieces) == FIRST + SECOND + LAST


def test_an_event_is_not_held_until_the_next_one(new_case: NewCase) -> None:
    """R-04: an event stream is live."""
    case = new_case(_events)
    with case.stream() as response:
        pieces = response.iter_raw()
        assert _read_first(pieces) == FIRST
        case.script.release.set()
        assert b"".join(pieces) == LAST


def _read_first(pieces: Iterator[bytes]) -> bytes:
    received = b""
    while len(received) < len(FIRST):
        received += next(pieces)
    return received


def test_the_end_of_a_stream_comes_when_it_is_durable(new_case: NewCase) -> None:
    """R-03: a client that has seen the end can get a replay."""
    case = new_case(_streaming)
    case.script.release.set()
    assert case.send().content == FIRST + SECOND + LAST
    assert [type(event) for event in case.events].count(Completed) == 1


def test_a_stream_within_the_limit_is_replayed(new_case: NewCase) -> None:
    """R-04: it is replayed as one body."""
    case = new_case(_streaming)
    case.script.release.set()
    case.send()
    second = case.send()
    assert (second.content, second.headers["idempotent-replayed"]) == (FIRST + SECOND + LAST, "true")
    assert second.headers["content-length"] == str(len(FIRST + SECOND + LAST))
    assert len(case.runs) == 1


def test_a_stream_over_the_limit_is_not_run_again(new_case: NewCase) -> None:
    """R-04, O-11: the first client gets it live, and later ones get the tombstone's problem."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(200, [], [b"x" * LIMIT, b"y"])

    case = new_case(endpoint, "small")
    assert len(case.send().content) == LIMIT + 1
    assert case.send().json()["original_status"] == 200
    assert len(case.runs) == 1


def test_a_stream_of_known_length_is_durable_before_its_last_bytes(new_case: NewCase) -> None:
    """R-03: a client that counts to the Content-Length is done before the stream formally ends."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(200, [("Content-Length", "10")], [b"first", b" last", call.script.release])

    case = new_case(endpoint)
    # An adapter may hold the last bytes until the stream ends, so the timer ends it.
    opener = threading.Timer(1.0, case.script.release.set)
    opener.start()
    try:
        with case.stream() as response:
            assert b"".join(response.iter_raw()) == b"first last"
            assert [type(event) for event in case.events].count(Completed) == 1
    finally:
        case.script.release.set()
        opener.cancel()


def test_a_stream_that_breaks_off_runs_again(new_case: NewCase) -> None:
    """L-04: the part that the first client saw is no outcome."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        if len(call.script.runs) > 1:
            return Reply(200, [], [b"whole"])
        return Reply(200, [], [FIRST, SECOND, _Breaking()])

    case = new_case(endpoint)
    broken = case.start()
    assert broken.exception(PATIENCE) is not None
    case.wait_until_reported(Failed)
    assert case.send().content == b"whole"


class _Breaking(threading.Event):
    """A gate that raises: the stream ends with an error."""

    def wait(self, timeout: float | None = None) -> bool:
        raise Declined("in the middle of the stream")


def _leaves(case: Case) -> None:
    """A client that sends its request and leaves while the handler runs."""
    with case.connected((b"Idempotency-Key", case.key.encode()), body=b'{"amount": 1}'):
        assert case.script.arrived.wait(PATIENCE)


@needs("undisturbed")
def test_a_client_that_left_finds_its_response(new_case: NewCase) -> None:
    """L-05: the handler finishes, and the retry replays its response."""
    case = new_case(gated)
    _leaves(case)
    case.script.release.set()
    case.wait_until_reported(Completed)
    assert case.send().json() == {"charge": 1}
    assert len(case.runs) == 1


@needs("cancelled")
def test_a_client_that_left_and_had_its_handler_cancelled_can_try_again(new_case: NewCase) -> None:
    """L-04: the attempt has failed, and the retry does not wait for the lease."""
    case = new_case(gated)
    _leaves(case)
    case.wait_until_reported(Failed)
    case.script.release.set()
    assert case.send().json() == {"charge": 2}


@needs("background")
def test_background_tasks_run_after_the_response(new_case: NewCase) -> None:
    """R-05: neither the response nor a duplicate waits for them, and they run after the claim has ended."""
    gate, seen = threading.Event(), threading.Event()

    def endpoint(call: Call) -> Steps:
        yield from ()

        def later() -> None:
            assert gate.wait(PATIENCE)
            try:
                idem.save_stage("late")
            except AlreadyCompleted:
                seen.set()

        return Reply(201, [], b"done", background=later)

    case = new_case(endpoint)
    with case.stream() as response:
        assert b"".join(response.iter_raw()) == b"done"
    assert case.send().headers["idempotent-replayed"] == "true"
    gate.set()
    assert seen.wait(PATIENCE)


def test_stages_after_the_response_are_refused(new_case: NewCase) -> None:
    """S-03: ERR_COMPLETED, for code that kept the request's context; the backend is not called."""
    kept: list[contextvars.Context] = []

    def endpoint(call: Call) -> Steps:
        kept.append(contextvars.copy_context())
        return (yield from charge(call))

    case = new_case(endpoint)
    assert case.send().status_code == 201
    with pytest.raises(AlreadyCompleted):
        kept[0].run(idem.save_stage, "late")
    assert case.verbs == ["Claim", "Complete"]
