"""The servers, the adapters that each of them serves, and what they cannot do: one table, with the reasons.

A test asks for capabilities with ``@wire_needs("...")``. Pairs of server and adapter that lack one are deselected at
collection, and the reasons are printed with their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ASGI_APP = "tests.wire.serving:asgi"
WSGI_APP = "tests.wire.serving:wsgi"
_GUNICORN = ("gunicorn", WSGI_APP, "--bind", "127.0.0.1:{port}", "--log-level", "warning", "--graceful-timeout", "2")
_GUNICORN_ASGI = ("gunicorn", ASGI_APP, *_GUNICORN[2:])
_UVICORN = ("uvicorn", ASGI_APP, "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")


class Kind(NamedTuple):
    """A server. ``command``: the words after ``python -m``; ``{port}`` stands for its port."""

    interface: str
    command: tuple[str, ...]
    #: whether every possible test runs there, or only those that name it
    in_matrix: bool = True


KINDS: Mapping[str, Kind] = {
    "uvicorn-httptools": Kind("asgi", (*_UVICORN, "--http", "httptools")),
    "uvicorn-h11": Kind("asgi", (*_UVICORN, "--http", "h11")),
    "hypercorn": Kind("asgi", ("hypercorn", ASGI_APP, "--bind", "127.0.0.1:{port}", "--log-level", "warning")),
    "granian": Kind(
        "asgi",
        ("granian", ASGI_APP, "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}", "--no-ws"),
    ),
    "gunicorn-sync": Kind("wsgi", (*_GUNICORN, "--worker-class", "sync", "--workers", "2")),
    "gunicorn-gthread": Kind("wsgi", (*_GUNICORN, "--worker-class", "gthread", "--threads", "8")),
    "gunicorn-gevent": Kind("wsgi", (*_GUNICORN, "--worker-class", "gevent")),
    "waitress": Kind("wsgi", ("waitress", "--listen", "127.0.0.1:{port}", "--threads", "8", WSGI_APP)),
    "gunicorn-asgi": Kind("asgi", (*_GUNICORN_ASGI, "--worker-class", "asgi"), in_matrix=False),
    "gunicorn-uvicorn": Kind(
        "asgi", (*_GUNICORN_ASGI, "--worker-class", "tests.wire.uvicorn_worker.Worker"), in_matrix=False
    ),
}

ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "asgi": ("asgi", "fastapi", "django-asgi"),
    "wsgi": ("wsgi", "flask", "django-wsgi"),
}

_MEASURES = Path("/proc/self/clear_refs")
_H2_ONLY = "HTTP/1.1 trailers are not implemented"
_BYTES_ONLY = "it does not offer http.response.pathsend"
_UNREADABLE = "under WSGI Django reads as far as Content-Length says, and this server does not add one"

#: what a server, an adapter, or a pair of them lacks, and why
CANNOT: Mapping[str, Mapping[str, str]] = {
    "uvicorn-httptools": {"trailers": _H2_ONLY, "pathsend": _BYTES_ONLY},
    "uvicorn-h11": {"trailers": _H2_ONLY, "pathsend": _BYTES_ONLY},
    "hypercorn": {"pathsend": _BYTES_ONLY},
    "granian": {"trailers": "trailers are not implemented"},
    "gunicorn-sync": {
        "keep-alive": "it closes the connection after each request",
        "bodiless keep-alive": "it closes the connection after each request",
    },
    "gunicorn-gthread": {},
    "gunicorn-gevent": {},
    "waitress": {
        "field order": "it sorts the header fields",
        "bodiless keep-alive": "it closes the connection after a response without a Content-Length",
        "unread refusal": "it reads the whole body before it calls the application",
        "unread malformed key": "it reads the whole body before it calls the application",
    },
    "asgi": {"cancelled": "no framework here cancels the handler"},
    "fastapi": {
        "cancelled": "Starlette cancels no endpoint",
        "native": "what is tested needs messages that no framework sends",
    },
    "django-asgi": {
        "unread refusal": "Django reads the whole body before it calls its middleware",
        "unread malformed key": "Django reads the whole body before it calls its middleware",
        "native": "what is tested needs messages that no framework sends",
        "handler goes on": "Django cancels an async view whose client left",
        "duplicate fields": "Django's responses have each name once",
        "background": "Django has no background tasks",
    },
    "wsgi": {"cancelled": "nothing cancels a thread", "background": "WSGI has no background tasks"},
    "flask": {
        "unread malformed key": "the body is read before authentication, which comes before the key is looked at",
        "native": "what is tested needs calls that no framework makes",
        "cancelled": "nothing cancels a thread",
        "background": "Flask has no background tasks",
    },
    "django-wsgi": {
        "native": "what is tested needs calls that no framework makes",
        "cancelled": "nothing cancels a thread",
        "duplicate fields": "Django's responses have each name once",
        "background": "Django has no background tasks",
    },
    **{f"gunicorn-{worker}:django-wsgi": {"chunked upload": _UNREADABLE} for worker in ("sync", "gthread", "gevent")},
}

SERVED = [f"{kind}:{adapter}" for kind in KINDS if KINDS[kind].in_matrix for adapter in ADAPTERS[KINDS[kind].interface]]


def lacking(served: str, needed: set[str]) -> list[str]:
    """Why a pair of server and adapter cannot run a test; empty if it can."""
    unmeasured = ["memory is measured by /proc"] if "memory" in needed and not _MEASURES.exists() else []
    return (
        unmeasured
        + [
            f"{name} has no {capability!r}: {CANNOT[name][capability]}"
            for name in (*served.split(":"), served)
            for capability in sorted(needed)
            if capability in CANNOT.get(name, {})
        ]
        + [
            f"{served} is no {interface.upper()} server"
            for interface in ("asgi", "wsgi")
            if interface in needed and KINDS[served.partition(":")[0]].interface != interface
        ]
    )


def wire_needs(*capabilities: str) -> pytest.MarkDecorator:
    """Run only where server and adapter have this capability; ``"asgi"`` and ``"wsgi"`` name the interface."""
    return pytest.mark.wire_needs(*capabilities)
