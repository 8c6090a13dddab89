"""The floor's calls through psycopg's own pool, which prepares what it sends often: one statement for each call.

Both commit as the server is set, so both are durable.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from benchmarks.floor.calls import BUSY, REUSED, TTL, Found

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS floor_records (
        id bytea PRIMARY KEY, fingerprint bytea NOT NULL, owner bytea NOT NULL,
        expires timestamptz NOT NULL, response bytea
    )
"""
# A record that another transaction is inserting is neither taken nor seen: no row, which means busy.
_CLAIM = """
    WITH taken AS (
        INSERT INTO floor_records (id, fingerprint, owner, expires)
        VALUES (%s, %s, %s, now() + make_interval(secs => %s))
        ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, owner = excluded.owner,
            expires = excluded.expires, response = NULL
        WHERE floor_records.expires <= now() RETURNING 1
    )
    SELECT NULL::bytea, NULL::bytea FROM taken
    UNION ALL SELECT fingerprint, response FROM floor_records WHERE id = %s AND NOT EXISTS (SELECT 1 FROM taken)
"""
_COMPLETE = (
    "UPDATE floor_records SET response = %s, expires = now() + make_interval(secs => %s) WHERE id = %s AND owner = %s"
)
_POOLED: dict[str, Any] = {"min_size": 1, "max_size": 10, "kwargs": {"autocommit": True}, "open": False}


def _found(row: tuple[bytes | None, bytes | None] | None, fingerprint: bytes) -> Found:
    if row is None:
        return BUSY
    known, response = row
    if known is None:
        return None
    if known != fingerprint:
        return REUSED
    return BUSY if response is None else response


def _make_table(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SCHEMA)


class PostgresCalls:
    """The sync form."""

    def __init__(self, url: str) -> None:
        _make_table(url)
        self._pool = ConnectionPool(url, **_POOLED)
        self._pool.open()

    def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        with self._pool.connection() as connection, connection.cursor(binary=True) as cursor:
            cursor.execute(_CLAIM, (record_id, fingerprint, owner, TTL, record_id))
            return _found(cursor.fetchone(), fingerprint)

    def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        with self._pool.connection() as connection:
            connection.execute(_COMPLETE, (response, TTL, record_id, owner))

    def close(self) -> None:
        self._pool.close()


class AsyncPostgresCalls:
    """The async form."""

    def __init__(self, url: str) -> None:
        _make_table(url)
        self._pool = AsyncConnectionPool(url, **_POOLED)
        self._opened = False

    async def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        if not self._opened:
            self._opened = True
            await self._pool.open()
        async with self._pool.connection() as connection, connection.cursor(binary=True) as cursor:
            await cursor.execute(_CLAIM, (record_id, fingerprint, owner, TTL, record_id))
            return _found(await cursor.fetchone(), fingerprint)

    async def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(_COMPLETE, (response, TTL, record_id, owner))

    async def close(self) -> None:
        await self._pool.close()
