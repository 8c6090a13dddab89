"""The cost of erasing one caller among a million live records, and its effect on concurrent requests.

``python -m benchmarks.erasing [--quick] [backend ...]`` prints a line of JSON for each backend. A record is made by the
backend itself, and copied on the server under other names and for ten thousand callers, so every byte is real; 100
records are the caller's. During the erasure one thread claims and completes new keys; its calls are timed before the
erasure and during it. The erasing process has its own interpreter, as an operator's command has.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import psycopg

from benchmarks.interface import BackendName, body_of
from benchmarks.servers import Servers
from open_idempotency import IdempotencyPolicy, open_backend, operations
from open_idempotency._core.keys import About, caller_of
from open_idempotency.backend import Backend, Claim, Complete, Leased

POLICY = IdempotencyPolicy(application="shop")
CALLER = "user:erased"
RECORDS, CALLERS = 1_000_000, 10_000
_BACKENDS: tuple[BackendName, ...] = ("sqlite-full", "redis", "postgres")
_RESPONSE = body_of(200)
_FINGERPRINT = b"\x01" + b"f" * 32
_AT_ONCE = 1_000
#: seconds for which the calls are timed before the erasure
_BEFORE = 5.0


def _claim(record_id: bytes, about: bytes, owner: bytes) -> Claim:
    return Claim(record_id, _FINGERPRINT, owner, 30.0, 86_400.0, about=about)


def _complete(ready: Backend, record_id: bytes, caller: str = CALLER) -> float:
    """Seconds for a claim and a completion."""
    owner = os.urandom(16)
    about = About("POST", "/orders/{id}", caller_of(caller, POLICY), "host:1").encode(owner)
    start = time.perf_counter()
    leased = ready.claim(_claim(record_id, about, owner))
    assert isinstance(leased, Leased)
    ready.complete(Complete(leased.lease, _RESPONSE))
    return time.perf_counter() - start


def _copies(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Ids of records, and what each is about; of every hundred callers' one hundred records."""
    owner = b"o" * 16
    abouts = [
        About("POST", "/orders/{id}", caller_of(f"user:{number}", POLICY), "host:1").encode(owner)
        for number in range(CALLERS)
    ]
    for number in range(count):
        yield hashlib.sha256(b"%d" % number).digest(), abouts[number % CALLERS]


def _fill_redis(servers: Servers, url: str, original: bytes, count: int) -> None:
    with closing(servers.redis.connect()) as client:
        name = f"oi:{original.hex()}"
        fields: Any = client.hgetall(name)
        left = client.pttl(name)
        pipeline = client.pipeline(transaction=False)
        for number, (record_id, about) in enumerate(_copies(count)):
            key = f"oi:{record_id.hex()}"
            pipeline.hset(key, mapping={**fields, b"b": about})
            pipeline.pexpire(key, left)
            if number % _AT_ONCE == _AT_ONCE - 1:
                pipeline.execute()
        pipeline.execute()


_COLUMNS = ", ".join(
    (
        "record_version",
        "fingerprint",
        "status",
        "owner",
        "token",
        "attempt",
        "claimed_at",
        "lease_end",
        "ttl",
        "expires_at",
        "final",
        "response",
    )
)


def _fill_sqlite(servers: Servers, url: str, original: bytes, count: int) -> None:
    with closing(sqlite3.connect(urlsplit(url).path[1:])) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM open_idempotency_records WHERE record_id = ?", (original,)
        ).fetchone()
        names = f"record_id, about, {_COLUMNS}"
        marks = ", ".join("?" * (2 + len(row)))
        connection.executemany(
            f"INSERT INTO open_idempotency_records ({names}) VALUES ({marks})",
            ((record_id, about, *row) for record_id, about in sorted(_copies(count))),
        )
        connection.commit()


def _fill_postgres(servers: Servers, url: str, original: bytes, count: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TEMP TABLE filled (record_id bytea, about bytea)")
        with connection.cursor().copy("COPY filled FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["bytea", "bytea"])
            for row in _copies(count):
                copy.write_row(row)
        connection.execute(
            f"INSERT INTO open_idempotency.records (record_id, about, {_COLUMNS}, awaited) "
            f"SELECT f.record_id, f.about, {', '.join('r.' + name for name in _COLUMNS.split(', '))}, false "
            "FROM filled f, open_idempotency.records r WHERE r.record_id = %s",
            (original,),
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("ANALYZE open_idempotency.records")


_FILL: Mapping[str, Callable[[Servers, str, bytes, int], None]] = {
    "redis": _fill_redis,
    "sqlite-full": _fill_sqlite,
    "postgres": _fill_postgres,
}


def _erase(url: str, sender: Any) -> None:
    with closing(open_backend(url)) as backend:
        start = time.perf_counter()
        erasure = operations.erase(backend, POLICY, user="erased")
        sender.send((time.perf_counter() - start, erasure.scanned, len(erasure.erased)))


def _calls(ready: Backend, goes_on: Callable[[], bool]) -> list[float]:
    taken: list[float] = []
    while goes_on():
        taken.append(_complete(ready, os.urandom(32), "user:beside"))
    return taken


def _spread(taken: Sequence[float]) -> dict[str, float]:
    ordered = sorted(taken)
    at = {"median_ms": statistics.median(ordered), "p99_ms": ordered[int(len(ordered) * 0.99)]}
    return {"calls": len(ordered), **{name: round(seconds * 1_000, 2) for name, seconds in at.items()}}


def row(servers: Servers, backend: BackendName, count: int) -> dict[str, Any]:
    """Fill the backend, then erase one caller."""
    url = servers.url(backend)
    with closing(open_backend(url)) as ready:
        ready.migrate()
        mine = [os.urandom(32) for _ in range(100)]
        for record_id in mine:
            _complete(ready, record_id)
        _FILL[backend](servers, url, mine[0], count - len(mine))
        until = time.monotonic() + _BEFORE
        before = _calls(ready, lambda: time.monotonic() < until)
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_erase, args=(url, sender))
        process.start()
        sender.close()
        during = _calls(ready, lambda: not receiver.poll())
        seconds, scanned, erased = receiver.recv()
        process.join()
        assert erased == len(mine)
    return {
        "backend": backend, "records": scanned, "erased": erased, "seconds": round(seconds, 1),
        "before": _spread(before), "during": _spread(during), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Print a row for each backend."""
    quick = "--quick" in arguments
    chosen = [name for name in arguments if not name.startswith("-")]
    for backend in _BACKENDS:
        if not chosen or backend in chosen:
            with Servers() as servers:
                print(json.dumps(row(servers, backend, CALLERS if quick else RECORDS)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
