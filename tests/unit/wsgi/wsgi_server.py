"""A WSGI server of one call at a time, and the applications and environs that the tests use with it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import setup_testing_defaults

from open_idempotency.backend import Record
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.wsgi import App

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
PLAIN = [("Content-Type", "text/plain")]


def environ(body: bytes = b"", key: str | None = KEY, **changes: Any) -> dict[str, Any]:
    """The environ of a POST, as a server makes it."""
    made: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": "/charges"}
    made |= {"SCRIPT_NAME": "", "QUERY_STRING": ""}
    made["CONTENT_LENGTH"] = str(len(body))
    setup_testing_defaults(made)
    made["wsgi.input"] = io.BytesIO(body)
    if key is not None:
        made["HTTP_IDEMPOTENCY_KEY"] = key
    made.update(changes)
    return made


@dataclass
class Sent:
    """A response as the server got it, and the iterable that is still to be closed."""

    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    written: list[bytes] = field(default_factory=list)
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    body: bytes = b""
    result: Any = None

    @property
    def started(self) -> bool:
        return bool(self.status)

    def header(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name]

    def close(self) -> None:
        if hasattr(self.result, "close"):
            self.result.close()


def begin(app: App, made: dict[str, Any]) -> Sent:
    """Call an application, and leave its iterable to the test."""
    sent = Sent()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        sent.status, sent.headers = status, headers
        return sent.written.append

    sent.result = app(made, start_response)
    sent.chunks = iter(sent.result)
    return sent


def serve(app: App, made: dict[str, Any] | None = None) -> Sent:
    """Call an application to its end, as a server does."""
    sent = begin(app, environ() if made is None else made)
    try:
        rest = b"".join(sent.chunks)
    finally:
        sent.close()
    sent.body = b"".join(sent.written) + rest
    return sent


class Closing:
    """An iterable of an application that counts how often it is closed."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self.closed += 1


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def only_record(backend: MemoryBackend) -> Record:
    (record,) = backend.scan()
    return record


def counting(app: App) -> tuple[App, list[int]]:
    """An application, and a list with one entry for each of its runs."""
    runs: list[int] = []

    def counted(made: dict[str, Any], start_response: Any) -> Any:
        runs.append(1)
        return app(made, start_response)

    return counted, runs


def streaming(make: Callable[[], Iterator[bytes]], headers: list[tuple[str, str]] = PLAIN) -> App:
    """An application whose body is a generator."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", headers)
        return make()

    return app


def hello(made: dict[str, Any], start_response: Any) -> Any:
    start_response("201 Created", [*PLAIN, ("Link", "</a>"), ("Link", "</b>")])
    return [b"he", b"llo"]
