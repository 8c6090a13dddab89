"""Concurrent writers that share one transaction of SQLite: another connection holds the write lock until all wait.

Used by the coalescing tests, and by the script that dies in the middle of such a transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from open_idempotency.backend import Claim, Get, Leased
from open_idempotency.backends.sqlite import SqliteBackend

#: seconds; longer than anything takes on a busy machine
PATIENCE = 20.0
#: the record before the batch: the others wait for its transaction
FIRST = b"first"


def claim_of(record_id: bytes, owner: bytes = b"", **fields: Any) -> Claim:
    """A claim; by default the owner is named like the record."""
    given = {"fingerprint": b"fingerprint", "lease": 30.0, "ttl": 600.0, **fields}
    return Claim(record_id, owner=(owner or record_id).ljust(16)[:16], **given)


def lease_of(backend: SqliteBackend, record_id: bytes):
    """The lease of a new claim."""
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased)
    return result.lease


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for a bounded time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lock(path: str) -> sqlite3.Connection:
    """Another connection, which holds the write lock until it rolls back."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def unlock(connection: sqlite3.Connection) -> None:
    """Release the write lock."""
    connection.execute("ROLLBACK")
    connection.close()


def commits(path: str) -> int:
    """The number of transactions in the write-ahead log: the last frame of each has the size of the database."""
    log = Path(path + "-wal").read_bytes()
    page, salts = struct.unpack(">I", log[8:12])[0], log[16:24]
    frames = (log[start : start + 24] for start in range(32, len(log), page + 24))
    return sum(frame[8:16] == salts and frame[4:8] != bytes(4) for frame in frames)


class OnThreads:
    """Each command has a thread."""

    def __init__(self, backend: SqliteBackend) -> None:
        self._backend = backend

    def results(self, path: str, commands: Sequence[tuple[str, Any]], meanwhile: Callable[[], None]) -> list[Any]:
        """The results, or errors, of ``(verb, command)`` that share one transaction, in order."""
        results: dict[int, Any] = {}
        threads: list[threading.Thread] = []

        def ask(number: int, verb: str, command: Any) -> None:
            try:
                results[number] = getattr(self._backend, verb)(command)
            except Exception as error:
                results[number] = error

        self._backend.get(Get(b"the schema is made"))
        holder = lock(path)
        coalescer = self._backend._transactions._coalescers.get()
        for number, (verb, command) in enumerate([("claim", claim_of(FIRST)), *commands]):
            threads.append(threading.Thread(target=ask, args=(number, verb, command)))
            threads[-1].start()
            until(lambda: coalescer.busy and coalescer._queue._count == len(threads) - 1)
        meanwhile()
        unlock(holder)
        for thread in threads:
            thread.join(PATIENCE)
        return [results[number] for number in range(1, len(threads))]


class OnALoop:
    """Each command has a task of one asyncio loop."""

    def __init__(self, backend: SqliteBackend) -> None:
        self._backend = backend

    def results(self, path: str, commands: Sequence[tuple[str, Any]], meanwhile: Callable[[], None]) -> list[Any]:
        """See ``OnThreads``."""
        return asyncio.run(asyncio.wait_for(self._results(path, commands, meanwhile), 2 * PATIENCE))

    async def _results(
        self, path: str, commands: Sequence[tuple[str, Any]], meanwhile: Callable[[], None]
    ) -> list[Any]:
        backend = self._backend.to_async()
        await backend.get(Get(b"the schema is made"))
        holder = lock(path)
        lanes = backend._lanes_of(asyncio.get_running_loop())
        tasks: list[asyncio.Task[Any]] = []
        for verb, command in [("claim", claim_of(FIRST)), *commands]:
            tasks.append(asyncio.ensure_future(_as_coroutine(getattr(backend, verb)(command))))
            while not (lanes._writing.on_its_way and lanes._writing._queue._count == len(tasks) - 1):
                await asyncio.sleep(0.001)
        await asyncio.to_thread(meanwhile)
        unlock(holder)
        return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


async def _as_coroutine(awaited: Coroutine[Any, Any, Any]) -> Any:
    return await awaited
