"""The WSGI middleware: what passes through, what is replayed, and the rules of PEP 3333."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import greenlet
import pytest

from open_idempotency import idem
from open_idempotency._engine.engine import running
from open_idempotency.backend import Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import AlreadyCompleted
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.wsgi.wsgi_server import (
    KEY,
    PLAIN,
    Closing,
    begin,
    counting,
    environ,
    hello,
    only_record,
    serve,
    streaming,
)

# Requests that pass through


def test_a_request_of_another_method_is_not_touched(backend: MemoryBackend) -> None:
    """GET is never covered, whatever its headers."""
    app, runs = counting(hello)
    middleware = IdempotencyMiddleware(app, backend)
    for _ in range(2):
        assert serve(middleware, environ(REQUEST_METHOD="GET")).status == "201 Created"
    assert (len(runs), list(backend.scan())) == (2, [])


def test_without_a_key_the_body_is_not_read_and_the_result_is_the_applications_own(backend: MemoryBackend) -> None:
    """Without a key the request passes through an optional route: no buffering, and no backend call."""
    own = [b"x"]
    seen: list[Any] = []

    def app(made: dict[str, Any], start_response: Any) -> Any:
        seen.append((made["wsgi.input"], made["wsgi.file_wrapper"]))
        start_response("200 OK", PLAIN)
        return own

    made = environ(b"body", key=None)
    made["wsgi.file_wrapper"] = FileWrapper
    source = made["wsgi.input"]
    sent = begin(IdempotencyMiddleware(app, backend), made)
    assert seen == [(source, FileWrapper)]
    assert source.tell() == 0
    assert sent.result is own
    assert list(backend.scan()) == []


def test_without_a_key_stages_run_plainly_in_a_generator_too(backend: MemoryBackend) -> None:
    """S-03, R-07: the context is set while the server iterates, and reset in its thread between two chunks."""

    def body() -> Iterator[bytes]:
        yield str(idem.run("a", lambda: 1)).encode()
        yield str(idem.run("b", lambda: 2)).encode()

    sent = begin(IdempotencyMiddleware(streaming(body), backend), environ(key=None))
    assert next(sent.chunks) == b"1"
    assert running.get() is None
    assert next(sent.chunks) == b"2"
    sent.close()
    assert list(backend.scan()) == []


def test_without_a_key_a_file_stays_a_file_for_the_server(backend: MemoryBackend) -> None:
    """R-07: the server can still send its own file wrapper efficiently."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return made["wsgi.file_wrapper"](io.BytesIO(b"file"))

    made = environ(key=None)
    made["wsgi.file_wrapper"] = FileWrapper
    sent = begin(IdempotencyMiddleware(app, backend), made)
    assert isinstance(sent.result, FileWrapper)
    sent.close()


# Replay


def test_a_repeat_is_replayed_and_both_sides_keep_to_pep_3333(backend: MemoryBackend) -> None:
    """O-02, R-01: status, headers with duplicates and body; ``wsgiref.validate`` checks server and application."""
    app, runs = counting(hello)
    middleware = validator(IdempotencyMiddleware(validator(app), backend))
    first = serve(middleware, environ(b"{}"))
    second = serve(middleware, environ(b"{}"))
    assert (first.status, first.body, first.header("link")) == ("201 Created", b"hello", ["</a>", "</b>"])
    assert (second.status, second.body, second.header("link")) == ("201 Created", b"hello", ["</a>", "</b>"])
    assert (first.header("idempotent-replayed"), second.header("idempotent-replayed")) == ([], ["true"])
    assert second.header("content-length") == ["5"]
    assert len(runs) == 1


def test_a_list_reaches_the_server_as_a_list(backend: MemoryBackend) -> None:
    """O-01: a server computes the length of a body in one piece, so the body stays in one piece."""
    sent = begin(IdempotencyMiddleware(hello, backend), environ())
    assert sent.result == [b"he", b"llo"]


@pytest.mark.parametrize(("status", "line"), [(204, "204 No Content"), (299, "299 Unknown")])
def test_a_replay_has_a_reason_phrase(backend: MemoryBackend, status: int, line: str) -> None:
    """R-01: WSGI requires a status line, also for a status without a standard phrase."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        start_response(f"{status} Whatever", [])
        return []

    middleware = IdempotencyMiddleware(app, backend)
    serve(middleware)
    sent = serve(middleware)
    assert (sent.status, sent.body) == (line, b"")
    assert sent.header("content-length") == ([] if status == 204 else ["0"])


# start_response, write, exc_info, close, files


def test_a_start_is_replaced_by_the_one_of_an_error_handler(backend: MemoryBackend) -> None:
    """R-07: ``exc_info`` replaces the first start, as nothing has left yet."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        try:
            raise ValueError("late")
        except ValueError:
            start_response("422 Unprocessable", [*PLAIN, ("X-Error", "late")], sys.exc_info())
        return [b"sorry"]

    middleware = IdempotencyMiddleware(app, backend)
    for _ in range(2):
        sent = serve(middleware)
        assert (sent.status[:3], sent.header("x-error"), sent.body) == ("422", ["late"], b"sorry")


