"""Converts Django's requests and responses to the core's, and back: keys, headers and bodies."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, cast
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, HttpResponseRedirect
from django.http.request import UnreadablePostError
from django.http.response import HttpResponseBase

from open_idempotency._core import keys
from open_idempotency._core.models import Headers, Request
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._core.stored_response import CORS, UNRECORDED, is_stored_header
from open_idempotency._engine.bodies import PIECE, RequestBody
from open_idempotency._routes.coverage import EnvironNames
from open_idempotency._wsgi import BodyIncomplete, content_length, octets
from open_idempotency._wsgi import find_key as find_key_in_environ
from open_idempotency._wsgi import read_request as read_environ
from open_idempotency.django import private, rest
from open_idempotency.exceptions import BodyTooLarge
from open_idempotency.policy import IdempotencyPolicy


def find_key(request: HttpRequest, names: EnvironNames) -> list[tuple[bytes, bytes]]:
    """The headers that carry a key. Under ASGI they are read from the scope, since ``META`` joins equal names."""
    scope: Any = getattr(request, "scope", None)
    if scope is None:
        return find_key_in_environ(request.META, names)
    return keys.find_key(_scope_headers(scope), frozenset(field for _, field in names))


def read_request(request: HttpRequest) -> Request:
    """The request to be protected.

    The path is quoted again from the decoded path that Django routes by. So it is the same on every server, and workers
    under WSGI and ASGI agree about a retry.
    """
    scope: Any = getattr(request, "scope", None)
    path = quote(request.path).encode("ascii")
    if scope is None:
        read = read_environ(request.META, request, path)
    else:
        # Django's test client has text in the scope here, where servers have bytes; META has text from both.
        query = request.META["QUERY_STRING"].encode()
        read = Request(str(request.method), path, query, _scope_headers(scope), request)
    match = getattr(request, "resolver_match", None)
    read.route = None if match is None else match.route
    return read


def _scope_headers(scope: Any) -> Headers:
    return [(name.lower(), value) for name, value in scope["headers"]]


class Recording:
    """Replaces the stream of a request, and copies what is read through it.

    It is needed before the first view hook, since CSRF protection parses a form before the claim is made. ASGIHandler's
    file is not replaced, as it can be rewound.
    """

    __slots__ = ("_body", "_complete", "_drained", "_offset", "_request", "_rewinds", "_source", "_too_large")

    def __init__(self, request: Any, policy: IdempotencyPolicy) -> None:
        if private.is_partly_read(request):
            raise RuntimeError(
                "the request's body was read before IdempotencyMiddleware could record it; list "
                "IdempotencyMiddleware before the middleware that reads request.POST or the stream"
            )
        self._request = request
        self._source = private.stream_of(request)
        self._body = RequestBody(policy)
        self._too_large: BodyTooLarge | None = None
        self._complete = False
        self._rewinds = hasattr(self._source, "seekable") and self._source.seekable()
        # how many bytes other code has read; whether this object has read further in a stream that can be rewound
        self._offset = 0
        self._drained = False
        if not self._rewinds:
            private.replace_stream(request, self)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the stream."""
        return self._keep(self._source.read() if size is None or size < 0 else self._source.read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line from the stream."""
        return self._keep(self._source.readline() if size is None or size < 0 else self._source.readline(size))

    def seekable(self) -> bool:
        """False, so that Django's own limits count what is read."""
        return False

    def _keep(self, chunk: bytes) -> bytes:
        self._offset += len(chunk)
        self._add(chunk)
        return chunk

    def _add(self, chunk: bytes) -> None:
        for _ in self._add_in_turns(chunk):
            pass

    def _add_in_turns(self, chunk: bytes) -> Iterator[None]:
        if self._too_large is None:
            try:
                yield from self._body.add_in_turns(chunk)
            except BodyTooLarge as error:
                self._too_large = error  # raised when the library asks for the body: this reader is other code

    def whole(self, policy: IdempotencyPolicy) -> Generator[None, None, RequestBody]:
        """Read the rest, with a pause now and then. Returns the body, within the limit of the view's own policy.

        Raises ``BodyTooLarge``, before reading if the declared length is too large; ``UnreadablePostError`` if the
        client left in the middle, since half a request makes no claim; and ``BodyIncomplete`` if Django cannot read the
        body.
        """
        request = self._request
        declared = content_length(request.META) or ""
        RequestBody(policy).check_length(declared)
        if not declared and "HTTP_TRANSFER_ENCODING" in request.META and not hasattr(request, "scope"):
            # Under WSGI Django reads as many bytes as Content-Length says. A chunked body has none, so the view would
            # see an empty body, and two different bodies would be the same request.
            raise BodyIncomplete(411)
        read = private.read_body(request)
        if read is not None:
            # request.body was read already, here or before, and holds the whole body.
            yield from self._start_again([read], policy)
        else:
            yield from self._start_again(self._body.chunks(), policy)
            yield from self._drain()
        if self._too_large is not None:
            raise self._too_large
        if declared.isascii() and declared.isdigit() and self._body.size < int(declared):
            raise UnreadablePostError("the client left before its request was whole")
        self._complete = True
        return self._body

    def _start_again(self, chunks: Iterable[bytes], policy: IdempotencyPolicy) -> Iterator[None]:
        """Record these bytes again within the limit of the view's policy, since the view was unknown before."""
        if self._too_large is not None and private.read_body(self._request) is None:
            return  # what was read is lost
        earlier, self._body = self._body, RequestBody(policy)
        self._too_large = None
        for chunk in chunks:
            yield from self._add_in_turns(chunk)
        earlier.close()

    def _drain(self) -> Iterator[None]:
        if self._rewinds:
            self._offset = self._source.tell()
            self._drained = True
            self._source.seek(0)
        try:
            while self._too_large is None and (chunk := self._source.read(PIECE)):
                yield from self._add_in_turns(chunk)
        except OSError as error:
            raise UnreadablePostError(*error.args) from error

    @contextmanager
    def lend(self) -> Generator[Any, None, None]:
        """A stream for code that reads the body before the view. The view finds the body unread."""
        body = private.read_body(self._request)
        if body is not None:
            yield BytesIO(body)
            return
        offset = self._source.tell() if self._rewinds else self._offset
        try:
            yield _Lent(self._source if self._rewinds else self)
        finally:
            if self._rewinds:
                self._source.seek(offset)
            else:
                self._offset = offset

    def give_back(self) -> None:
        """Put a new stream into the request, at the offset up to which other code had read the body."""
        if self._complete and private.read_body(self._request) is None:
            file = self._body.file()
            file.seek(self._offset)
            private.replace_stream(self._request, file)
            self.close()  # ASGIHandler's copy of the body, which it leaves open when a stream breaks off

    @property
    def complete(self) -> bool:
        """Whether the whole body was received."""
        return self._complete

    def stop(self) -> None:
        """Stop recording: the request is not protected."""
        if self._drained and private.read_body(self._request) is None:
            self._source.seek(self._offset)
        if private.stream_of(self._request) is self:
            private.replace_stream(self._request, self._source)
        self._body.close()

    def close(self) -> None:
        """Close the stream, as ``request.body`` does after reading it; the recorded bytes stay."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def end(self) -> None:
        """Release the recorded bytes: the request has ended."""
        self._body.close()


class _Lent:
    """A lent stream: its reader can neither close nor rewind it."""

    def __init__(self, stream: Any) -> None:
        self.read: Callable[..., bytes] = stream.read
        self.readline: Callable[..., bytes] = stream.readline

    def seekable(self) -> bool:
        """False, so that Django's own limits count what is read."""
        return False

    def close(self) -> None:
        """Nothing: the lender closes the stream."""


_OF_ANOTHER_BODY = frozenset({b"content-length", b"transfer-encoding", b"trailer"})


def make_response(core: CoreResponse, request: HttpRequest) -> HttpResponse:
    """A Django response with the status, headers and body of a core response, and no headers of its own."""
    headers: dict[str, str] = {}
    spelt: dict[str, str] = {}
    cookies: list[str] = []
    for raw_name, raw_value in core.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.lower() == "set-cookie":  # the one header that no list joins (RFC 9110, section 5.3)
            cookies.append(value)
            continue
        name = spelt.setdefault(name.lower(), name)
        # Django's responses have each name once. RFC 9110, section 5.3, allows values to be joined in a list.
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    response = make_replay(core.body or b"", core.status, headers, read_note(core.note), request)
    if "content-type" not in spelt:
        del response.headers["Content-Type"]
    for cookie in cookies:
        response.cookies.load(cookie)
    return response


def stand_in(
    core: CoreResponse, current: HttpResponseBase, policy: IdempotencyPolicy, request: HttpRequest
) -> HttpResponse:
    """The core's response instead of the current one.

    Only headers that are never stored stay from the current response (R-02): its cookies, CORS headers and date. The
    middleware that ran now knows which origins are allowed; the record may not (R-11).
    """
    response = make_response(core, request)
    for name, value in current.items():
        field = octets(name).lower()
        stored = is_stored_header(field, policy.keep_headers, policy.drop_headers)
        if (name not in response.headers or field.startswith(CORS)) and field not in _OF_ANOTHER_BODY and not stored:
            response.headers[name] = value
    stored_cookies, response.cookies = response.cookies, current.cookies
    response.cookies.update(stored_cookies)
    private.close_along(response, current)
    return response


def is_untouched(
    response: HttpResponseBase, made: HttpResponse, headers: list[tuple[str, str]], core: CoreResponse
) -> bool:
    """Whether a response has not changed since ``make_response`` made it from ``core``. ``headers``: those it had then.

    False for a response of REST framework, whose data may have been changed in place.
    """
    return (
        response is made
        and not rest.is_response(made)
        and made.status_code == core.status
        and list(made.items()) == headers
        and made.content == (core.body or b"")
    )


def response_headers(response: HttpResponseBase) -> Headers:
    """The headers that the response will send, with its cookies that are set now."""
    headers = [(octets(name), octets(value)) for name, value in response.items()]
    return [*headers, *((b"Set-Cookie", octets(cookie.OutputString())) for cookie in response.cookies.values())]


def note_of(response: HttpResponseBase, policy: IdempotencyPolicy) -> bytes:
    """The note of the attributes that a replay of this response has in Django; stored with the response."""
    return take_note(response, redacted=policy.redact is not None)


def send_back(response: HttpResponseBase, echo: tuple[bytes, bytes]) -> None:
    """Add the header with the client's key to a response that has none (H-21)."""
    name, value = echo
    response.headers.setdefault(name.decode("ascii"), value.decode("latin-1"))


def mark_unrecorded(response: HttpResponseBase) -> None:
    """Mark a response that could not be recorded in time (L-08)."""
    name, value = UNRECORDED
    response.headers[name.decode("ascii")] = value.decode("ascii")


# Replays as Django responses, with attributes of the first response (O-29).
# A record holds a status, headers and a body. Outer middleware and test clients see more of a first response: ``data``
# of REST framework, ``url`` of a redirect, attributes that the view has set. So a note of these is stored with the
# response, and no client sees it. A replay has the same attributes again. A record cannot hold others, such as the
# context of a template: they are missing, and the log names the first code that asks for one.

#: attributes of a rendered response of REST framework, which a replay has again
_RENDERED = ("data", "accepted_renderer", "accepted_media_type", "renderer_context")
#: attributes of a replay alone
_OF_REPLAYS = {"_first", "_lost", "_replay"}
_PERMANENT = 301
# where the data of a response of REST framework is: in the body as JSON, or lost
_IN_BODY, _LOST = "body", "lost"
_LARGEST_NOTE = 8 * 1024
_LONGEST_TEXT, _MOST_NAMES = 200, 20

_logger = logging.getLogger("open_idempotency")
# pairs of a function and the attribute that it asked for; a project has few of them
_warned: set[tuple[str, str]] = set()


@lru_cache(maxsize=1)
def _plain() -> frozenset[str]:
    """The attributes that every response has."""
    return frozenset({*vars(HttpResponse()), "status_code", "content", "streaming"})


def take_note(response: HttpResponseBase, *, redacted: bool) -> bytes:
    """The note of a response; empty for a plain response or a stream.

    ``redacted``: the policy redacts stored responses, so the note has nothing that the body may have.
    """
    held = vars(response)
    if held.keys() <= _plain() or response.streaming:
        return b""
    extra = {name: value for name, value in held.items() if name[:1] != "_" and name not in _plain()}
    said: dict[str, Any] = {"type": f"{type(response).__module__}.{type(response).__qualname__}"}
    is_rest = rest.is_response(response)
    if is_rest:
        data, *_ = [extra.pop(name, None) for name in _RENDERED]
        said["data"] = _LOST if redacted else [data]
        if rest.is_read_back(response):
            said["data"] = _IN_BODY
    elif not extra:
        return b""
    said["kept"] = {name: value for name, value in extra.items() if _is_kept(value, redacted)}
    said["lost"] = sorted(extra.keys() - said["kept"].keys())
    return _encode(said, rest.encoder() if is_rest else None)


def _is_kept(value: object, redacted: bool) -> bool:
    if value is None or type(value) is bool:
        return True
    if redacted:
        return False
    return type(value) is int or (type(value) is str and len(value) <= _LONGEST_TEXT)


def _encode(said: dict[str, Any], encoder: Any) -> bytes:
    """The note as JSON; without the values if they are too long or have no JSON form."""
    try:
        text = json.dumps(said, cls=encoder, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not text or len(text) > _LARGEST_NOTE:
        data = {"data": _IN_BODY if said["data"] == _IN_BODY else _LOST} if "data" in said else {}
        lost = sorted({*said["lost"], *said["kept"]})[:_MOST_NAMES]
        text = json.dumps({"type": said["type"], **data, "kept": {}, "lost": lost})
    return text.encode("ascii")


class _Stored(HttpResponse):
    """A response that the library has made: a replay or a problem.

    It has a Content-Length from the beginning. A view's response has none yet, so middleware that changes a body does
    not correct it; this class does. A replay logs a warning if code asks for an attribute that a record cannot hold.
    """

    _first = "response"
    _lost: frozenset[str] = frozenset()

    @property
    def content(self) -> bytes:
        """The body. Setting it corrects the Content-Length."""
        return super().content

    @content.setter
    def content(self, value: Any) -> None:
        inherited: Any = super(_Stored, type(self))
        inherited.content.fset(self, value)
        if "Content-Length" in self.headers:
            self.headers["Content-Length"] = str(len(self.content))

    def __getattr__(self, name: str) -> Any:
        # Called only for missing attributes.
        if name in self._lost:
            _warn(name, self._first, inspect.currentframe())
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class _Redirect(_Stored, HttpResponseRedirect):
    """The replay of a redirect, with its ``url``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        HttpResponse.__init__(self, *args, **kwargs)


class _PermanentRedirect(_Stored, HttpResponsePermanentRedirect):
    """The replay of a permanent redirect, with its ``url``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        HttpResponse.__init__(self, *args, **kwargs)


def _warn(name: str, first: str, here: Any) -> None:
    frame = here.f_back
    caller = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    if (caller, name) in _warned:
        return
    _warned.add((caller, name))
    _logger.warning(
        "%s asks for response.%s of a replay, which has none: the first response was a %s, and a record holds "
        "status, headers and body. In MIDDLEWARE, list this middleware behind IdempotencyMiddleware: its work is then "
        "stored",
        caller,
        name,
        first,
    )


def read_note(note: bytes) -> dict[str, Any] | None:
    """The content of a note; None for an empty one."""
    return cast("dict[str, Any]", json.loads(note)) if note else None


def make_replay(
    body: bytes, status: int, headers: Mapping[str, str], note: dict[str, Any] | None, request: HttpRequest
) -> HttpResponse:
    """A Django response with this body, status and headers, and the attributes of the note."""
    lost: frozenset[str] = frozenset() if note is None else frozenset(note["lost"])
    if note is not None and "data" in note:
        data = _data(note, body)
        base: Any = rest.response_class()
        if data is not None and base is not None:
            made: Any = _rest_class(base)(status=status, headers=dict(headers))
            made.content = body
            del made.data
            vars(made).update(note["kept"], _first=note["type"], _lost=lost, _replay=(request, data[0]))
            return cast("HttpResponse", made)
        lost = lost.union(_RENDERED)
    cls: type[HttpResponse] = _Stored
    if 300 <= status < 400 and any(name.lower() == "location" for name in headers):
        cls = _PermanentRedirect if status == _PERMANENT else _Redirect
    response = cls(body, status=status, headers=dict(headers))
    if note is not None:
        vars(response).update(note["kept"], _first=note["type"], _lost=lost)
    return response


def _data(note: dict[str, Any], body: bytes) -> list[Any] | None:
    """A list with the data of a REST framework response; None if the record does not have it."""
    if isinstance(note["data"], list):
        return note["data"]
    if note["data"] != _IN_BODY:
        return None
    try:
        return [json.loads(body) if body else None]
    except ValueError:
        return None  # redact= has changed the body


@lru_cache(maxsize=1)
def _rest_class(framework: Any) -> type[Any]:
    class ReplayedResponse(_Stored, framework):  # type: ignore[misc]  # REST framework has no types
        """A replay as a REST framework response. Its data and renderer are made on first access."""

        def __init__(self, **kwargs: Any) -> None:
            framework.__init__(self, **kwargs)

        def __getattr__(self, name: str) -> Any:
            held = self.__dict__
            if name in _RENDERED and "_replay" in held:
                request, data = held.pop("_replay")
                media_type = self.headers.get("Content-Type", "")
                held.update(zip(_RENDERED, (data, *rest.renderer_for(request, media_type)), strict=True))
                return held[name]
            if name in self._lost:
                _warn(name, self._first, inspect.currentframe())
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def __reduce__(self) -> tuple[Any, ...]:
            # Middleware outside may pickle responses into a cache. The copy is one of REST framework's own class.
            state = {"data": self.data, **self.__getstate__()}
            return framework, (), {name: value for name, value in state.items() if name not in _OF_REPLAYS}

    return ReplayedResponse
