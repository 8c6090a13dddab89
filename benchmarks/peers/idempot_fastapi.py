"""idempot's decorator, on a view of FastAPI."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.fastapi import charge, routed
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load

NAME = "idempot"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay")
LACKS = (
    "does not look at the request: its body, path and method are not compared",
    "one configuration and one backend for the whole process",
    "looks first, locks, and looks again; a duplicate in flight polls for 5 s",
    "the lock ends after 5 s, also of a view that runs; no token",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("idempot")


def configure(backend: BackendName, url: str, **documented: Any) -> None:
    """Let idempot use this backend from now on."""
    idempot = load("idempot")
    if backend == "memory":
        idempot.configure(backend="memory", cache_on_status=[200, 201], **documented)
    else:
        idempot.configure(backend="redis", redis_url=url, cache_on_status=[200, 201], **documented)


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    configure(backend, url, **documented)
    return routed(load("idempot.contrib.fastapi").idempotent(charge))
