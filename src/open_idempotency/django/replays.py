"""Replays as Django responses, with attributes of the first response (O-29).

A record holds a status, headers and a body. Outer middleware and test clients see more of a first response: ``data`` of
REST framework, ``url`` of a redirect, attributes that the view has set. So a note of these is stored with the response,
and no client sees it. A replay has the same attributes again. A record cannot hold others, such as the context of a
template: they are missing, and the log names the first code that asks for one.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect, HttpResponseRedirect
from django.http.response import HttpResponseBase

from open_idempotency.django import rest

#: attributes of a rendered response of REST framework, which a replay has again
_RENDERED = ("data", "accepted_renderer", "accepted_media_type", "renderer_context")
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


def make(
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

    return ReplayedResponse