def test_an_error_after_the_body_began_is_raised_again(backend: MemoryBackend) -> None:
    """R-07, L-04: ``exc_info`` cannot take a body back; the attempt has failed."""

    def app(made: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"part"
        try:
            raise ValueError("late")
        except ValueError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        yield b"never"

    sent = begin(IdempotencyMiddleware(app, backend), environ())
    with pytest.raises(ValueError, match="late"):
        next(sent.chunks)
    sent.close()
    assert only_record(backend).status is Status.FAILED


def test_a_second_start_without_exc_info_is_an_error(backend: MemoryBackend) -> None:
    """R-07: PEP 3333 calls it fatal."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)
        return [b""]

    with pytest.raises(RuntimeError, match="exc_info"):
        serve(IdempotencyMiddleware(app, backend))


def test_an_application_that_never_starts_fails(backend: MemoryBackend) -> None:
    """L-04: there is nothing to store, so it is an error, and the retry runs again."""
    with pytest.raises(RuntimeError, match="start_response"):
        serve(IdempotencyMiddleware(lambda made, start_response: [b"x"], backend))
    assert only_record(backend).status is Status.FAILED


def test_what_is_written_is_sent_and_replayed(backend: MemoryBackend) -> None:
    """R-07, R-03: ``write()`` sends at once, except for the end, which waits for the record."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        write(b"one ")
        write(b"two ")
        return [b"three"]

    middleware = IdempotencyMiddleware(app, backend)
    first = serve(middleware)
    assert (first.written, first.body) == ([b"one "], b"one two three")
    assert serve(middleware).body == b"one two three"


@pytest.mark.parametrize("key", [KEY, None])
def test_close_is_called_once(backend: MemoryBackend, key: str | None) -> None:
    """R-07: also if a server closes twice."""
    body = Closing(iter([b"a", b"b"]))
    sent = begin(IdempotencyMiddleware(streaming(lambda: body), backend), environ(key=key))
    assert b"".join(sent.chunks) == b"ab"
    sent.close()
    sent.close()
    assert body.closed == 1


def test_close_sees_that_the_request_has_ended(backend: MemoryBackend) -> None:
    """S-03, R-07: ``close()`` runs in the request's context, after its response was recorded."""
    seen: list[type[BaseException]] = []

    class Late(Closing):
        def close(self) -> None:
            try:
                idem.save_stage("late")
            except AlreadyCompleted as error:
                seen.append(type(error))

    serve(IdempotencyMiddleware(streaming(lambda: Late(iter([b"a"]))), backend))
    assert seen == [AlreadyCompleted]
    assert running.get() is None


def test_a_file_is_captured_and_the_server_does_not_know_it_as_one(backend: MemoryBackend) -> None:
    """R-07: a file that the server sends by itself would not be stored; gunicorn checks its environ for that."""

    class OfTheServer(FileWrapper):
        """The server's class of files, which it sends in its own way."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        assert made["wsgi.file_wrapper"] is not OfTheServer
        start_response("200 OK", PLAIN)
        return made["wsgi.file_wrapper"](io.BytesIO(b"x" * 20_000))

    middleware = IdempotencyMiddleware(app, backend)
    for expected in ([], ["true"]):
        made = environ(**{"wsgi.file_wrapper": OfTheServer})
        sent = begin(middleware, made)
        assert not isinstance(sent.result, (OfTheServer, made["wsgi.file_wrapper"]))
        assert b"".join(sent.chunks) == b"x" * 20_000
        sent.close()
        assert sent.header("idempotent-replayed") == expected


def test_a_file_wrapped_by_the_servers_own_class_is_captured_too(backend: MemoryBackend) -> None:
    """R-07: an application may have kept the class; its instances are iterated like any other body."""
    middleware = IdempotencyMiddleware(streaming(lambda: FileWrapper(io.BytesIO(b"x" * 20_000))), backend)
    for _ in range(2):
        assert serve(middleware).body == b"x" * 20_000


# Threads and greenlets


def test_requests_in_two_threads_have_their_own_context(backend: MemoryBackend) -> None:
    """R-07: also while the server's threads iterate generators in turn."""
    meeting = threading.Barrier(2, timeout=10)

    def body() -> Iterator[bytes]:
        for name in ("a", "b"):
            meeting.wait()
            idem.save_stage(name)
            yield f"{len(idem.stages)}{idem.key_for('x')}".encode()

    middleware = IdempotencyMiddleware(streaming(body), backend)
    results: dict[str, bytes] = {}

    def request(key: str) -> None:
        results[key] = serve(middleware, environ(key=KEY + key)).body
        results[key + "after"] = repr(running.get()).encode()

    threads = [threading.Thread(target=request, args=(key,)) for key in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(results.values())) == 3
    assert results["1after"] == results["2after"] == b"None"


def test_requests_in_two_greenlets_of_one_thread_have_their_own_context(backend: MemoryBackend) -> None:
    """R-07: gevent switches in the middle of a handler."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        before = idem.key_for("x")
        greenlet.getcurrent().parent.switch()
        assert idem.key_for("x") == before
        start_response("200 OK", PLAIN)
        return [before.encode()]

    middleware = IdempotencyMiddleware(app, backend)
    lets = [greenlet.greenlet(lambda key=key: serve(middleware, environ(key=KEY + key)).body) for key in "12"]
    for let in lets:
        let.switch()
    bodies = {let.switch() for let in lets}
    assert len(bodies) == 2
    assert running.get() is None


@pytest.mark.parametrize("first", ["POST", "post", "Post"])
@pytest.mark.parametrize("rules", [None, {"/charges": {"required": True}}])
def test_a_method_in_other_letters_is_the_same_method(backend: MemoryBackend, first: str, rules: Any) -> None:
    """O-17: some servers pass the method on as it was sent, and frameworks read it in upper case."""
    app, runs = counting(hello)
    middleware = IdempotencyMiddleware(app, backend, rules=rules)
    for method in (first, "POST", "post"):
        assert serve(middleware, environ(REQUEST_METHOD=method)).status == "201 Created"
    assert len(runs) == 1
