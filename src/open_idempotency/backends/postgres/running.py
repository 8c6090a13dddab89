"""How sync and async connections run one statement, what an error means, and when another try makes sense.

Nothing of a session is needed, since a pooler in transaction mode may stand in between. A statement that a connection
sends often is prepared there, which saves the server half of its work for a small call. A pooler may run the next
transaction in another session, where the statement is not prepared, or was by another client. Then it is sent plainly,
at once, and from then on nothing is prepared any more. Such an error comes before anything is carried out.

Every wait is bounded here: the server's own limits need settings that such a pooler may not pass on, and a server that
has vanished sets none.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import pq

from open_idempotency.backends._shared import sizes
from open_idempotency.backends._shared.psycopg_waits import (
    AsyncBoundedConnection,
    BoundedConnection,
    ServerSilent,
    check_release,
    result_of,
)
from open_idempotency.backends.postgres.encoding import Row, Statement, rows
from open_idempotency.backends.postgres.options import Options
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge, first_line

check_release()

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
    """Whether statements that are sent often are prepared; for all connections of a pool."""

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

    def __del__(self, *unused: Any) -> None:
        """No warning: libpq's own object closes itself, and only in the process that opened it."""

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
    """A blocking connection."""


class AsyncKeptConnection(_Kept, AsyncBoundedConnection):
    """An async connection."""


def running(
    connection: KeptConnection | AsyncKeptConnection, statement: Statement, parameters: list[bytes | None]
) -> Generator[Any, Any, list[Row]]:
    """Run one statement in a transaction of its own; for the connection's ``wait``. Raises ``psycopg.Error``."""
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
    return rows((yield from result_of(connection.pgconn)))


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
    """The tries of one call, which may be sent twice (B-08), and the time that all of them have."""

    __slots__ = ("_started", "_timeout", "until")

    def __init__(self, options: Options, until: float | None = None) -> None:
        self._timeout = options.timeout
        self._started = time.monotonic()
        self.until = self._started + 2 * self._timeout if until is None else until

    def left(self) -> float:
        """Seconds for the next step."""
        return max(0.0, min(self._timeout, self.until - time.monotonic()))

    def again(self, error: psycopg.Error, broken: bool) -> None:
        """Return where another try makes sense: the connection was broken before, as after a restart, or two calls met,
        which is an error where the database's default isolation is a higher one; and there is time left.

        Else raises ``BackendUnavailable``.
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
