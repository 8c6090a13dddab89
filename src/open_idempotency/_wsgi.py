"""Shared parts of the sync adapters: a WSGI environ read as a request, and one protected run of a handler.

Text in WSGI (PEP 3333) is bytes decoded as latin-1. A request is read from the environ, and a response becomes a status
and a header list.

``Protection`` is one protected request: its attempt, its settlement and its response body (R-03, R-04). WSGI does not
mark the last chunk; only a Content-Length shows it. Without one, each chunk is held until the next one arrives, so that
the last chunk is sent when the response is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from http import HTTPStatus
from io import BufferedReader, RawIOBase
from typing import Any, TypeVar
from urllib.parse import quote
from wsgiref.util import FileWrapper

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Steps
from open_idempotency._core.keys import with_echo
from open_idempotency._core.models import Headers, Request, Response
from open_idempotency._core.settlement import REPLACED, Fate, abort, begin, finish
from open_idempotency._core.stored_response import Capture
from open_idempotency._engine.bodies import PIECE, RequestBody
from open_idempotency._engine.engine import Engine, Running, running
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._engine.shutdown import ClientLeft, Grace
from open_idempotency._routes.coverage import EnvironNames
from open_idempotency._runtime import clocks
from open_idempotency.exceptions import LeaseLost

# The environ

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


#: in the environ of a request that an outer adapter of this library protects
MARK = "open_idempotency.attempt"
#: in the environ of a request that has passed a middleware with ``enabled=False``: then an unread mark is no error
OFF = "open_idempotency.off"

_LENGTH = "CONTENT_LENGTH"
_OUTSIDE_HTTP = {"CONTENT_TYPE": b"content-type", _LENGTH: b"content-length"}
_TWICE = frozenset({"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"})


class BodyIncomplete(Exception):
    """The request's body cannot be read whole, so nothing is protected. ``status``: that of the response to send."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def content_length(environ: Environ) -> str | None:
    """The declared length of the body, or None. Test clients pass numbers; servers pass text."""
    value = environ.get(_LENGTH)
    return None if value is None or value == "" else str(value)


def octets(text: str) -> bytes:
    """The bytes of a native string. Characters that no server produces are escaped, so they are never a valid key."""
    return text.encode("latin-1", "backslashreplace")


def find_key(environ: Environ, names: EnvironNames) -> list[tuple[bytes, bytes]]:
    """The headers that carry a key. Servers join repeated headers with a comma, which no key contains."""
    return [(header, octets(environ[name])) for name, header in names if name in environ]


class EnvironRequest(Request):
    """A request whose headers are read from the environ only if all of them are needed; most code needs one."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Environ, native: object, path: bytes) -> None:
        self.method = environ["REQUEST_METHOD"].upper()
        self.path = path
        self.query = octets(environ.get("QUERY_STRING", ""))
        self.native = native
        self.body = None
        self.route = None
        self.alone = environ.get("wsgi.multithread") is False
        self._environ = environ

    def __getattr__(self, name: str) -> Headers:
        # Called only for an attribute that was never set.
        if name != "headers":
            raise AttributeError(name)
        self.headers = headers = _read_headers(self._environ)
        return headers

    def header(self, name: bytes) -> list[bytes]:
        """The values of a header, by its lower-case name: at most one, since servers join several."""
        key = _key(name)
        value = content_length(self._environ) if key == _LENGTH else self._environ.get(key)
        return [] if value is None or (not value and key in _OUTSIDE_HTTP) else [octets(value)]


def read_request(environ: Environ, native: object, path: bytes | None = None) -> Request:
    """The request to be protected. ``path``: its raw path, if known; else the path of the environ is quoted again."""
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


# Clients send the same few names. The bound is for a client that invents names.
@lru_cache(maxsize=256)
def _header_of(name: str) -> bytes | None:
    """The header for a name of the environ; None for a name of which the environ has two forms."""
    return None if name in _TWICE else octets(name[5:].replace("_", "-").lower())


@lru_cache(maxsize=256)
def _key(header: bytes) -> str:
    """The name of a header in the environ; empty for a header that an environ cannot have."""
    name = header.decode("latin-1").upper().replace("-", "_")
    if _header_of(f"HTTP_{name}") == header:
        return f"HTTP_{name}"
    return name if _OUTSIDE_HTTP.get(name) == header else ""


def read_body(environ: Environ, body: RequestBody) -> None:
    """Read the whole body, but never beyond its Content-Length, since a socket would block for ever.

    Raises ``BodyTooLarge``, before reading if the declared length is too large, and ``BodyIncomplete``.
    """
    declared = content_length(environ)
    body.check_length(declared)
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            raise BodyIncomplete(400)
        _read_bytes(environ["wsgi.input"], int(declared), body)
        body.whole = True
    elif environ.get("wsgi.input_terminated"):
        while chunk := _read(environ["wsgi.input"], PIECE):
            body.add(chunk)
        body.whole = True
    elif "HTTP_TRANSFER_ENCODING" in environ:
        # There is a body, and the server does not mark its end.
        raise BodyIncomplete(411)


def _read_bytes(source: Any, left: int, body: RequestBody) -> None:
    while left > 0:
        chunk = _read(source, min(PIECE, left))
        if not chunk:
            raise BodyIncomplete(400)  # the client left in the middle of the body
        left -= len(chunk)
        body.add(chunk)


def _read(source: Any, size: int) -> bytes:
    try:
        chunk: bytes = source.read(size)
    except OSError as error:
        raise BodyIncomplete(400) from error
    return chunk


def give_body(environ: Environ, body: RequestBody) -> Any:
    """Put the body that was read back into the environ, as a file at its start."""
    file = body.file()
    environ["wsgi.input"] = file
    environ["wsgi.input_terminated"] = True
    return file


def give_rest(environ: Environ, body: RequestBody) -> None:
    """Put the part of a body that was read back into the environ, before the part that the server still has."""
    declared = content_length(environ)
    if not body.size:
        return  # nothing was read
    if declared is not None or body.whole:
        give_body(environ, body)
    else:
        environ["wsgi.input"] = BufferedReader(_Joined(body.file(), environ["wsgi.input"]))


class _Joined(RawIOBase):
    """Several files, read one after the other, once."""

    def __init__(self, *files: Any) -> None:
        self._files = list(files)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read from the first file that is not at its end."""
        while self._files:
            chunk: bytes = self._files[0].read(len(buffer))
            if chunk:
                buffer[: len(chunk)] = chunk
                return len(chunk)
            del self._files[0]
        return 0


