"""idempot's decorator, on a view of Flask."""

from __future__ import annotations

from flask import Flask

from benchmarks.apps.flask import charge
from benchmarks.interface import PATH, App, BackendName, Colour
from benchmarks.peers.idempot_fastapi import LACKS, NAME, ROWS, available, configure
from benchmarks.peers.loading import load

__all__ = ["LACKS", "NAME", "ROWS", "available"]

COLOUR: Colour = "wsgi"
FRAMEWORK = "flask"
#: each request runs in an event loop of its own, which its Redis client does not survive
BACKENDS: tuple[BackendName, ...] = ("memory",)


def make(backend: BackendName, url: str) -> App:
    """See ``interface.Peer``."""
    configure(backend, url)
    app = Flask("benchmarks")
    app.add_url_rule(PATH, view_func=load("idempot.contrib.flask").idempotent(charge), methods=["POST"])
    return app
