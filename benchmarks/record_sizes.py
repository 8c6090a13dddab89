"""How many bytes a record takes: by backend, by the size of its response, and by its stages.

``python -m benchmarks.record_sizes [--quick] [valkey] [postgres] [sqlite]`` prints a line of JSON for each row, and for
each backend the formula that the rows give. Records are completed ones, of 1 kB and 10 kB of JSON that does not
compress, each without stages and with three stages of 100 bytes. What the record says about itself (method, route,
caller, worker) is part of it. Valkey is weighed by ``used_memory``, PostgreSQL by all relations of the schema after a
``VACUUM``, SQLite by its files after a checkpoint. What is weighed is the growth behind the first records.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import psycopg

from benchmarks.interface import BackendName
from benchmarks.memory import file_size
from benchmarks.servers import Servers
from open_idempotency import open_backend
from open_idempotency._core.keys import About
from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import StageKind, encode_response, encode_stage
from open_idempotency.backend import Backend, Claim, Complete, Leased, SaveStage, Stage

RECORDS, RECORDS_QUICK = 10_000, 500
SIZES = (1_024, 10_240)
STAGES = (0, 3)
STAGE_BYTES = 100
#: by the name on the command line
BACKENDS: dict[str, BackendName] = {"valkey": "redis", "postgres": "postgres", "sqlite": "sqlite-full"}
_SCHEMA_SIZE = """SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'open_idempotency' AND c.relkind = 'r'"""


def text(size: int) -> bytes:
    """A JSON text of that many bytes that no backend can compress."""
    return b'{"charged": "%s"}' % base64.b64encode(os.urandom(size))[: size - len(b'{"charged": ""}')]


def fill(backend: Backend, count: int, size: int, stages: int) -> None:
    """Complete so many records."""
    for _ in range(count):
        owner = os.urandom(16)
        about = About("POST", "/orders/{id}", os.urandom(16), "web-3:812", os.urandom(8)).encode(owner)
        leased = backend.claim(
            Claim(os.urandom(32), b"\x01" + os.urandom(32), owner, 30.0, 86_400.0, about=about),
        )
        assert isinstance(leased, Leased)
        for number in range(stages):
            frame = encode_stage(StageKind.VALUE, text(STAGE_BYTES))
            backend.save_stage(SaveStage(leased.lease, Stage(f"stage-{number}", "", frame)))
        headers = [(b"content-type", b"application/json"), (b"location", b"/charges/1")]
        backend.complete(Complete(leased.lease, encode_response(Response(201, headers, text(size)))))


def grown(backend: Backend, count: int, size: int, stages: int, weigh: Callable[[], int]) -> float:
    """Bytes for each record, once there are some."""
    fill(backend, max(count // 5, 100), size, stages)
    before = weigh()
    fill(backend, count, size, stages)
    return (weigh() - before) / count


def _vacuumed(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM")
        row = connection.execute(_SCHEMA_SIZE).fetchone()
        assert row is not None
        return int(row[0])


def _checkpointed(url: str) -> int:
    with closing(sqlite3.connect(urlsplit(url).path[1:])) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file_size(url)


def _used_memory(servers: Servers) -> int:
    with servers.redis.connect() as client:
        return int(client.info("memory")["used_memory"])


def _weigher(servers: Servers, name: str, url: str) -> Callable[[], int]:
    if name == "postgres":
        return lambda: _vacuumed(url)
    if name == "sqlite":
        return lambda: _checkpointed(url)
    return lambda: _used_memory(servers)


def rows(servers: Servers, name: str, count: int) -> Iterator[dict[str, Any]]:
    """A row for each size and each number of stages, each in an empty backend."""
    for size in SIZES:
        for stages in STAGES:
            url = servers.url(BACKENDS[name])
            with closing(open_backend(url)) as backend:
                backend.migrate()
                value = grown(backend, count, size, stages, _weigher(servers, name, url))
            yield {"backend": name, "response": size, "stages": stages, "bytes": round(value)}


def formula(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``fixed + per_byte * the response's bytes + per_stage * stages`` (of 100 bytes), from the four rows."""
    at = {(row["response"], row["stages"]): row["bytes"] for row in measured}
    small, large = SIZES
    per_byte = (at[large, 0] - at[small, 0]) / (large - small)
    per_stage = sum(at[size, STAGES[1]] - at[size, 0] for size in SIZES) / len(SIZES) / STAGES[1]
    return {
        "backend": measured[0]["backend"],
        "fixed": round(at[small, 0] - per_byte * small),
        "per_byte": round(per_byte, 2),
        "per_stage": round(per_stage),
    }


def main(arguments: Sequence[str]) -> None:
    """Print the rows and the formula of each backend."""
    count = RECORDS_QUICK if "--quick" in arguments else RECORDS
    chosen = [name for name in arguments if not name.startswith("-")]
    unknown = sorted(set(chosen) - set(BACKENDS))
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(BACKENDS)}")
    with Servers() as servers:
        for name in chosen or BACKENDS:
            measured = []
            for row in rows(servers, name, count):
                measured.append(row)
                print(json.dumps(row), flush=True)
            print(json.dumps(formula(measured)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
