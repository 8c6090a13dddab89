"""The cost of a claim and a replay among a thousand to a million completed records, and the size of those.

A record is made by the backend itself, and copied inside the store under other names, so every byte is real. The memory
backend is bounded (by 100,000 records, unless configured otherwise) and is measured up to that.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any, Protocol
from urllib.parse import urlsplit

from benchmarks import tables
from benchmarks.interface import BackendName, body_of
from benchmarks.run import Results, Run
from benchmarks.servers import Servers
from benchmarks.timing import Batch, interleaved, spread
from open_idempotency import open_backend
from open_idempotency.backend import Backend, Claim, Complete, Finished, Leased, Release

COUNTS = (1_000, 10_000, 100_000, 1_000_000)
#: the memory backend takes 100,000 unless configured otherwise
_MOST: dict[BackendName, int] = {"memory": 100_000, "sqlite-full": 1_000_000, "redis": 1_000_000}
_OPTIONS: dict[BackendName, str] = {"memory": "?max_records=1000000"}
_BACKENDS: tuple[BackendName, ...] = ("memory", "sqlite-full", "redis")
_RESPONSE = body_of(200)
_FINGERPRINT = b"\x01" + b"f" * 32
_SOME = 1_000


class Store(Protocol):
    """Direct access to a backend's store."""

    def copy(self, original: bytes, count: int) -> list[bytes]:
        """Add this many copies of the record; the ids of some of them."""

    def weight(self) -> int | None:
        """The size in bytes; None if it cannot be measured."""

    def close(self) -> None: ...


class MemoryStore:
    """Has no direct access, so each record is made by calls; benchmarks/memory.py measures its size."""

    def __init__(self, servers: Servers, url: str, ready: Backend) -> None:
        self._ready = ready

    def copy(self, original: bytes, count: int) -> list[bytes]:
        made = [os.urandom(32) for _ in range(count)]
        for record_id in made:
            _complete(self._ready, record_id)
        return made[-_SOME:]

    def weight(self) -> int | None:
        return None

    def close(self) -> None:
        pass


# Sorted, since a million places at random in an index take minutes; the pages come out fuller than they are in use.
_COPY_ROWS = """
    WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
    INSERT INTO open_idempotency_records (
        record_id, record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at,
        final, about, response
    )
    SELECT randomblob(32) AS id, record_version, fingerprint, status, owner, token, attempt,
        claimed_at, lease_end, ttl, expires_at + n * 1e-3, final, about, response
    FROM numbers, open_idempotency_records WHERE record_id = ? ORDER BY id
"""
_SOME_ROWS = "SELECT record_id FROM open_idempotency_records WHERE record_id > randomblob(32) LIMIT 1"


class SqliteStore:
    """The file; its size is that of its pages."""

    def __init__(self, servers: Servers, url: str, ready: Backend) -> None:
        self._connection = sqlite3.connect(urlsplit(url).path[1:], isolation_level=None)
        for pragma in ("synchronous = OFF", "cache_size = -500000", "temp_store = MEMORY"):
            self._connection.execute(f"PRAGMA {pragma}")

    def copy(self, original: bytes, count: int) -> list[bytes]:
        self._connection.execute(_COPY_ROWS, (count, original))
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        found = [self._connection.execute(_SOME_ROWS).fetchone() for _ in range(_SOME)]
        return [row[0] for row in found if row is not None]

    def weight(self) -> int | None:
        pages, size = (self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size)

    def close(self) -> None:
        self._connection.close()


_COPY_KEYS = """
    local copies = {}
    for i = 1, tonumber(ARGV[1]) do
        local digest = redis.sha1hex(ARGV[2] .. i)
        copies[i] = digest .. string.sub(digest, 1, 24)
        redis.call('COPY', KEYS[1], 'oi:' .. copies[i])
    end
    return copies
"""


class RedisStore:
    """The server; its size is its ``used_memory``."""

    def __init__(self, servers: Servers, url: str, ready: Backend) -> None:
        self._redis: Any = servers.redis.connect()
        self._copy: Any = self._redis.register_script(_COPY_KEYS)

    def copy(self, original: bytes, count: int) -> list[bytes]:
        made: list[bytes] = []
        for start in range(0, count, _SOME):
            names = self._copy((f"oi:{original.hex()}",), (min(_SOME, count - start), os.urandom(8)))
            made = [bytes.fromhex(name.decode()) for name in names]
        return made

    def weight(self) -> int | None:
        return int(self._redis.info("memory")["used_memory"])

    def close(self) -> None:
        self._redis.close()


_STORES: Mapping[str, Callable[[Servers, str, Backend], Store]] = {
    "memory": MemoryStore,
    "sqlite-full": SqliteStore,
    "redis": RedisStore,
}


def measure(run: Run) -> Results:
    """Measure each store as it grows from step to step."""
    results: Results = []
    for backend in run.backends(_BACKENDS):
        url = run.servers.url(backend) + _OPTIONS.get(backend, "")
        with closing(open_backend(url)) as ready:
            original = os.urandom(32)
            _complete(ready, original)
            store = _STORES[backend](run.servers, url, ready)
            with closing(store):
                results += _grown(run, backend, ready, store, original)
    print(table(results), flush=True)
    return results


def _grown(run: Run, backend: BackendName, ready: Backend, store: Store, original: bytes) -> Results:
    counts = [count for count in COUNTS if count <= (COUNTS[1] if run.quick else _MOST[backend])]
    results, empty, there = [], store.weight(), 0
    for count in counts:
        some = store.copy(original, count - there)
        there = count
        taken = interleaved({"claim": _claiming(ready), "replay": _replaying(ready, some)}, run.effort(1))
        figures = {name: asdict(spread(series)) for name, series in taken.items()}
        weight = None if empty is None else ((store.weight() or 0) - empty) / count
        results.append({"backend": backend, "x": count, **figures, "bytes_each": weight})
    return results


def _complete(ready: Backend, record_id: bytes) -> None:
    leased = ready.claim(_claim(record_id))
    assert isinstance(leased, Leased)
    ready.complete(Complete(leased.lease, _RESPONSE))


def _claim(record_id: bytes) -> Claim:
    return Claim(record_id, _FINGERPRINT, os.urandom(16), 30.0, 86_400.0)


def _claiming(ready: Backend) -> Batch:
    def batch(count: int) -> float:
        claims = [_claim(os.urandom(32)) for _ in range(count)]
        start = time.perf_counter()
        claimed = [ready.claim(claim) for claim in claims]
        taken = time.perf_counter() - start
        for leased in claimed:
            assert isinstance(leased, Leased)
            ready.release(Release(leased.lease))
        return taken

    return batch


def _replaying(ready: Backend, some: Sequence[bytes]) -> Batch:
    def batch(count: int) -> float:
        claims = [_claim(random.choice(some)) for _ in range(count)]
        start = time.perf_counter()
        replayed = [ready.claim(claim) for claim in claims]
        taken = time.perf_counter() - start
        assert all(isinstance(found, Finished) for found in replayed)
        return taken

    return batch


def table(results: Results) -> str:
    """A step in each line."""
    lines = [["backend", "live records", "claim µs", "replay µs", "bytes each"]]
    for step in results:
        weight = "" if step["bytes_each"] is None else tables.figure(step["bytes_each"])
        figures = (tables.spread(step[name]) for name in ("claim", "replay"))
        lines.append([step["backend"], f"{step['x']:,}", *figures, weight])
    return f"\nby live records\n{tables.indented(tables.aligned(lines).splitlines())}"
