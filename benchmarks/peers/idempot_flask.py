"""idempot's decorator, on a view of Flask."""

from __future__ import annotations

from typing import Any

from flask import Flask

from benchmarks.apps.flask import add_endpoint, charge
from benchmarks.interface import App, BackendName, Style
from benchmarks.peers.idempot_fastapi import LACKS, NAME, ROWS, available, configure
from benchmarks.peers.loading import load

__all__ = ["LACKS", "NAME", "ROWS", "available"]

STYLE: Style = "wsgi"
FRAMEWORK = "flask"
#: each request runs in an event loop of its own, which its Redis client does not survive
BACKENDS: tuple[BackendName, ...] = ("memory",)


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    configure(backend, url, **documented)
    app = Flask("benchmarks")
    add_endpoint(app, load("idempot.contrib.flask").idempotent(charge))
    return app
