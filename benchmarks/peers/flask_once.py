"""flask-once's decorator, on a view of Flask, with a dict as in its documentation.

Its field is ``Idempotent-Key``; here it is told the name that everyone else uses.
"""

from __future__ import annotations

from typing import Any

from flask import Flask

from benchmarks.apps.flask import charge
from benchmarks.interface import PATH, App, BackendName, Colour, Kind
from benchmarks.peers.loading import installed, load

NAME = "flask-once"
COLOUR: Colour = "wsgi"
FRAMEWORK = "flask"
BACKENDS: tuple[BackendName, ...] = ("memory",)
ROWS: tuple[Kind, ...] = ("new-key", "replay")
LACKS = (
    "no claim at all: duplicates in flight all run",
    "header fields are not stored",
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


def make(backend: BackendName, url: str) -> App:
    """See ``interface.Peer``."""
    flask_once = load("flask_once")
    flask_once._IDEMPOTENT_HEADER = "Idempotency-Key"
    app = _Application("benchmarks")
    app.cache = {}
    flask_once.attach(app, app.cache)
    app.add_url_rule(PATH, view_func=flask_once.idempotent()(charge), methods=["POST"])
    return app
