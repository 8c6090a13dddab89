"""The Flask extension: request bodies and contexts, together with other code that reads and binds them."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from flask import (
    Flask,
    abort,
    request,
    request_started,
)

from open_idempotency import idem
from open_idempotency._engine.engine import running
from open_idempotency.backend import Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.flask import Idempotency
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.flask.flask_shop import HEADERS, only_record, post, replayed, view

# Request bodies


def test_forms_and_uploads_reach_the_view(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """R-09, O-05: the body is read for the fingerprint and can still be parsed, also from disk."""

    def upload() -> str:
        runs.append((request.form["name"], request.files["file"].read()))
        return "x"

    view(app, upload)
    Idempotency(app, backend, spool_bytes=100)

    def send(content: bytes) -> Any:
        return post(app, data={"name": "ann", "file": (io.BytesIO(content), "a.bin")})

    content = bytes(range(256)) * 1000
    assert send(content).status_code == 200
    assert replayed(send(content))
    assert send(content + b"!").status_code == 422
    assert runs == [("ann", content)]


def test_a_form_that_was_parsed_early_is_part_of_the_request(app: Flask, backend: MemoryBackend) -> None:
    """O-05: another body is another request, also if a ``before_request`` function has consumed the body."""
    view(app, lambda: request.form["a"])
    Idempotency(app, backend, spool_bytes=1)
    app.before_request(lambda: request.form.get("csrf") and None)
    assert post(app, data={"a": "1"}).text == "1"
    assert replayed(post(app, data={"a": "1"}))
    assert post(app, data={"a": "2"}).status_code == 422


def test_a_body_that_was_begun_early_goes_on_where_it_was(app: Flask, backend: MemoryBackend) -> None:
    """R-09: hashing the spooled file does not move its read position."""
    view(app, lambda: request.stream.read())
    Idempotency(app, backend, spool_bytes=1)

    @app.before_request
    def begin() -> None:
        assert request.stream.read(2) == b"ab"

    assert post(app, data=b"abcdef").text == "cdef"


def test_a_body_that_a_signal_has_read_is_part_of_the_request(app: Flask, backend: MemoryBackend) -> None:
    """O-05: ``request_started`` is sent before the extension runs."""
    view(app, lambda: request.get_data())
    Idempotency(app, backend)

    def read(sender: Flask, **extra: Any) -> None:
        request.get_data()

    with request_started.connected_to(read, app):
        assert [post(app, data=body).status_code for body in (b"a", b"b")] == [200, 422]


def test_a_form_that_a_signal_has_parsed_is_an_error(app: Flask, backend: MemoryBackend) -> None:
    """O-05: its bytes are gone, and a request that cannot be compared must not run."""
    view(app, lambda: "x")
    Idempotency(app, backend)

    def parse(sender: Flask, **extra: Any) -> None:
        assert request.form["a"] == "1"

    with request_started.connected_to(parse, app):
        assert post(app, data={"a": "1"}).status_code == 500
    assert list(backend.scan()) == []


def test_a_body_over_the_limit_is_refused(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """O-07: a 413 problem; without a key the request runs."""
    view(app, lambda: runs.append(1) or request.get_data())
    Idempotency(app, backend, max_request_bytes=3)
    refused = post(app, data=b"abcd")
    assert (refused.status_code, refused.content_type) == (413, "application/problem+json")
    assert runs == []
    assert post(app, data=b"abcd", headers={}).text == "abcd"


def test_a_chunked_body_over_the_limit_is_refused(app: Flask, backend: MemoryBackend) -> None:
    """O-07: also without a declared length."""
    view(app, lambda: request.get_data())
    Idempotency(app, backend, max_request_bytes=3)
    overrides = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    assert post(app, input_stream=io.BytesIO(b"abcd"), environ_overrides=overrides).status_code == 413
    assert list(backend.scan()) == []


def test_flasks_own_limit_stays_flasks_own_error(app: Flask, backend: MemoryBackend) -> None:
    """O-01: a body over MAX_CONTENT_LENGTH gets the application's own response, and claims nothing."""
    app.config["MAX_CONTENT_LENGTH"] = 3
    app.register_error_handler(413, lambda error: ("our own", 413))
    view(app, lambda: request.get_data())
    Idempotency(app, backend)
    declared = {"data": b"ab", "environ_overrides": {"CONTENT_LENGTH": "4"}}
    chunked = {"input_stream": io.BytesIO(b"abcd"), "environ_overrides": {"wsgi.input_terminated": True}}
    chunked["environ_overrides"]["CONTENT_LENGTH"] = ""
    assert [post(app, **options).text for options in (declared, chunked)] == ["our own", "our own"]
    assert list(backend.scan()) == []
    assert post(app, data=b"abc").text == "abc"


