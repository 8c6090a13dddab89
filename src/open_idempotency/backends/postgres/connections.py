"""The connections to one PostgreSQL database, opened when they are needed: a few for each process, and a few for each
event loop of each process.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import psycopg

from open_idempotency.backends._shared.psycopg_waits import ServerSilent
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.running import (
    AGE,
    ARGUMENTS,
    IDLE,
    AsyncKeptConnection,
    Busy,
    KeptConnection,
    Preparing,
    Tries,
    running,
)

#: seconds between two tries to connect
_PAUSE = 0.05
K = TypeVar("K", KeptConnection, AsyncKeptConnection)


class _Idle(Generic[K]):
    """The idle connections; the one that was used last is used next."""

    def __init__(self) -> None:
        self._idle: list[K] = []
        self._closed = False

    def take(self) -> K | None:
        """One that is of use, or None."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_fresh(time.monotonic()):
                return connection
            connection.pgconn.finish()

    def give(self, connection: K) -> None:
        """Keep a connection for the next call, if it is of any more use."""
        connection.used = time.monotonic()
        if connection.is_clean() and not self._closed:
            self._idle.append(connection)
        else:
            connection.pgconn.finish()
        oldest, before = self._idle[:1], connection.used - IDLE
        if oldest and oldest[0].used <= before:
            self._finish(before)

    def close(self) -> None:
        """Close idle connections, and the others when they are given back."""
        self._closed = True
        self._finish(time.monotonic())

    def _finish(self, used_before: float) -> None:
        try:
            while self._idle[0].used <= used_before:
                self._idle.pop(0).pgconn.finish()
        except IndexError:  # none is left, or another thread was faster
            pass


class Connections:
    """The blocking connections of one process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._idle: _Idle[KeptConnection] = _Idle()
        #: one for each connection that may be in use; a semaphore of the standard library takes ten times as long
        self._slots: SimpleQueue[None] = SimpleQueue()
        for _ in range(options.max_connections):
            self._slots.put(None)
        self._preparing = Preparing(options)

    def rows(self, statement: Statement, values: Sequence[Any], until: float | None = None) -> list[Row]:
        """Run one statement in a transaction of its own; ``until`` on the monotonic clock. Raises
        ``BackendUnavailable``.
        """
        tries = Tries(self._options, until)
        parameters = statement.encoded(values)
        while True:
            broken: list[bool] = []
            try:
                return self._rows(statement, parameters, tries, broken)
            except psycopg.Error as error:
                tries.again(error, any(broken))

    def _rows(
        self, statement: Statement, parameters: list[bytes | None], tries: Tries, broken: list[bool]
    ) -> list[Row]:
        connection = self._take(tries)
        try:
            connection.deadline = time.monotonic() + tries.left()
            found: list[Row] = connection.wait(running(connection, statement, parameters))
            return found
        finally:
            broken.append(connection.closed)
            self._give(connection)

    def _take(self, tries: Tries) -> KeptConnection:
        """A connection for one call. Raises ``psycopg.OperationalError``."""
        try:
            self._slots.get(timeout=tries.left())
        except Empty:
            raise Busy(f"no connection was free; there are {self._options.max_connections}") from None
        try:
            return self._idle.take() or self._made(tries)
        except BaseException:
            self._slots.put(None)
            raise

    def _give(self, connection: KeptConnection) -> None:
        try:
            self._idle.give(connection)
        finally:
            self._slots.put(None)

    def close(self) -> None:
        """Close idle connections, and the others when they are given back."""
        self._idle.close()

    def _made(self, tries: Tries) -> KeptConnection:
        """A new one; a server that is starting is waited for."""
        until = time.monotonic() + tries.left()
        while True:
            try:
                left = max(0.0, until - time.monotonic())
                connection = in_time(left, lambda: KeptConnection.connect(self._options.conninfo, **ARGUMENTS))
            except psycopg.OperationalError:
                if time.monotonic() + _PAUSE > until:
                    raise
                time.sleep(_PAUSE)
            else:
                connection.until = time.monotonic() + AGE
                connection.preparing = self._preparing
                return connection


class LoopConnections:
    """The async connections of one event loop of asyncio."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._idle: _Idle[AsyncKeptConnection] = _Idle()
        self._slots = asyncio.Semaphore(options.max_connections)
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
            found: list[Row] = await connection.wait(running(connection, statement, parameters))
            return found
        finally:
            broken.append(connection.closed)
            self._give(connection)

    async def _take(self, tries: Tries) -> AsyncKeptConnection:
        if self._slots.locked():
            try:
                await asyncio.wait_for(self._slots.acquire(), tries.left())
            except asyncio.TimeoutError:
                raise Busy(f"no connection was free; there are {self._options.max_connections}") from None
        else:
            await self._slots.acquire()
        try:
            return self._idle.take() or await self._made(tries)
        except BaseException:
            self._slots.release()
            raise

    def _give(self, connection: AsyncKeptConnection) -> None:
        self._idle.give(connection)
        self._slots.release()

    def close(self) -> None:
        """See ``Connections.close``; the loop may have ended."""
        self._idle.close()

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
                if time.monotonic() + _PAUSE > until:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                connection.until = time.monotonic() + AGE
                connection.preparing = self._preparing
                return connection


class _Connecting:
    """A connection that is being made in a thread of its own; nothing else can end the lookup of a host's name."""

    def __init__(self, connect: Callable[[], KeptConnection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._given_up = False
        self.done = threading.Event()
        self.made: KeptConnection | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """In the thread."""
        made: KeptConnection | None = None
        try:
            made = self._connect()
        except BaseException as error:  # raised again in the caller's thread
            self.error = error
        with self._lock:
            self.made = made
            given_up = self._given_up
        if given_up and made is not None:
            made.close()
        self.done.set()

    def give_up(self) -> bool:
        """The connection is not wanted any more; False where it is there."""
        with self._lock:
            self._given_up = self.made is None
            return self._given_up


def in_time(seconds: float, connect: Callable[[], KeptConnection]) -> KeptConnection:
    """What ``connect`` returns or raises; ``ServerSilent`` after ``seconds``."""
    connecting = _Connecting(connect)
    threading.Thread(target=connecting.run, name="open-idempotency-connect", daemon=True).start()
    try:
        finished = connecting.done.wait(seconds)
    except BaseException:
        if not connecting.give_up() and connecting.made is not None:
            connecting.made.close()
        raise
    if not finished and connecting.give_up():
        raise ServerSilent("no connection in time")
    if connecting.made is None:
        raise connecting.error or ServerSilent("no connection in time")
    return connecting.made
