"""The floor's calls on one SQLite connection; the async ones run in one thread, since there is one writer."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

from benchmarks.floor.calls import BUSY, REUSED, TTL, Found

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS floor_records (
        id BLOB NOT NULL PRIMARY KEY, fingerprint BLOB NOT NULL, owner BLOB NOT NULL,
        expires REAL NOT NULL, response BLOB
    )
"""
_CLAIM = """
    INSERT INTO floor_records (id, fingerprint, owner, expires) VALUES (:id, :fingerprint, :owner, :now + :ttl)
    ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, owner = excluded.owner,
        expires = excluded.expires, response = NULL
    WHERE expires <= :now
"""
_READ = "SELECT fingerprint, response FROM floor_records WHERE id = ?"
_COMPLETE = "UPDATE floor_records SET response = ?, expires = ? WHERE id = ? AND owner = ?"


class SqliteCalls:
    """The sync form: each statement is a transaction of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        synchronous = parse_qs(parts.query)["synchronous"][0]
        self._lock = threading.Lock()
        path = f"{parts.path[1:]}.floor"
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        self._connection.execute(_SCHEMA)

    def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        row = {"id": record_id, "fingerprint": fingerprint, "owner": owner, "now": time.time(), "ttl": TTL}
        with self._lock:
            if self._connection.execute(_CLAIM, row).rowcount:
                return None
            known, response = self._connection.execute(_READ, (record_id,)).fetchone()
        if known != fingerprint:
            return REUSED
        stored: bytes | None = response
        return BUSY if stored is None else stored

    def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        with self._lock:
            self._connection.execute(_COMPLETE, (response, time.time() + TTL, record_id, owner))

    def close(self) -> None:
        self._connection.close()


class AsyncSqliteCalls:
    """The async form: what blocks must not block the event loop."""

    def __init__(self, url: str) -> None:
        self._calls = SqliteCalls(url)
        self._thread = ThreadPoolExecutor(1)

    async def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._calls.claim, record_id, fingerprint, owner)

    async def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._calls.complete, record_id, owner, response)

    async def close(self) -> None:
        self._thread.shutdown()
        self._calls.close()
