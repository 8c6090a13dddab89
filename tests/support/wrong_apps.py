"""Applications that are protected wrongly on purpose; the comparison's scenarios have to find the faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.apps import flask
from benchmarks.interface import App

_WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _ByKeyAlone:
    """Looks a response up by its key only, claims nothing, and stores every response."""

    def __init__(self, app: _WSGI) -> None:
        self._app = app
        self._stored: dict[str, tuple[str, bytes]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        key = environ.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            return self._app(environ, start_response)
        if key not in self._stored:
            self._stored[key] = self._run(environ)
        status, body = self._stored[key]
        start_response(status, [("Content-Type", "application/json")])
        return [body]

    def _run(self, environ: dict[str, Any]) -> tuple[str, bytes]:
        statuses: list[str] = []
        parts = self._app(environ, lambda status, headers, exc_info=None: statuses.append(status))
        body = b"".join(parts)
        return statuses[-1], body


class _HeldForEver:
    """Claims each key once and never releases it."""

    def __init__(self, app: _WSGI) -> None:
        self._app = app
        self._claimed: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        key = environ.get("HTTP_IDEMPOTENCY_KEY", "")
        if key in self._claimed:
            start_response("409 Conflict", [("Content-Type", "application/json")])
            return [b"{}"]
        self._claimed.add(key)
        return self._app(environ, start_response)


def unprotected(backend: str, url: str) -> App:
    """Without any middleware."""
    return flask.bare()


def by_key_alone(backend: str, url: str) -> App:
    """One response for each key, whatever the request and the caller."""
    return flask.within(_ByKeyAlone)


def held_for_ever(backend: str, url: str) -> App:
    """409 for each key from its second request on."""
    return flask.within(_HeldForEver)


def does_not_start(backend: str, url: str) -> App:
    """The configuration is wrong."""
    raise RuntimeError("no such backend")
