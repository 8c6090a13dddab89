"""The WSGI middleware: when a response is durable, and the effects of failures, lost clients and takeovers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from open_idempotency import idem
from open_idempotency._engine.engine import running
from open_idempotency.backend import Complete, Completed, Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import BackendUnavailable, LeaseLost
from open_idempotency.wsgi import App, IdempotencyMiddleware
from tests.unit.wsgi.wsgi_server import (
    PLAIN,
    Clock,
    Closing,
    Sent,
    begin,
    counting,
    environ,
    hello,
    only_record,
    serve,
    streaming,
)

# Durable before the last byte


@pytest.mark.parametrize("app", [hello, streaming(lambda: iter([b"one"])), streaming(lambda: iter([]))])
def test_nothing_of_a_response_in_one_piece_leaves_before_it_is_durable(backend: MemoryBackend, app: App) -> None:
    """R-03: not even its start."""
    at_start: list[Status] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        at_start.append(only_record(backend).status)

    list(IdempotencyMiddleware(app, backend)(environ(), start_response))
    assert at_start == [Status.COMPLETED]


def test_a_stream_flows_while_its_handler_runs_and_its_end_waits(backend: MemoryBackend) -> None:
    """R-03, R-04: without a length each chunk leaves when the next one is made, and the last one when the response is
    recorded.
    """
    made: list[bytes] = []

    def body() -> Iterator[bytes]:
        for chunk in (b"a", b"b", b"c"):
            made.append(chunk)
            yield chunk

    sent = begin(IdempotencyMiddleware(streaming(body), backend), environ())
    assert next(sent.chunks) == b"a"
    assert (made, only_record(backend).status) == ([b"a", b"b"], Status.IN_PROGRESS)
    assert next(sent.chunks) == b"b"
    assert only_record(backend).status is Status.IN_PROGRESS
    assert next(sent.chunks) == b"c"
    assert only_record(backend).status is Status.COMPLETED
    sent.close()


def test_with_a_content_length_only_the_chunk_that_reaches_it_waits(backend: MemoryBackend) -> None:
    """R-03: the length shows which chunk is the last."""
    made: list[bytes] = []

    def body() -> Iterator[bytes]:
        for chunk in (b"a", b"b"):
            made.append(chunk)
            yield chunk

    app = streaming(body, [*PLAIN, ("Content-Length", "2")])
    sent = begin(IdempotencyMiddleware(app, backend), environ())
    assert (next(sent.chunks), made) == (b"a", [b"a"])
    assert only_record(backend).status is Status.IN_PROGRESS
    assert next(sent.chunks) == b"b"
    assert only_record(backend).status is Status.COMPLETED
    assert list(sent.chunks) == []
    sent.close()


def test_an_event_stream_is_live_and_ends_when_it_is_durable(backend: MemoryBackend) -> None:
    """R-04: an event does not wait for the next event; the end of the response waits for the record."""
    app = streaming(lambda: iter([b"data: 1\n\n", b"data: 2\n\n"]), [("Content-Type", "text/event-stream")])
    sent = begin(IdempotencyMiddleware(app, backend), environ())
    assert next(sent.chunks) == b"data: 1\n\n"
    assert next(sent.chunks) == b"data: 2\n\n"
    assert only_record(backend).status is Status.IN_PROGRESS
    assert list(sent.chunks) == []
    assert only_record(backend).status is Status.COMPLETED
    sent.close()


# Failure, and clients that leave


def test_a_generator_that_raises_mid_stream_fails_and_the_retry_resumes(backend: MemoryBackend) -> None:
    """L-04, O-08: the stages are kept."""
    runs: list[int] = []

    def body() -> Iterator[bytes]:
        yield b"x"
        idem.run("charge", lambda: runs.append(1))
        if idem.attempt == 1:
            raise ValueError("half way")
        yield b"y"

    closing = [Closing(body()), Closing(body())]
    bodies = iter(closing)
    middleware = IdempotencyMiddleware(streaming(lambda: next(bodies)), backend)
    with pytest.raises(ValueError, match="half way"):
        serve(middleware)
    assert only_record(backend).status is Status.FAILED
    assert closing[0].closed == 1
    assert serve(middleware).body == b"xy"
    assert runs == [1]


def test_a_server_that_stops_early_does_not_stop_the_handler(backend: MemoryBackend) -> None:
    """L-05: the client has left, the handler finishes, and the retry gets its response."""
    body = Closing(iter([b"a", b"b", b"c", b"d"]))
    middleware = IdempotencyMiddleware(streaming(lambda: body), backend)
    sent = begin(middleware, environ())
    next(sent.chunks)
    sent.close()
    assert body.closed == 1
    sent = serve(middleware)
    assert (sent.body, sent.header("idempotent-replayed")) == (b"abcd", ["true"])


def test_a_stream_without_an_end_is_stopped_when_its_client_left(backend: MemoryBackend) -> None:
    """L-05: a body over the limit is not stored, so there is no reason to continue; the retry runs again."""

    def body() -> Iterator[bytes]:
        while True:
            yield b"x" * 10

    app, runs = counting(streaming(body))
    middleware = IdempotencyMiddleware(app, backend, max_response_bytes=100)
    for expected in (1, 2):
        sent = begin(middleware, environ())
        next(sent.chunks)
        sent.close()
        assert len(runs) == expected
        assert only_record(backend).status is Status.FAILED


def test_a_client_that_left_while_write_was_called_does_not_stop_the_handler(backend: MemoryBackend) -> None:
    """L-05: the server's ``write()`` raises, the application's does not."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        for chunk in (b"a", b"b", b"c"):
            write(chunk)
        return []

    def gone(chunk: bytes) -> None:
        raise BrokenPipeError

    middleware = IdempotencyMiddleware(app, backend)
    result: Any = middleware(environ(), lambda status, headers, exc_info=None: gone)
    result.close()
    assert serve(middleware).body == b"abc"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_handler_that_is_ended_lets_go_of_its_record(backend: MemoryBackend, error: type[BaseException]) -> None:
    """L-04: gunicorn's timeout is a SystemExit in the handler; the retry runs at once."""
    runs: list[int] = []

    def app(made: dict[str, Any], start_response: Any) -> Any:
        runs.append(1)
        if len(runs) == 1:
            raise error
        return hello(made, start_response)

    middleware = IdempotencyMiddleware(app, backend)
    with pytest.raises(error):
        serve(middleware)
    assert running.get() is None
    assert serve(middleware).body == b"hello"


