"""mobius-idempotence-library's decorator, on a view of FastAPI."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.fastapi import routed
from benchmarks.interface import STATUS, App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load, named
from benchmarks.peers.returned import charge

NAME = "mobius-idempotence-library"
STYLE: Style = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("new-key", "replay", "duplicate")
LACKS = (
    "stores what the view returns, not the response; headers are not stored",
    "a request without a key is refused",
    "the lock ends after 60 s, also of a view that runs",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("mobius_idempotence")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    config, manager, idempotent = named("mobius_idempotence", "IdempotencyConfig", "IdempotencyManager", "idempotent")
    if backend == "memory":
        chosen = load("mobius_idempotence.backends.memory").MemoryBackend()
    else:
        chosen = load("mobius_idempotence.backends.redis").RedisBackend(url, lock_ttl=documented.get("lock_ttl", 60))
    view = idempotent(manager(chosen, config(**{"fail_open": False, **documented})), status_code=STATUS)(charge)
    return routed(view, status_code=STATUS, response_model=None)
