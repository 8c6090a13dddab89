"""pyidempotent's decorator, on a view of FastAPI."""

from __future__ import annotations

from fastapi import FastAPI

from benchmarks.interface import PATH, STATUS, App, BackendName, Colour, Kind
from benchmarks.peers.loading import installed, load
from benchmarks.peers.returned import charge

NAME = "pyidempotent"
COLOUR: Colour = "asgi"
FRAMEWORK = "fastapi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("new-key", "replay")
LACKS = (
    "keeps what the view returns, not the answer; its status and header fields are made anew",
    "compares the view's arguments, not the request: here there are none",
    "a request without a key is an error, and one in flight polls for 10 s",
    "no lease, no token, no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("pyidempotent")


def make(backend: BackendName, url: str) -> App:
    """See ``interface.Peer``."""
    if backend == "memory":
        chosen = load("pyidempotent.backends.memory").MemoryBackend()
    else:
        chosen = load("pyidempotent.backends.redis").RedisBackend(load("redis.asyncio").from_url(url))
    app = FastAPI()
    app.post(PATH, status_code=STATUS)(load("pyidempotent").idempotent(backend=chosen, ttl=24 * 3600)(charge))
    return app