def hide_file_wrapper(environ: Environ) -> None:
    """Replace the server's file wrapper with one that iterates, since a file that the server sends is not captured.

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


def with_echo_header(headers: list[tuple[str, str]], attempt: Attempt) -> list[tuple[str, str]]:
    """The headers of a response, with the client's key if the policy echoes it and they lack that header (H-21)."""
    if attempt.echo is None:
        return headers
    name, value = (part.decode("latin-1") for part in attempt.echo)
    return headers if any(each.lower() == name for each, _ in headers) else [*headers, (name, value)]


def native_headers(response: Response) -> list[tuple[str, str]]:
    """A response's headers in WSGI's form, in order, with duplicates."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]


# One protected request

T = TypeVar("T")
Close = Callable[[], object]


def bound(here: Running, function: Callable[..., T], *args: object) -> T:
    """Call a function with the running request bound. The thread is restored afterwards, since servers reuse it."""
    mark = running.set(here)
    try:
        return function(*args)
    finally:
        running.reset(mark)


class BoundIterable:
    """The iterable of an application. It runs and is closed in the context of its request, whatever thread does so.

    ``close``: the function that closes it, called once; by default the iterable's own.
    """

    __slots__ = ("_close", "_here", "_iterator", "_source")

    def __init__(self, here: Running, source: Iterable[bytes], close: Close | None = None) -> None:
        self._here = here
        self._source = source
        self._close: Close | None = close or getattr(source, "close", None)
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = bound(self._here, iter, self._source)
        chunk: bytes = bound(self._here, next, self._iterator)
        return chunk

    def close(self) -> None:
        """Close the iterable, the first time."""
        close, self._close = self._close, None
        if close is not None:
            bound(self._here, close)


class Protection:
    """An attempt until it is settled. Until then its lease is renewed."""

    __slots__ = ("_engine", "attempt", "capture", "grace", "here", "settled")

    def __init__(self, engine: Engine, attempt: Attempt) -> None:
        self._engine = engine
        self.attempt = attempt
        self.here: Running = (attempt, engine)
        self.capture = Capture(attempt.policy.max_response_bytes)
        self.grace = Grace(attempt.policy.stream_grace, self.capture)
        self.settled = False

    @property
    def unsure(self) -> bool:
        """Whether the lease may have ended unnoticed: then ``begin`` renews it before the handler starts."""
        return clocks.elapsed() > self.attempt.sure_until

    def begin(self) -> Response | None:
        """Begin, directly before the handler starts. Returns the response to send instead of it (L-10), or None."""
        while self.unsure:
            instead = self._engine.sync.run(begin(self.attempt))
            if instead is not None:
                self._end()
                return instead if self.attempt.echo is None else with_echo(instead, self.attempt.echo)
        return None

    def _end(self) -> None:
        self.settled = True
        self._engine.heartbeat.forget(self.attempt)

    def finish(self) -> Fate | Response:
        """Settle the attempt with the captured response. Returns its fate, or a response to send instead."""
        return self._settle(finish(self.attempt, self.capture.response()))

    def abort(self, error: BaseException) -> Fate | Response:
        """Settle the attempt with the error that the handler raised (L-04)."""
        return self._settle(abort(self.attempt, error))

    def _settle(self, steps: Steps[Fate | Response]) -> Fate | Response:
        self.settled = True
        try:
            verdict = self._engine.sync.run(steps)
        finally:
            self._engine.heartbeat.forget(self.attempt)
        return verdict if self.attempt.echo is None else self._echoing(verdict)

    def _echoing(self, verdict: Fate | Response) -> Fate | Response:
        """Add the client's key to a response that is sent instead."""
        echo = self.attempt.echo
        return verdict if echo is None or isinstance(verdict, Fate) else with_echo(verdict, echo)


