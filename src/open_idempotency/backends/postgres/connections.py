"""The connections to one PostgreSQL database, and how they run one statement.

Connections are opened when they are needed: a few for each process, and a few for each event loop of each process.

No state of a session is needed, since a pooler in transaction mode may be in between. A statement that a connection
sends often is prepared there, which saves the server half of its work for a small call. A pooler may run the next
transaction in another session, where the statement is not prepared, or was prepared by another client. Then it is sent
again unprepared, and from then on none is prepared. The server reports such an error before it carries anything out.

Every wait is bounded here: the server's own limits need settings that such a pooler may not pass on, and a server that
has vanished sets none.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import pq

from open_idempotency._runtime.on_asyncio import within
from open_idempotency.backends._shared import sizes
from open_idempotency.backends._shared.psycopg_waits import (
    AsyncBoundedConnection,
    BoundedConnection,
    ServerSilent,
    check_release,
    result_of,
)
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.verbs import Row, Statement, rows
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge, first_line

check_release()

# One statement on one connection

#: seconds after which an idle connection is closed, and after which any is
IDLE, AGE = 600.0, 3600.0
#: for every connection; ``running`` prepares statements itself
ARGUMENTS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}

#: after so many times on one connection a statement is prepared
OFTEN = 5
#: no such prepared statement; its name exists already; the type of its result has changed since
_NOT_PREPARED = ("26000", "42P05", "0A000")

_MET = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_MISSING = (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
_READY = pq.ConnStatus.OK
_IDLE = pq.TransactionStatus.IDLE


class Busy(psycopg.OperationalError):
    """Every connection was in use for the whole time."""


class Preparing:
    """Whether statements that are sent often are prepared. One object for all connections of a pool."""

    __slots__ = ("possible",)

    def __init__(self, options: Options) -> None:
        self.possible = options.prepare


class _Kept:
    """A connection that is kept for the next call."""

    #: seconds on the monotonic clock: the last use, and when it is closed
    used = 0.0
    until = float("inf")

    pgconn: pq.abc.PGconn
    preparing: Preparing

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        super().__init__(pgconn)  # type: ignore[call-arg]  # to the library's own class, which comes next
        #: the names of prepared statements; and by name, how often each statement was sent plainly
        self.prepared: set[bytes] = set()
        self._sent: dict[bytes, int] = {}
        #: the names of statements for which the database lacked a migration when this connection sent them
        self.lacking: set[bytes] = set()

    def __del__(self, *unused: Any) -> None:
        """Raise no warning: libpq's own object closes itself, and only in the process that opened it."""

    def is_fresh(self, now: float) -> bool:
        """Whether another call may use it."""
        return bool(self.pgconn.status == _READY) and now < self.until

    def is_often_sent(self, statement: Statement) -> bool:
        """Whether to send the statement prepared, now that it is sent once more."""
        name = statement.name
        if name in self.prepared:
            return self.preparing.possible
        count = self._sent[name] = self._sent.get(name, 0) + 1
        return count > OFTEN and self.preparing.possible

    def is_clean(self) -> bool:
        """Whether the last call came to its end."""
        return bool(self.pgconn.status == _READY and self.pgconn.transaction_status == _IDLE)


class KeptConnection(_Kept, BoundedConnection):
    """A sync connection."""


class AsyncKeptConnection(_Kept, AsyncBoundedConnection):
    """An async connection."""


def running(
    connection: KeptConnection | AsyncKeptConnection, statement: Statement, parameters: list[bytes | None]
) -> Generator[Any, Any, list[Row]]:
    """Run one statement in a transaction of its own; for the connection's ``wait``. Raises ``psycopg.Error``.

    A database that lacks the latest migrations is sent the older form of the statement, for as long as this connection
    lives: a deploy may start its workers before it migrates (B-13).
    """
    if connection.lacking and statement.name in connection.lacking and statement.older is not None:
        statement = statement.older
        parameters = parameters[: len(statement.formats)]
    if connection.is_often_sent(statement):
        try:
            return rows((yield from _run_prepared(connection, statement, parameters)))
        except psycopg.Error as error:
            if error.sqlstate not in _NOT_PREPARED:
                raise
            connection.preparing.possible = False
    connection.pgconn.send_query_params(
        statement.text, parameters, param_formats=statement.formats, result_format=pq.Format.BINARY
    )
    try:
        return rows((yield from result_of(connection.pgconn)))
    except psycopg.errors.UndefinedFunction:
        if statement.older is None:
            raise
        connection.lacking.add(statement.name)
    return (yield from running(connection, statement, parameters))


