"""The only module that uses private parts of Django's requests and responses: the body's stream, and closers.

``look`` looks for them when a middleware is made. If one is missing, the public way is taken, and one warning is
logged. Then a body is read whole before the view (Django refuses a body over ``DATA_UPLOAD_MAX_MEMORY_SIZE``), and the
``close`` of a response is wrapped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO
from typing import Any

import django
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse

STREAM, _BODY, _STARTED, _CLOSERS = "_stream", "_body", "_read_started", "_resource_closers"
_logger = logging.getLogger("open_idempotency")


class _Known:
    """Which private parts exist; all of them until ``look`` is called."""

    __slots__ = ("closers", "looked", "stream")

    def __init__(self) -> None:
        self.stream = self.closers = True
        self.looked = False


_known = _Known()


def look(*, again: bool = False) -> None:
    """Look for the private parts, and warn once of those that are missing. ``again``: for tests."""
    if _known.looked and not again:
        return
    _known.looked = True
    request = WSGIRequest({"REQUEST_METHOD": "POST", "wsgi.input": BytesIO(b"body"), "CONTENT_LENGTH": "4"})
    before = all(hasattr(request, name) for name in (STREAM, _STARTED))
    _known.stream = before and request.body == b"body" and getattr(request, _BODY, None) == b"body"
    _known.closers = isinstance(getattr(HttpResponse(), _CLOSERS, None), list)
    missing = [name for name, there in (("requests", _known.stream), ("responses", _known.closers)) if not there]
    if missing:
        _logger.warning(
            "Django %s is not known: its %s have other private parts, so bodies are read before the view and close() "
            "is wrapped where needed; a later release of open-idempotency may know it",
            django.get_version(),
            " and ".join(missing),
        )


def stream_of(request: Any) -> Any:
    """The stream from which the body is read; empty for a bare ``HttpRequest``, as tests make them."""
    if not _known.stream:
        return BytesIO(request.body)
    return getattr(request, STREAM) if hasattr(request, STREAM) else BytesIO()


def replace_stream(request: Any, stream: Any) -> None:
    """Let the body be read from another stream. Does nothing if the body was read whole."""
    if _known.stream:
        setattr(request, STREAM, stream)


def read_body(request: Any) -> bytes | None:
    """The body, if ``request.body`` was read; else None."""
    if not _known.stream:
        body: bytes = request.body
        return body
    return getattr(request, _BODY, None)


def is_partly_read(request: Any) -> bool:
    """Whether code has read from the stream, so that its beginning is gone."""
    return _known.stream and getattr(request, _STARTED, False) and not hasattr(request, _BODY)


class _Closer:
    """Calls a function at the close of a response.

    Middleware outside may pickle responses into a cache. The function belongs to one request, with connections and
    locks that cannot be pickled. So the copy in the cache has a closer that does nothing.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def __call__(self) -> None:
        self._function()

    def __reduce__(self) -> tuple[type[_Closer], tuple[Callable[[], object]]]:
        return _Closer, (_close_nothing,)


def _close_nothing() -> None:
    """What a pickled closer calls."""


def on_close(response: Any, function: Callable[[], object], *, first: bool = False) -> None:
    """Call a function when the response is closed. ``first``: before everything else that is closed."""
    if _known.closers:
        closers: list[Callable[[], object]] = getattr(response, _CLOSERS)
        closers.insert(0 if first else len(closers), _Closer(function))
        return
    close = response.close

    def close_both() -> None:
        try:
            function()
        finally:
            close()

    response.close = close_both


def close_along(response: Any, other: Any) -> None:
    """Close what another response closes together with this one.

    ``other.close`` is avoided if possible: it signals the end of the request to Django a second time.
    """
    if _known.closers:
        getattr(response, _CLOSERS).extend(getattr(other, _CLOSERS))
    else:
        on_close(response, other.close)
