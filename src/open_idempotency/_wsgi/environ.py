"""A WSGI environ (PEP 3333) read as the core's request, and the core's response as a WSGI status and header list.

Text in WSGI is bytes tunnelled through latin-1. Nothing here decides anything about idempotency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote
from wsgiref.util import FileWrapper

from open_idempotency._core.requests import Headers, Request, Response
from open_idempotency._engine.bodies import PIECE, RequestBody
from open_idempotency.policy import IdempotencyPolicy

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]
Names = tuple[tuple[str, bytes], ...]


class Route(NamedTuple):
    """How requests are covered: the policy, and the environ's names of the headers that carry keys under it."""

    policy: IdempotencyPolicy
    names: Names


#: in the environ of a request that is protected already, by an outer adapter of ours
MARK = "open_idempotency.attempt"

_OUTSIDE_HTTP = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
_TWICE = frozenset({"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"})


class BodyIncomplete(Exception):
    """The request's body cannot be had whole, so there is nothing to protect. ``status``: of the response to send."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def octets(text: str) -> bytes:
    """The bytes behind a native string. What no server produces is escaped, so that it is never a valid key."""
    return text.encode("latin-1", "backslashreplace")


def environ_names(names: Iterable[bytes]) -> Names:
    """The environ's name of each header, beside its lower-case name."""
    return tuple(("HTTP_" + name.decode("ascii").upper().replace("-", "_"), name) for name in sorted(names))


def find_key(environ: Environ, names: Names) -> list[tuple[bytes, bytes]]:
    """The headers that carry a key. Two lines of one header arrive joined by a comma, which no key can be."""
    return [(field, octets(environ[name])) for name, field in names if name in environ]


class EnvironRequest(Request):
    """A request whose headers are made of the environ when somebody asks for all of them; most ask for one."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Environ, native: object, path: bytes) -> None:
        self.method = environ["REQUEST_METHOD"].upper()
        self.path = path
        self.query = octets(environ.get("QUERY_STRING", ""))
        self.native = native
        self.body = None
        self.alone = environ.get("wsgi.multithread") is False
        self._environ = environ

    def __getattr__(self, name: str) -> Headers:
        # Called for what was never set.
        if name != "headers":
            raise AttributeError(name)
        self.headers = fields = _read_headers(self._environ)
        return fields

    def header(self, name: bytes) -> list[bytes]:
        """All values of a header, given its lower-case name: one at most, as a server has joined them."""
        key = _key(name)
        value = self._environ.get(key)
        return [] if value is None or (not value and key in _OUTSIDE_HTTP) else [octets(value)]


def read_request(environ: Environ, native: object, path: bytes | None = None) -> Request:
    """The request to be protected. ``path``: its own, where it is known; else quoted anew from what the environ has."""
    if path is None:
        path = quote(octets(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))).encode("ascii")
    return EnvironRequest(environ, native, path)


def _read_headers(environ: Environ) -> Headers:
    fields = [
        (field, octets(value))
        for name, value in environ.items()
        if name.startswith("HTTP_") and (field := _field(name)) is not None
    ]
    fields.extend((field, octets(environ[name])) for name, field in _OUTSIDE_HTTP.items() if environ.get(name))
    return fields


# Clients send the same few names all the time, and policies ask for fewer. The bounds are for one that makes names up.
@lru_cache(maxsize=256)
def _field(name: str) -> bytes | None:
    """The header that an environ's name stands for; None for one that stands there twice."""
    return None if name in _TWICE else octets(name[5:].replace("_", "-").lower())


@lru_cache(maxsize=256)
def _key(field: bytes) -> str:
    """The environ's name of a header; empty for one that an environ cannot have."""
    name = field.decode("latin-1").upper().replace("-", "_")
    if _field(f"HTTP_{name}") == field:
        return f"HTTP_{name}"
    return name if _OUTSIDE_HTTP.get(name) == field else ""


def read_body(environ: Environ, body: RequestBody) -> None:
    """Read the body whole, and never beyond its Content-Length, where a socket would block for ever.

    Raises ``BodyTooLarge``, for a declared length before anything is read, and ``BodyIncomplete``.
    """
    declared = environ.get("CONTENT_LENGTH") or None
    body.check_length(declared)
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            raise BodyIncomplete(400)
        _read_bytes(environ["wsgi.input"], int(declared), body)
    elif environ.get("wsgi.input_terminated"):
        while chunk := _read(environ["wsgi.input"], PIECE):
            body.add(chunk)
    elif "HTTP_TRANSFER_ENCODING" in environ:
        # There is a body, and the server does not say where it ends.
        raise BodyIncomplete(411)


def _read_bytes(source: Any, left: int, body: RequestBody) -> None:
    while left > 0:
        chunk = _read(source, min(PIECE, left))
        if not chunk:
            raise BodyIncomplete(400)  # the client left in the middle of it
        left -= len(chunk)
        body.add(chunk)


def _read(source: Any, size: int) -> bytes:
    try:
        chunk: bytes = source.read(size)
    except OSError as error:
        raise BodyIncomplete(400) from error
    return chunk


def give_body(environ: Environ, body: RequestBody) -> Any:
    """Put a body that was read back into the environ, as a file at its start that ends where the body does."""
    file = body.file()
    environ["wsgi.input"] = file
    environ["wsgi.input_terminated"] = True
    return file


def hide_file_wrapper(environ: Environ) -> None:
    """Offer the application a wrapper that iterates: a file that the server sends by itself is not captured.

    Replaced, not removed: some servers look into their environ again when the application has returned.
    """
    if "wsgi.file_wrapper" in environ:
        environ["wsgi.file_wrapper"] = FileWrapper


def status_line(status: int) -> str:
    """A status with its reason phrase."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def native_headers(response: Response) -> list[tuple[str, str]]:
    """A response's headers as WSGI wants them, in order, with duplicates."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
