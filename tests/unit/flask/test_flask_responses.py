"""The Flask extension: what is stored and replayed of responses, errors, streams and files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import (
    Flask,
    Response,
    abort,
    send_file,
    session,
    stream_with_context,
)

from open_idempotency import idem
from open_idempotency._engine.engine import running
from open_idempotency.backend import Complete, Completed, Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from open_idempotency.flask import Idempotency
from tests.unit.flask.flask_shop import HEADERS, KEY, Clock, only_record, post, replayed, view

# Responses


def test_a_replay_is_what_was_stored_and_the_moments_own_fields(app: Flask, backend: MemoryBackend) -> None:
    """R-01, R-02: ``after_request`` functions run for each response, but only headers that are never stored differ."""
    view(app, lambda: ("body", 201))
    Idempotency(app, backend)
    count = iter(range(9))
    closed: list[int] = []

    @app.after_request
    def mark(response: Response) -> Response:
        number = next(count)
        session["count"] = number
        response.headers.add("X-Count", str(number))
        response.headers.add(f"X-Only-{number}", "1")
        response.call_on_close(lambda: closed.append(number))
        response.headers["Access-Control-Allow-Origin"] = f"https://{number}.example"
        response.status_code += number
        response.set_data(response.get_data() + b"!" * number)
        return response

    first, second = post(app), post(app)
    assert (first.status_code, first.text, first.headers["X-Count"]) == (201, "body", "0")
    assert (second.status_code, second.text, second.headers.getlist("X-Count")) == (201, "body", ["0"])
    assert second.headers["Access-Control-Allow-Origin"] == "https://1.example"
    assert first.headers["Set-Cookie"] != second.headers["Set-Cookie"]
    assert second.headers["Content-Length"] == "4"
    assert "X-Only-1" not in second.headers
    assert closed == [0, 1]


def _other_status(response: Response) -> None:
    response.status_code = 299


def _other_field(response: Response) -> None:
    response.headers["Content-Type"] = "text/other"


def _one_more_field(response: Response) -> None:
    response.headers.add("X-More", "1")


def _other_body(response: Response) -> None:
    response.response = [b"ydob"]


@pytest.mark.parametrize("change", [_other_status, _other_field, _one_more_field, _other_body])
def test_a_replay_that_is_changed_in_one_thing_is_sent_as_it_was_stored(
    app: Flask, backend: MemoryBackend, change: Callable[[Response], None]
) -> None:
    """R-01: an unchanged replay is sent without being rebuilt, so each property has to be compared."""
    view(app, lambda: ("body", 201))
    Idempotency(app, backend)

    @app.after_request
    def alter(response: Response) -> Response:
        if replayed(response):
            change(response)
        return response

    first, second = post(app), post(app)
    assert (second.status_code, second.text, second.content_type) == (201, "body", first.content_type)
    assert "X-More" not in second.headers


def test_a_replay_that_nobody_changes_is_made_once(app: Flask, backend: MemoryBackend) -> None:
    """R-01: an unchanged replay costs one response object."""
    made: list[int] = []

    class Counted(Response):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if type(self) is Counted:  # and not the test client's own
                made.append(self.status_code)

    app.response_class = Counted
    view(app, lambda: ("body", 201))
    Idempotency(app, backend)
    post(app)
    made.clear()
    assert replayed(post(app))
    assert made == [201]


def test_after_request_functions_registered_earlier_are_part_of_the_response(
    app: Flask, backend: MemoryBackend
) -> None:
    """R-01: the response is stored as it leaves, whatever the order of registration."""
    app.after_request(lambda response: response.headers.add("X-Early", "1") or response)
    view(app, lambda: "x")
    Idempotency(app, backend)
    assert [post(app).headers.getlist("X-Early") for _ in range(2)] == [["1"], ["1"]]


def test_an_aborted_request_is_stored_as_its_error_handler_responds(
    app: Flask, backend: MemoryBackend, runs: list[Any]
) -> None:
    """A 4xx that the view raises is an outcome."""

    def refuse() -> str:
        runs.append(1)
        abort(410)

    view(app, refuse)
    app.register_error_handler(410, lambda error: ("sold out", 410))
    Idempotency(app, backend)
    assert [post(app).text for _ in range(2)] == ["sold out", "sold out"]
    assert len(runs) == 1


def test_an_error_handler_can_discard_the_response(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """The request's context lasts until its response is settled."""

    def refuse() -> str:
        runs.append(1)
        abort(410)

    def handle(error: Exception) -> Any:
        idem.discard()
        return "sold out", 410

    view(app, refuse)
    app.register_error_handler(410, handle)
    Idempotency(app, backend)
    assert [post(app).status_code for _ in range(2)] == [410, 410]
    assert len(runs) == 2


