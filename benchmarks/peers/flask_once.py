"""flask-once's decorator, on a view of Flask, with a dict as in its documentation.

Its header is ``Idempotent-Key``; here it gets the name that everyone else uses.
"""

from __future__ import annotations

from typing import Any

from flask import Flask

from benchmarks.apps.flask import add_endpoint, charge
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load

NAME = "flask-once"
STYLE: Style = "wsgi"
FRAMEWORK = "flask"
BACKENDS: tuple[BackendName, ...] = ("memory",)
ROWS: tuple[Kind, ...] = ("new-key", "replay")
LACKS = (
    "no claim at all: duplicates in flight all run",
    "headers are not stored",
    "nothing expires, nothing is bounded",
    "a request without a key is refused",
    "no caller in the key",
)


class _Application(Flask):
    """With the attribute that flask-once reads."""

    cache: dict[str, Any]


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("flask_once")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    flask_once = load("flask_once")
    flask_once._IDEMPOTENT_HEADER = "Idempotency-Key"
    app = _Application("benchmarks")
    app.cache = {}
    flask_once.attach(app, app.cache)
    add_endpoint(app, flask_once.idempotent(**documented)(charge))
    return app
