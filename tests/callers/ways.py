"""Checks for every way to identify users: no caller sees another's response, or a 422 because of another (O-23).

The examples of docs/callers call these checks in hidden blocks, each for its own way, with real clients of their
frameworks. An example responds to each run with another body, so a body identifies its run.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import httpx

#: the headers that a client sends, or a function that makes them for each try from the body, such as a signature
Fields = Mapping[str, str] | Callable[[bytes], Mapping[str, str]]

REFUSED = (401, 403)
#: the statuses of a redirect to the login page
TO_LOGIN = (302,)


class Got(NamedTuple):
    """The part of a response that identifies its run."""

    status: int
    body: bytes
    replayed: bool


class Send(Protocol):
    """Posts JSON with these headers."""

    def __call__(self, fields: Mapping[str, str], body: bytes) -> Got:
        """The response."""
        ...


def over_asgi(app: Any, path: str) -> Send:
    """A client of an ASGI application; its errors become responses, as on a server."""

    def send(fields: Mapping[str, str], body: bytes) -> Got:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
                return await client.post(path, content=body, headers={**_JSON, **fields})

        response = asyncio.run(post())
        return Got(response.status_code, response.content, "Idempotent-Replayed" in response.headers)

    return send


def over_wsgi(app: Any, path: str) -> Send:
    """A client of a WSGI application, also of a Flask application. ``REMOTE_USER`` is the user that its server
    verified.
    """
    from werkzeug.test import Client

    def send(fields: Mapping[str, str], body: bytes) -> Got:
        own = dict(fields)
        environ = {"REMOTE_USER": own.pop("REMOTE_USER")} if "REMOTE_USER" in own else {}
        response = Client(app, use_cookies=False).post(
            path, "http://testserver", data=body, headers={**_JSON, **own}, environ_overrides=environ
        )
        return Got(response.status_code, response.data, "Idempotent-Replayed" in response.headers)

    return send


def in_django(path: str, *, awaited: bool = False) -> Send:
    """A client of the Django project; ``awaited``: through its ASGI chain."""
    from django.core.asgi import get_asgi_application
    from django.core.wsgi import get_wsgi_application

    return over_asgi(get_asgi_application(), path) if awaited else over_wsgi(get_wsgi_application(), path)


_JSON = {"Content-Type": "application/json"}


class Caller:
    """A caller who posts with chosen keys, which other callers may choose as well."""

    def __init__(self, send: Send, fields: Fields) -> None:
        self._send = send
        self._fields = fields

    def post(self, key: str, amount: int = 5) -> Got:
        """Send one try."""
        body = json.dumps({"amount": amount}).encode()
        fields = self._fields(body) if callable(self._fields) else self._fields
        return self._send({**fields, "Idempotency-Key": key}, body)


def keeps_apart(
    send: Send,
    *,
    ann: Fields,
    bob: Fields,
    nobody: Fields | None,
    forged: Fields | None,
    refreshed: Fields | None,
    revoke: Callable[[], object] | None,
    refused: tuple[int, ...] = REFUSED,
    refresh_replays: bool = True,
) -> None:
    """Check the promises for this way. None: no caller of that kind exists; the text of the example says why.

    ``ann`` and ``bob`` are two users; ``nobody`` has no credentials, ``forged`` has wrong ones. ``refreshed`` are new
    credentials of Ann: a retry with them is replayed, or runs again without ``refresh_replays``. ``revoke`` removes all
    credentials of Ann, or her permissions. ``refused``: how the application refuses.
    """
    one, other = Caller(send, ann), Caller(send, bob)
    key = str(uuid.uuid4())
    first = _runs(one.post(key))
    _replays(one.post(key), first)
    assert one.post(key, 6).status == 422, "her own key with another request"

    second = _runs(other.post(key))
    assert second.body != first.body, "he has got her response"
    _replays(other.post(key), second)
    _replays(one.post(key), first)

    hers = str(uuid.uuid4())
    _runs(one.post(hers, 7))
    _runs(other.post(hers, 8))  # not the 422 that her request would cause

    for outsider in (Caller(send, each) for each in (nobody, forged) if each is not None):
        for amount in (5, 6):
            _is_refused(outsider.post(key, amount), refused)
    if refreshed is not None:
        again = Caller(send, refreshed).post(key)
        if refresh_replays:
            _replays(again, first)
        else:
            assert _runs(again).body not in (first.body, second.body)
    if revoke is not None:
        revoke()
        for caller in (Caller(send, each) for each in (ann, refreshed) if each is not None):
            for amount in (5, 6):  # no replay, and no 422 that would reveal one
                _is_refused(caller.post(key, amount), refused)
        _replays(other.post(key), second)


def shares_nothing(send: Send, *, anyone: Fields) -> None:
    """Check the promises for anonymous callers: an unguessable key is private, and another key is refused."""
    caller = Caller(send, anyone)
    key = str(uuid.uuid4())
    first = _runs(caller.post(key))
    _replays(caller.post(key), first)
    assert _runs(caller.post(str(uuid.uuid4()))).body != first.body
    guessed = caller.post("order-1")
    assert (guessed.status, guessed.replayed) == (400, False), guessed


def _runs(got: Got) -> Got:
    assert 200 <= got.status < 300, got
    assert not got.replayed, got
    return got


def _replays(got: Got, first: Got) -> None:
    assert (got.status, got.body, got.replayed) == (first.status, first.body, True), (got, first)


def _is_refused(got: Got, refused: tuple[int, ...]) -> None:
    assert got.status in refused, got
    assert not got.replayed, got
