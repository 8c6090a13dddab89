"""Connections to one PostgreSQL database: a small pool for each process, and for asyncio one for each event loop.

Every wait is bounded here, since the server's own limits need settings that a pooler in between may not pass on, and a
server that has vanished sets none. Statements are never prepared on the server, for the same pooler's sake.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.psycopg_waits import AsyncBoundedConnection, BoundedConnection, ServerSilent
from open_idempotency.exceptions import BackendUnavailable

#: what the client library raises
ERRORS = (psycopg.Error, PoolTimeout, PoolClosed)
_MET = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_MISSING = (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


def wrapped(error: Exception) -> BackendUnavailable:
    """The library's error as ours; the caller keeps it as the cause."""
    hint = "; run `open-idempotency migrate` with the URL of the backend" if isinstance(error, _MISSING) else ""
    return BackendUnavailable(f"PostgreSQL: {type(error).__name__}: {str(error).strip()}{hint}")


def may_retry(error: Exception, broken: bool, started: float, options: Options) -> bool:
    """Whether another try makes sense: the connection was broken before, as after a restart, or two calls met, which is
    an error where the database's default isolation is a higher one; and there is time left.

    Each verb may be sent twice (B-08).
    """
    if not (broken or isinstance(error, _MET)) or isinstance(error, ServerSilent):
        return False
    return time.monotonic() - started < options.timeout


def _arguments(options: Options) -> dict[str, Any]:
    return {
        "conninfo": options.conninfo,
        "kwargs": {"autocommit": True, "prepare_threshold": None},
        "min_size": 0,
        "max_size": options.max_connections,
        "timeout": options.timeout,
        # A server that is away is not looked for in the background: the next call tries again.
        "reconnect_timeout": options.timeout,
        "num_workers": 1,
        "open": False,
    }


class Pool:
    """The blocking connections of each process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pools: PerProcess[ConnectionPool[BoundedConnection]] = PerProcess(self._make)

    def _make(self) -> ConnectionPool[BoundedConnection]:
        return ConnectionPool(connection_class=BoundedConnection, **_arguments(self._options))

    def _opened(self) -> ConnectionPool[BoundedConnection]:
        pool = self._pools.get()
        if pool.closed:
            pool.open()
        return pool

    def rows(self, statement: bytes, parameters: tuple[Any, ...]) -> list[Any]:
        """Run one statement in a transaction of its own. Raises ``BackendUnavailable``."""
        started = time.monotonic()
        while True:
            broken: list[bool] = []
            try:
                return self._rows(statement, parameters, broken)
            except ERRORS as error:
                if not may_retry(error, any(broken), started, self._options):
                    raise wrapped(error) from error

    def _rows(self, statement: bytes, parameters: tuple[Any, ...], broken: list[bool]) -> list[Any]:
        pool = self._opened()
        connection = pool.getconn()
        try:
            connection.deadline = time.monotonic() + self._options.timeout
            with connection.cursor(binary=True) as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        finally:
            broken.append(connection.closed)
            pool.putconn(connection)

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        pool = self._pools.pop()
        if pool is not None:
            pool.close()


class LoopPools:
    """The asyncio connections of this process, by event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pools: PerProcess[dict[asyncio.AbstractEventLoop, AsyncConnectionPool[AsyncBoundedConnection]]]
        self._pools = PerProcess(dict)

    async def _opened(self) -> AsyncConnectionPool[AsyncBoundedConnection]:
        pools = self._pools.get()
        loop = asyncio.get_running_loop()
        pool = pools.get(loop)
        if pool is None:
            # Not a weak dictionary: connections hold their loop, so an entry would keep itself alive.
            for other in [other for other in list(pools) if other.is_closed()]:
                pools.pop(other, None)
            pool = pools[loop] = AsyncConnectionPool(
                connection_class=AsyncBoundedConnection, **_arguments(self._options)
            )
        if pool.closed:
            await pool.open()
        return pool

    async def rows(self, statement: bytes, parameters: tuple[Any, ...]) -> list[Any]:
        """See ``Pool.rows``."""
        started = time.monotonic()
        while True:
            broken: list[bool] = []
            try:
                return await self._rows(statement, parameters, broken)
            except ERRORS as error:
                if not may_retry(error, any(broken), started, self._options):
                    raise wrapped(error) from error

    async def _rows(self, statement: bytes, parameters: tuple[Any, ...], broken: list[bool]) -> list[Any]:
        pool = await self._opened()
        connection = await pool.getconn()
        try:
            connection.deadline = time.monotonic() + self._options.timeout
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(statement, parameters)
                return await cursor.fetchall()
        finally:
            broken.append(connection.closed)
            await pool.putconn(connection)

    async def close(self) -> None:
        """Close the running loop's connections; those of other loops can only be closed there."""
        pool = self._pools.get().pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()
