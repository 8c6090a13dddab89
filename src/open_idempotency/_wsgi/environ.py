"""A WSGI environ (PEP 3333) as the core's request, and the core's response as a WSGI status and header list.

Text in WSGI is bytes decoded as latin-1. Nothing here decides anything about idempotency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote
from wsgiref.util import FileWrapper

from open_idempotency._core.requests import Headers, Request, Response
from open_idempotency._engine.bodies import PIECE, RequestBody
from open_idempotency._routes.coverage import EnvironNames

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


#: in the environ of a request that an outer adapter of this library protects
MARK = "open_idempotency.attempt"

_LENGTH = "CONTENT_LENGTH"
_OUTSIDE_HTTP = {"CONTENT_TYPE": b"content-type", _LENGTH: b"content-length"}
_TWICE = frozenset({"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"})


class BodyIncomplete(Exception):
    """The request's body cannot be read whole, so nothing is protected. ``status``: of the response to send."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def content_length(environ: Environ) -> str | None:
    """The declared length of the body; None without one. Test clients pass numbers, where servers pass text."""
    value = environ.get(_LENGTH)
    return None if value is None or value == "" else str(value)


def octets(text: str) -> bytes:
    """The bytes of a native string. Characters that no server produces are escaped, so they are never a valid key."""
    return text.encode("latin-1", "backslashreplace")


def find_key(environ: Environ, names: EnvironNames) -> list[tuple[bytes, bytes]]:
    """The headers that carry a key. Two lines of one header arrive joined by a comma, which no key can be."""
    return [(header, octets(environ[name])) for name, header in names if name in environ]


class EnvironRequest(Request):
    """A request whose headers are read from the environ when all of them are needed; most callers need one."""

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
        self.headers = headers = _read_headers(self._environ)
        return headers

    def header(self, name: bytes) -> list[bytes]:
        """All values of a header, by its lower-case name: one at most, as servers join several."""
        key = _key(name)
        value = content_length(self._environ) if key == _LENGTH else self._environ.get(key)
        return [] if value is None or (not value and key in _OUTSIDE_HTTP) else [octets(value)]


def read_request(environ: Environ, native: object, path: bytes | None = None) -> Request:
    """The request to be protected. ``path``: its raw path, if known; else it is quoted anew from the environ."""
    if path is None:
        path = quote(octets(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))).encode("ascii")
    return EnvironRequest(environ, native, path)


def _read_headers(environ: Environ) -> Headers:
    headers = [
        (header, octets(value))
        for name, value in environ.items()
        if name.startswith("HTTP_") and (header := _header_of(name)) is not None
    ]
    outside = (environ.get("CONTENT_TYPE"), content_length(environ))
    headers.extend(
        (header, octets(value)) for header, value in zip(_OUTSIDE_HTTP.values(), outside, strict=True) if value
    )
    return headers


# Clients send the same few names, and policies need fewer. The bounds are for a client that makes names up.
@lru_cache(maxsize=256)
def _header_of(name: str) -> bytes | None:
    """The header that a name of the environ stands for; None for a name that occurs twice there."""
    return None if name in _TWICE else octets(name[5:].replace("_", "-").lower())


@lru_cache(maxsize=256)
def _key(header: bytes) -> str:
    """The name of a header in the environ; empty for a header that an environ cannot have."""
    name = header.decode("latin-1").upper().replace("-", "_")
    if _header_of(f"HTTP_{name}") == header:
        return f"HTTP_{name}"
    return name if _OUTSIDE_HTTP.get(name) == header else ""


def read_body(environ: Environ, body: RequestBody) -> None:
    """Read the whole body, and never beyond its Content-Length, since a socket would block for ever.

    Raises ``BodyTooLarge``, for a declared length before anything is read, and ``BodyIncomplete``.
    """
    declared = content_length(environ)
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
    """Put a body that was read back into the environ, as a file at its start that ends where the body ends."""
    file = body.file()
    environ["wsgi.input"] = file
    environ["wsgi.input_terminated"] = True
    return file


def hide_file_wrapper(environ: Environ) -> None:
    """Replace the server's file wrapper by one that iterates, since a file that the server sends is not captured.

    It is replaced, not removed: some servers read their environ again after the application has returned.
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
    """A response's headers in WSGI's form, in order, with duplicates."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
