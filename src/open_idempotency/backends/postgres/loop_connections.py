"""The asyncio connections to one PostgreSQL database: a few for each event loop of each process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from open_idempotency.backends.postgres.connections import PAUSE
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.running import (
    AGE,
    ARGUMENTS,
    IDLE,
    AsyncKeptConnection,
    Busy,
    Preparing,
    Tries,
    running,
)
from open_idempotency.backends.psycopg_waits import ServerSilent


class LoopConnections:
    """Those of one loop; the one that was used last is used next."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._idle: list[AsyncKeptConnection] = []
        self._places = asyncio.Semaphore(options.max_connections)
        self._closed = False
        self._preparing = Preparing(options)

    async def rows(self, statement: Statement, values: Sequence[Any], until: float | None = None) -> list[Row]:
        """See ``Connections.rows``."""
        tries = Tries(self._options, until)
        parameters = statement.encoded(values)
        while True:
            broken: list[bool] = []
            try:
                return await self._rows(statement, parameters, tries, broken)
            except psycopg.Error as error:
                tries.again(error, any(broken))

    async def _rows(
        self, statement: Statement, parameters: list[bytes | None], tries: Tries, broken: list[bool]
    ) -> list[Row]:
        connection = await self._take(tries)
        try:
            connection.deadline = time.monotonic() + tries.left()
            answered: list[Row] = await connection.wait(running(connection, statement, parameters))
            return answered
        finally:
            broken.append(connection.closed)
            self._give(connection)

    async def _take(self, tries: Tries) -> AsyncKeptConnection:
        if self._places.locked():
            try:
                await asyncio.wait_for(self._places.acquire(), tries.left())
            except asyncio.TimeoutError:
                raise Busy(f"no connection was free; there are {self._options.max_connections}") from None
        else:
            await self._places.acquire()
        try:
            return self._kept() or await self._made(tries)
        except BaseException:
            self._places.release()
            raise

    def _give(self, connection: AsyncKeptConnection) -> None:
        connection.used = time.monotonic()
        if connection.is_clean() and not self._closed:
            self._idle.append(connection)
        else:
            connection.pgconn.finish()
        self._finish_idle(connection.used - IDLE)
        self._places.release()

    def finish(self) -> None:
        """Close those that nobody uses, and the others when they are given back; the loop may have ended."""
        self._closed = True
        self._finish_idle(time.monotonic())

    def _finish_idle(self, used_before: float) -> None:
        while self._idle and self._idle[0].used <= used_before:
            self._idle.pop(0).pgconn.finish()

    def _kept(self) -> AsyncKeptConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh(time.monotonic()):
                return connection
            connection.pgconn.finish()
        return None

    async def _made(self, tries: Tries) -> AsyncKeptConnection:
        """A new one; a server that is starting is waited for."""
        until = time.monotonic() + tries.left()
        while True:
            try:
                left = max(0.0, until - time.monotonic())
                connecting = AsyncKeptConnection.connect(self._options.conninfo, **ARGUMENTS)
                connection = await asyncio.wait_for(connecting, left)
            except asyncio.TimeoutError:
                raise ServerSilent("no connection in time") from None
            except psycopg.OperationalError:
                if time.monotonic() + PAUSE > until:
                    raise
                await asyncio.sleep(PAUSE)
            else:
                connection.until = time.monotonic() + AGE
                connection.preparing = self._preparing
                return connection