def test_a_text_body_fails(backend: MemoryBackend) -> None:
    """R-07: PEP 3333 requires bytes; a body that cannot be sent cannot be stored."""
    with pytest.raises(TypeError, match="not str"):
        serve(IdempotencyMiddleware(streaming(lambda: iter(["a"])), backend))
    assert only_record(backend).status is Status.FAILED


# Taken over


def overtaken(app_after: Callable[[Any], Any]) -> tuple[IdempotencyMiddleware, list[Sent]]:
    """An application whose first attempt outlives its lease while the second attempt responds."""
    clock = Clock()
    second: list[Sent] = []

    def app(made: dict[str, Any], start_response: Any) -> Any:
        if idem.attempt == 1:
            clock.now += 31
            second.append(serve(middleware))
            return app_after(start_response)
        start_response("200 OK", PLAIN)
        return [b"second"]

    middleware = IdempotencyMiddleware(app, MemoryBackend(clock=clock), lease=30)
    return middleware, second


def one_piece(start_response: Any) -> Any:
    start_response("200 OK", PLAIN)
    return [b"first"]


def one_chunk(start_response: Any) -> Any:
    start_response("200 OK", PLAIN)
    return iter([b"first"])


def written(start_response: Any) -> Any:
    start_response("200 OK", [*PLAIN, ("Content-Length", "5")])(b"first")
    return []


def a_stage(start_response: Any) -> Any:
    start_response("200 OK", PLAIN)
    idem.save_stage("late")
    return [b"first"]


@pytest.mark.parametrize("late", [one_piece, one_chunk, written, a_stage])
def test_a_worker_that_wakes_late_sends_the_new_owners_response(late: Callable[[Any], Any]) -> None:
    """L-03: its own response is not recorded, so it never leaves."""
    middleware, second = overtaken(late)
    first = serve(middleware)
    assert second[0].body == b"second"
    assert (first.body, first.header("idempotent-replayed")) == (b"second", ["true"])


def test_the_end_of_a_stream_that_was_taken_over_is_withheld() -> None:
    """L-03: its beginning has left already, so the client must see that the stream was cut."""

    def late(start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return iter([b"first ", b"half"])

    middleware, _ = overtaken(late)
    sent = begin(middleware, environ())
    assert next(sent.chunks) == b"first "
    with pytest.raises(LeaseLost):
        next(sent.chunks)
    sent.close()


class NeverCompletes(MemoryBackend):
    """A backend that is down whenever a response is recorded."""

    def complete(self, c: Complete, /) -> Completed:
        raise BackendUnavailable("down")


@pytest.mark.parametrize("app", [hello, streaming(lambda: iter([b"hel", b"lo"]))])
def test_a_response_that_could_not_be_recorded_says_so(app: App) -> None:
    """L-08: the mark is set if its start has not left yet."""
    sent = serve(IdempotencyMiddleware(app, NeverCompletes(), record_within=0))
    assert sent.body == b"hello"
    assert sent.header("idempotency-status") == (["unrecorded"] if app is hello else [])
