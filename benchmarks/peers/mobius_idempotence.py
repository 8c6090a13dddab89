"""mobius-idempotence-library's decorator, on a view of FastAPI."""

from __future__ import annotations

from fastapi import FastAPI

from benchmarks.interface import PATH, STATUS, App, BackendName, Colour, Kind
from benchmarks.peers.loading import installed, load, named
from benchmarks.peers.returned import charge

NAME = "mobius-idempotence-library"
COLOUR: Colour = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("new-key", "replay", "duplicate")
LACKS = (
    "keeps what the view returns, not the answer; header fields are not stored",
    "a request without a key is refused",
    "the lock ends after 60 s, also of a view that runs",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("mobius_idempotence")


def make(backend: BackendName, url: str) -> App:
    """See ``interface.Peer``."""
    config, manager, idempotent = named("mobius_idempotence", "IdempotencyConfig", "IdempotencyManager", "idempotent")
    if backend == "memory":
        chosen = load("mobius_idempotence.backends.memory").MemoryBackend()
    else:
        chosen = load("mobius_idempotence.backends.redis").RedisBackend(url)
    app = FastAPI()
    view = idempotent(manager(chosen, config(fail_open=False)), status_code=STATUS)(charge)
    app.post(PATH, status_code=STATUS, response_model=None)(view)
    return app
