"""idemkit's backends by the suite's names; PostgreSQL gets its table as ``idemkit init-pg`` makes it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.interface import BackendName
from benchmarks.peers.loading import load, named

BACKENDS: tuple[BackendName, ...] = ("memory", "redis", "postgres")


def make_backend(backend: BackendName, url: str) -> Any:
    """An idemkit backend."""
    memory, redis = named("idemkit", "InMemoryBackend", "RedisBackend")
    if backend == "memory":
        return memory()
    if backend == "redis":
        return redis.from_url(url)
    postgres = load("idemkit.backends.postgres")
    with ThreadPoolExecutor(1) as thread:  # the caller may run in an event loop
        thread.submit(lambda: asyncio.run(postgres.init_pg(url))).result(30)
    return postgres.PostgresBackend.from_url(url)