def _run_prepared(
    connection: KeptConnection | AsyncKeptConnection, statement: Statement, parameters: list[bytes | None]
) -> Generator[Any, Any, pq.abc.PGresult]:
    pgconn = connection.pgconn
    if statement.name not in connection.prepared:
        pgconn.send_prepare(statement.name, statement.text)
        yield from result_of(pgconn)
        connection.prepared.add(statement.name)
    pgconn.send_query_prepared(
        statement.name, parameters, param_formats=statement.formats, result_format=pq.Format.BINARY
    )
    return (yield from result_of(pgconn))


class Tries:
    """The tries of one call, and the time for all of them. A call may be sent twice (B-08)."""

    __slots__ = ("_started", "_timeout", "until")

    def __init__(self, options: Options, until: float | None = None) -> None:
        self._timeout = options.timeout
        self._started = time.monotonic()
        self.until = self._started + 2 * self._timeout if until is None else until

    def left(self) -> float:
        """Seconds for the next step."""
        return max(0.0, min(self._timeout, self.until - time.monotonic()))

    def again(self, error: psycopg.Error, broken: bool) -> None:
        """Return if another try makes sense: there is time left, and the connection was broken before, as after a
        restart, or two calls conflicted, which is an error at a higher default isolation level of the database.

        Otherwise raises ``BackendUnavailable``.
        """
        if (broken or isinstance(error, _MET)) and not isinstance(error, ServerSilent):
            if time.monotonic() - self._started < self._timeout:
                return
        raise wrapped(error) from error


def wrapped(error: Exception) -> BackendUnavailable | RecordTooLarge:
    """The library's error as one of this package; the caller keeps it as the cause."""
    if sizes.is_refused(getattr(error, "sqlstate", None), str(error)):
        return sizes.too_large("PostgreSQL", error)
    hint = "; run `open-idempotency migrate` with the URL of the backend" if isinstance(error, _MISSING) else ""
    return BackendUnavailable(f"PostgreSQL: {type(error).__name__}: {first_line(error)}{hint}")


def was_refused(error: BackendUnavailable | RecordTooLarge) -> bool:
    """Whether the server itself refused the statement; another statement may succeed."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate is not None


# Connections, of a process and of an event loop

#: seconds between two tries to connect
_PAUSE = 0.05
K = TypeVar("K", KeptConnection, AsyncKeptConnection)


class _Idle(Generic[K]):
    """The idle connections; the one that was used last is used next."""

    def __init__(self) -> None:
        self._idle: list[K] = []
        self._closed = False

    def take(self) -> K | None:
        """An idle connection that can be used, or None."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_fresh(time.monotonic()):
                return connection
            connection.pgconn.finish()

    def give(self, connection: K) -> None:
        """Keep a connection for the next call, if it can be used again."""
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
    """The sync connections of one process."""

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
        """A new connection. If the server is starting, wait for it."""
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
            acquiring = asyncio.ensure_future(self._slots.acquire())
            try:
                await within(acquiring, tries.left())
            except asyncio.CancelledError:
                if acquiring.done() and not acquiring.cancelled():
                    self._slots.release()
                raise
            except TimeoutError:
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
        """A new connection. If the server is starting, wait for it."""
        until = time.monotonic() + tries.left()
        while True:
            try:
                left = max(0.0, until - time.monotonic())
                connecting = AsyncKeptConnection.connect(self._options.conninfo, **ARGUMENTS)
                connection = await within(connecting, left)
            except TimeoutError:
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
        """Note that the connection is no longer wanted. Returns false if it has been made."""
        with self._lock:
            self._given_up = self.made is None
            return self._given_up


def in_time(seconds: float, connect: Callable[[], KeptConnection]) -> KeptConnection:
    """Call ``connect`` in a thread of its own. Raises its errors, and ``ServerSilent`` after ``seconds``."""
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
