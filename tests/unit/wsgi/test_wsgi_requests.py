"""The WSGI middleware: how body, key, path and caller are read from the environ."""

from __future__ import annotations

import io
from typing import Any

import pytest

from open_idempotency._wsgi import read_request
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.wsgi.wsgi_server import (
    KEY,
    PLAIN,
    counting,
    environ,
    hello,
    serve,
)

# Request bodies


class Socket:
    """Input that would block: a read beyond the declared length fails instead."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)
        self._left = len(body)

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size <= self._left, "would block"
        self._left -= size
        return self._body.read(size)


def echo(made: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", PLAIN)
    return [made["wsgi.input"].read()]


def test_a_body_is_never_read_beyond_its_length(backend: MemoryBackend) -> None:
    """R-09: such a read blocks on a socket; the application may read its own input to the end."""
    made = environ(b"body")
    made["wsgi.input"] = Socket(b"body")
    assert serve(IdempotencyMiddleware(echo, backend), made).body == b"body"


def test_a_length_that_is_a_number_counts_as_its_text(backend: MemoryBackend) -> None:
    """O-30: test clients pass numbers, where servers pass text."""
    middleware = IdempotencyMiddleware(echo, backend, fingerprint_headers=["Content-Length"])
    sent = [serve(middleware, environ(b"body", CONTENT_LENGTH=length)) for length in (4, "4")]
    assert [each.body for each in sent] == [b"body", b"body"]
    assert ("idempotent-replayed", "true") in sent[1].headers
    assert serve(
        IdempotencyMiddleware(echo, backend, max_request_bytes=3), environ(b"body", CONTENT_LENGTH=4)
    ).status.startswith("413 ")


def test_a_chunked_body_that_the_server_ends_is_read_whole(backend: MemoryBackend) -> None:
    """O-05: the whole body is part of the fingerprint."""

    def chunked(body: bytes) -> dict[str, Any]:
        made = environ(body, HTTP_TRANSFER_ENCODING="chunked")
        made["wsgi.input_terminated"] = True
        del made["CONTENT_LENGTH"]
        return made

    middleware = IdempotencyMiddleware(echo, backend)
    assert serve(middleware, chunked(b"one")).body == b"one"
    assert serve(middleware, chunked(b"two")).status.startswith("422 ")


def test_a_chunked_body_without_an_end_is_refused(backend: MemoryBackend) -> None:
    """O-07: it cannot be read, so it would run unprotected."""
    made = environ(b"body", HTTP_TRANSFER_ENCODING="chunked")
    del made["CONTENT_LENGTH"]
    assert serve(IdempotencyMiddleware(echo, backend), made).status == "411 Length Required"
    assert list(backend.scan()) == []


def test_a_declared_length_over_the_limit_is_refused_unread(backend: MemoryBackend) -> None:
    """O-07: 413, and no byte is read."""
    made = environ(b"x" * 101)
    sent = serve(IdempotencyMiddleware(echo, backend, max_request_bytes=100), made)
    assert (sent.status[:3], made["wsgi.input"].tell()) == ("413", 0)


def test_a_chunked_body_over_the_limit_is_refused(backend: MemoryBackend) -> None:
    """O-07: no length was declared."""
    made = environ(b"x" * 101)
    made["wsgi.input_terminated"] = True
    del made["CONTENT_LENGTH"]
    assert serve(IdempotencyMiddleware(echo, backend, max_request_bytes=100), made).status[:3] == "413"
    assert list(backend.scan()) == []


@pytest.mark.parametrize("length", ["5", "x", "-1"])
def test_a_body_that_is_not_whole_is_not_admitted(backend: MemoryBackend, length: str) -> None:
    """Fault 11: a client that left during its upload has claimed nothing."""
    app, runs = counting(echo)
    sent = serve(IdempotencyMiddleware(app, backend), environ(b"body", CONTENT_LENGTH=length))
    assert (sent.status, runs, list(backend.scan())) == ("400 Bad Request", [], [])


def test_a_socket_that_breaks_during_the_upload_admits_nothing(backend: MemoryBackend) -> None:
    """Fault 11: servers raise an OSError."""

    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError

    made = environ(b"body")
    made["wsgi.input"] = Broken()
    assert serve(IdempotencyMiddleware(echo, backend), made).status == "400 Bad Request"


def test_a_large_body_goes_through_a_file_that_is_closed_at_the_end(backend: MemoryBackend) -> None:
    """R-09: the application, a generator too, reads it from the file."""
    files: list[Any] = []

    def app(made: dict[str, Any], start_response: Any) -> Any:
        files.append(made["wsgi.input"])
        start_response("200 OK", PLAIN)
        yield made["wsgi.input"].read(3)
        yield made["wsgi.input"].read()

    body = bytes(range(256)) * 10
    assert serve(IdempotencyMiddleware(app, backend, spool_bytes=100), environ(body)).body == body
    assert files[0].closed


# Headers, paths, callers


def test_two_key_lines_joined_by_the_server_are_refused(backend: MemoryBackend) -> None:
    """H-07: the comma shows that there were two."""
    for joined in (f"{KEY},{KEY}", f'"{KEY}", "{KEY}"'):
        assert serve(IdempotencyMiddleware(hello, backend), environ(key=joined)).status == "400 Bad Request"
    assert list(backend.scan()) == []


def test_a_required_key_that_is_missing_is_refused(backend: MemoryBackend) -> None:
    """O-06: 400, and the handler is not run."""
    app, runs = counting(hello)
    sent = serve(IdempotencyMiddleware(app, backend, required=True), environ(key=None))
    assert (sent.status, runs) == ("400 Bad Request", [])
    assert sent.header("content-type") == ["application/problem+json"]


def test_an_alias_is_found_under_its_environ_name(backend: MemoryBackend) -> None:
    """H-07: another value beside the standard header is refused."""
    made = environ(HTTP_X_REQUEST_KEY="another-key-of-this-client")
    middleware = IdempotencyMiddleware(hello, backend, aliases=["X-Request-Key"])
    assert serve(middleware, made).status == "400 Bad Request"


def test_a_path_of_any_bytes_is_quoted_with_its_mount_point(backend: MemoryBackend) -> None:
    """O-06: problems name the path as the client sent it."""
    made = environ(key="short", SCRIPT_NAME="/shop", PATH_INFO="/caf\xc3\xa9 1")
    assert b'"instance": "/shop/caf%C3%A9%201"' in serve(IdempotencyMiddleware(hello, backend), made).body


def test_the_servers_user_is_the_caller(backend: MemoryBackend) -> None:
    """The server or a middleware verified REMOTE_USER; two users never share a response."""
    app, runs = counting(hello)
    middleware = IdempotencyMiddleware(app, backend)
    for user, expected in (("ann", 1), ("bob", 2), ("ann", 2)):
        serve(middleware, environ(key="short", REMOTE_USER=user))
        assert len(runs) == expected


def test_the_authorization_field_is_the_caller_where_no_user_is_known(backend: MemoryBackend) -> None:
    """It is read from HTTP_AUTHORIZATION."""
    app, runs = counting(hello)
    middleware = IdempotencyMiddleware(app, backend)
    for credentials in ("Bearer a", "Bearer b", "Bearer a"):
        serve(middleware, environ(key="short", HTTP_AUTHORIZATION=credentials))
    assert len(runs) == 2


def test_an_inner_middleware_leaves_a_protected_request_alone(backend: MemoryBackend) -> None:
    """O-01: two layers on one backend do not wait for each other."""
    middleware = IdempotencyMiddleware(IdempotencyMiddleware(hello, backend), backend)
    assert serve(middleware).status == "201 Created"
    assert len(list(backend.scan())) == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (b"content-type", [b"text/plain"]),
        (b"content-length", []),  # an empty CONTENT_LENGTH is no header
        (b"authorization", [b"Bearer a"]),
        (b"x-two-words", [b"caf\xe9"]),
        (b"x_two_words", []),  # no environ has a header of this name
        (b"x-absent", []),
    ],
)
def test_a_field_looked_up_by_itself_is_the_one_among_all(name: bytes, values: list[bytes]) -> None:
    """The fingerprint, the scope and a user's own callable see the same headers, however they read them."""
    fields = {
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "",
        "HTTP_CONTENT_TYPE": "text/again",
        "HTTP_AUTHORIZATION": "Bearer a",
        "HTTP_X_TWO_WORDS": "caf\xe9",
    }
    request = read_request(environ(**fields), None)
    assert request.header(name) == values
    assert [value for field, value in request.headers if field == name] == values
    assert request.header(name) == values