class LiveBody:
    """Iterates over the bytes that may be sent. ``close`` must be called; it calls ``cleanup`` last.

    After the end, ``verdict`` is the fate of the sent response, or a response to send instead if nothing was sent.
    """

    __slots__ = (
        "_cleanup", "_closed", "_held", "_ready", "_source", "begun", "ended", "protection", "taken", "verdict",
    )  # fmt: skip

    def __init__(self, protection: Protection, cleanup: Close) -> None:
        self.protection = protection
        self.verdict: Fate | Response | None = None
        #: whether some of the body was made; whether some of it was sent; whether all of it was sent
        self.taken = False
        self.begun = False
        self.ended = False
        self._cleanup = cleanup
        self._source: BoundIterable | None = None
        self._held = b""
        self._ready = b""
        self._closed = False

    def attach(self, source: BoundIterable) -> None:
        """Take over the handler's iterable."""
        self._source = source

    def prepare(self) -> None:
        """Iterate until the first bytes may be sent or the iterable has ended: until then the status can be changed."""
        self._ready = self._pull()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        ready, self._ready = self._ready, b""
        if not ready and not self.ended:
            ready = self._pull()
        if not ready:
            raise StopIteration
        return ready

    def _pull(self) -> bytes:
        """The next bytes that may be sent; none at the end, or if another response replaces this one."""
        assert self._source is not None
        try:
            for chunk in self._source:
                ready = self.take(chunk)
                if ready or self.ended:
                    return ready
            return self._end()
        except BaseException as error:
            self.fail(error)
            return b""

    def take(self, chunk: bytes) -> bytes:
        """Copy a chunk. Returns the bytes that may be sent because of it."""
        if self.protection.settled:
            return b"" if self.ended else chunk
        self._copy(chunk)
        if not chunk:
            return b""
        self.taken = True
        capture = self.protection.capture
        if capture.whole:
            self._finish()
            ready = b"" if self.ended else chunk
        elif capture.open_ended and not _is_event_stream(capture.headers):
            ready, self._held = self._held, chunk
        else:
            ready = chunk
        self.begun = self.begun or bool(ready)
        return ready

    def take_whole(self, chunks: list[bytes] | tuple[bytes, ...]) -> None:
        """Take a body that is complete, and settle the attempt before any of it is sent."""
        for chunk in chunks:
            self._copy(chunk)
        self._finish()
        self.ended = True

    def fail(self, error: BaseException) -> None:
        """Settle the attempt of a handler that raised (L-04). Re-raises unless another is sent (L-03, S-04)."""
        self.ended = True
        if not self.protection.settled:
            closed = isinstance(error, ClientLeft)
            verdict = self.protection.abort(self.protection.grace.error() if closed else error)
            if isinstance(verdict, Response) and isinstance(error, REPLACED) and not self.begun:
                self.verdict = verdict
                return
        report_late_error(self.protection.attempt, error)
        raise error

    def close(self) -> None:
        """End the body. A stream whose client left may first run to its end, within its grace period (L-05a)."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self.protection.settled and self._source is not None:
                self._drain(self._source)
        finally:
            try:
                if self._source is not None:
                    self._close_source(self._source)
            finally:
                self._cleanup()

    def _close_source(self, source: BoundIterable) -> None:
        try:
            source.close()
        except BaseException as error:
            report_late_error(self.protection.attempt, error)
            raise

    def _drain(self, source: BoundIterable) -> None:
        """Continue the handler without a client, in this thread, since its resources may belong to the thread.

        So the grace period is checked between two chunks. A response that ends late is whole, and is stored.
        """
        protection = self.protection
        protection.grace.begin()
        try:
            while not protection.grace.over:
                chunk = next(source, None)
                if chunk is None:
                    self._check_started()
                    protection.finish()
                    return
                self._copy(chunk)
            protection.abort(protection.grace.error())
        except BaseException as error:
            self.fail(error)

    def _copy(self, chunk: bytes) -> None:
        if not isinstance(chunk, bytes):
            raise TypeError(f"a WSGI body is bytes, not {type(chunk).__name__}")
        if chunk:
            self._check_started()
            self.protection.capture.add(chunk)

    def _check_started(self) -> None:
        if not self.protection.capture.status:
            raise RuntimeError("the application did not call start_response before its body")

    def _end(self) -> bytes:
        if not self.protection.settled:
            self._finish()
        self.ended = True
        held, self._held = self._held, b""
        return b"" if isinstance(self.verdict, Response) else held

    def _finish(self) -> None:
        self._check_started()
        self.verdict = self.protection.finish()
        if isinstance(self.verdict, Response):
            self.ended = True
            if self.begun:
                raise LeaseLost(
                    "another attempt owns the record, as logged before, so the end of this response is not sent"
                )


def _is_event_stream(headers: Headers) -> bool:
    return any(n.lower() == b"content-type" and v.lower().startswith(b"text/event-stream") for n, v in headers)