def test_a_failed_view_runs_again_with_its_stages(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """O-08, L-04: the 500 is not stored."""

    def charge() -> str:
        idem.run("charge", lambda: runs.append(1))
        if idem.attempt == 1:
            raise ValueError("half way")
        return f"attempt {idem.attempt}"

    view(app, charge)
    Idempotency(app, backend)
    assert post(app).status_code == 500
    assert only_record(backend).status is Status.FAILED
    assert post(app).text == "attempt 2"
    assert len(runs) == 1
    assert running.get() is None


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_that_leaves_the_application_lets_go_of_the_record(
    app: Flask, backend: MemoryBackend, error: type[BaseException]
) -> None:
    """L-04: no response settles it: in tests, in the debugger, at gunicorn's timeout."""
    app.testing = True

    def charge() -> str:
        raise error

    view(app, charge)
    Idempotency(app, backend)
    with pytest.raises(error):
        post(app)
    assert only_record(backend).status is Status.FAILED
    assert running.get() is None


def test_an_after_request_function_that_raises_fails_the_attempt(app: Flask, backend: MemoryBackend) -> None:
    """L-04: the client gets a 500, and the record says so."""
    view(app, lambda: "x")
    Idempotency(app, backend)

    @app.after_request
    def broken(response: Response) -> Response:
        raise ValueError("broken")

    assert post(app).status_code == 500
    assert only_record(backend).status is Status.FAILED


def test_a_worker_that_wakes_late_sends_the_new_owners_response(app: Flask, runs: list[Any]) -> None:
    """L-03: the loss is noticed at the end, at a stage, or in the error handler's response."""
    clock = Clock()
    backend = MemoryBackend(clock=clock)
    late: dict[str, Callable[[], Any]] = {
        "response": lambda: "first",
        "stage": lambda: idem.save_stage("late"),
        "error": lambda: abort(418),
        "stream": lambda: iter(["first"]),
    }

    def charge(kind: str) -> Any:
        if idem.attempt == 1:
            clock.now += 31
            runs.append(post(app, f"/late/{kind}", headers=headers).text)
            return late[kind]()
        return "second"

    app.testing = True
    app.add_url_rule("/late/<kind>", view_func=charge, methods=["POST"])
    Idempotency(app, backend, lease=30)
    for kind in late:
        headers = {"Idempotency-Key": f"{KEY}-{kind}"}
        first = post(app, f"/late/{kind}", headers=headers)
        assert (kind, first.text, replayed(first)) == (kind, "second", True)
    assert runs == ["second"] * 4


class NeverCompletes(MemoryBackend):
    """A backend that is down whenever a response is recorded."""

    def complete(self, c: Complete, /) -> Completed:
        raise BackendUnavailable("down")


@pytest.mark.parametrize("make", [lambda: "x", lambda: iter(["x"])])
def test_a_response_that_could_not_be_recorded_says_so(app: Flask, make: Callable[[], Any]) -> None:
    """L-08: the response is sent, with a mark."""
    view(app, make)
    Idempotency(app, NeverCompletes(), record_within=0)
    response = post(app)
    assert (response.text, response.headers["Idempotency-Status"]) == ("x", "unrecorded")


# Streams and files


@pytest.mark.parametrize("wrap", [lambda body: body, stream_with_context], ids=["plain", "with context"])
def test_a_stream_is_replayed_and_has_its_request(
    app: Flask, backend: MemoryBackend, wrap: Callable[[Any], Any]
) -> None:
    """R-04, R-07: stages work in the generator, while the server iterates."""

    def charge() -> Any:
        def body() -> Iterator[str]:
            for name in ("a", "b", "c"):
                idem.save_stage(name)
                yield name

        return Response(wrap(body()), content_type="text/plain")

    view(app, charge)
    Idempotency(app, backend)
    assert [(r.text, replayed(r)) for r in (post(app), post(app))] == [("abc", False), ("abc", True)]
    assert running.get() is None


def test_a_stream_flows_while_its_generator_runs(app: Flask, backend: MemoryBackend) -> None:
    """R-03: its last chunk leaves when the record is complete."""
    view(app, lambda: iter(["a", "b", "c"]))
    Idempotency(app, backend)
    response = app.test_client().post("/charges", headers=HEADERS, buffered=False)
    chunks = response.iter_encoded()
    assert (next(chunks), next(chunks)) == (b"a", b"b")
    assert only_record(backend).status is Status.IN_PROGRESS
    assert next(chunks) == b"c"
    assert only_record(backend).status is Status.COMPLETED
    response.close()


def test_a_client_that_leaves_a_stream_does_not_stop_it(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """L-05: the server closes the response; the generator runs to its end, and the retry gets its response."""

    def charge() -> Any:
        def body() -> Iterator[str]:
            yield from ("a", "b", "c", "d")
            runs.append("end")

        response = Response(body())
        response.call_on_close(lambda: runs.append("closed"))
        return response

    view(app, charge)
    Idempotency(app, backend)
    app.test_client().post("/charges", headers=HEADERS, buffered=False).close()
    assert runs == ["end", "closed"]
    assert (post(app).text, len(runs)) == ("abcd", 2)


@pytest.mark.parametrize("good", [0, 2])
def test_a_stream_that_raises_fails_the_attempt(app: Flask, backend: MemoryBackend, good: int) -> None:
    """L-04: before any byte has left, or in the middle."""

    def charge() -> Any:
        def body() -> Iterator[str]:
            for _ in range(good):
                yield "x"
            raise ValueError("broken")

        return Response(Closing(body()))

    class Closing:
        def __init__(self, chunks: Iterator[str]) -> None:
            self._chunks = chunks

        def __iter__(self) -> Iterator[str]:
            return self._chunks

        def close(self) -> None:
            closed.append(1)

    closed: list[int] = []
    app.testing = True
    view(app, charge)
    Idempotency(app, backend)
    with pytest.raises(ValueError, match="broken"):
        post(app)
    assert only_record(backend).status is Status.FAILED
    assert closed == [1]


def test_a_sent_file_is_replayed(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """R-07: ``send_file``, in direct passthrough; its file is closed once."""

    class File(io.BytesIO):
        def close(self) -> None:
            if not self.closed:
                runs.append("closed")
            super().close()

    class OfTheServer:
        def __init__(self, *_: Any) -> None:
            raise AssertionError("a server that sends the file by itself goes past the capture")

    view(app, lambda: send_file(File(b"x" * 20_000), mimetype="text/plain"))
    Idempotency(app, backend)
    overrides = {"wsgi.file_wrapper": OfTheServer}
    first, second = (post(app, environ_overrides=overrides) for _ in range(2))
    assert (len(first.data), replayed(first)) == (20_000, False)
    assert (len(second.data), replayed(second)) == (20_000, True)
    assert runs == ["closed"]


def test_a_bodiless_stream_is_complete_at_once(app: Flask, backend: MemoryBackend) -> None:
    """R-01: a 204 has no body, whatever the response object holds."""

    def never() -> Iterator[str]:
        raise AssertionError("nobody reads it")
        yield

    view(app, lambda: Response(never(), status=204))
    Idempotency(app, backend)
    first, second = post(app), post(app)
    assert (first.status_code, first.data, replayed(first)) == (204, b"", False)
    assert (second.status_code, second.data, replayed(second)) == (204, b"", True)