def test_an_upload_that_broke_off_is_not_admitted(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """Fault 11: nothing was claimed."""
    view(app, lambda: runs.append(1) or "x")
    Idempotency(app, backend)
    broken = post(app, data=b"ab", environ_overrides={"CONTENT_LENGTH": "5"})
    assert (broken.status_code, runs, list(backend.scan())) == (400, [], [])


# Contexts


def test_a_request_that_the_wsgi_middleware_protects_is_left_to_it(app: Flask, backend: MemoryBackend) -> None:
    """O-01: two layers on one backend do not wait for each other."""
    view(app, lambda: "x")
    Idempotency(app, backend)
    app.wsgi_app = IdempotencyMiddleware(app.wsgi_app, backend)
    assert [(r.status_code, replayed(r)) for r in (post(app), post(app))] == [(200, False), (200, True)]
    assert len(list(backend.scan())) == 1


def test_an_asynchronous_view_uses_the_awaited_verbs(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """S-08: with ``flask[async]``, whose event loop lives for one view."""

    async def charge() -> str:
        await idem.arun("charge", lambda: runs.append(1))
        if idem.attempt == 1:
            abort(500)
        return f"attempt {idem.attempt}"

    view(app, charge)
    Idempotency(app, backend)
    assert [post(app).status_code for _ in range(2)] == [500, 200]
    assert post(app).text == "attempt 2"
    assert runs == [1]


def test_a_repeat_while_the_view_runs_is_refused(app: Flask, backend: MemoryBackend) -> None:
    """O-03: 409 in another thread of the same server."""
    inside, leave = threading.Event(), threading.Event()

    def charge() -> str:
        inside.set()
        assert leave.wait(10)
        return "x"

    view(app, charge)
    Idempotency(app, backend)
    responses: list[Any] = []
    worker = threading.Thread(target=lambda: responses.append(post(app)))
    worker.start()
    try:
        assert inside.wait(10)
        busy = post(app)
    finally:
        leave.set()
        worker.join(10)
    assert (busy.status_code, "Retry-After" in busy.headers) == (409, True)
    assert responses[0].text == "x"


def test_a_view_that_calls_another_application_keeps_its_own_request(app: Flask, backend: MemoryBackend) -> None:
    """R-07: the context of the inner request ends with it."""
    inner = Flask("inner")
    view(inner, lambda: str(idem.key_for("x")))
    Idempotency(inner, MemoryBackend())

    def charge() -> str:
        before = idem.key_for("x")
        other = post(inner).text
        assert idem.key_for("x") == before
        return "same" if other == before else "other"

    view(app, charge)
    Idempotency(app, backend)
    assert (post(app).status_code, running.get()) == (200, None)


def test_a_test_client_that_preserves_its_context_settles_at_once(app: Flask, backend: MemoryBackend) -> None:
    """R-03: ``with client:`` delays the teardown, not the record."""
    view(app, lambda: "x")
    Idempotency(app, backend)
    with app.test_client() as client:
        client.post("/charges", headers=HEADERS)
        assert only_record(backend).status is Status.COMPLETED
        assert running.get() is None
        assert replayed(client.post("/charges", headers=HEADERS))


def test_a_length_that_is_a_number_is_no_error_of_ours(app: Flask, backend: MemoryBackend) -> None:
    """O-30: Flask itself reads no body of such a request; a view that reads none works as without the extension."""
    view(app, lambda: "done")
    Idempotency(app, backend)
    assert post(app, data=b"ab", environ_overrides={"CONTENT_LENGTH": 2}).text == "done"
    assert replayed(post(app, data=b"ab", environ_overrides={"CONTENT_LENGTH": "2"}))


@pytest.mark.parametrize("early", [True, False])
def test_a_teardown_function_that_raises_keeps_no_attempt_running(
    app: Flask, backend: MemoryBackend, early: bool
) -> None:
    """L-04: an attempt without a response ends, whichever function raises before or after the extension's own."""

    def teardown(error: BaseException | None) -> None:
        raise LookupError

    def stop() -> str:
        raise SystemExit

    view(app, stop)
    if early:
        app.teardown_request(teardown)
    Idempotency(app, backend)
    if not early:
        app.teardown_request(teardown)
    with pytest.raises(LookupError):
        post(app)
    assert only_record(backend).status is Status.FAILED
