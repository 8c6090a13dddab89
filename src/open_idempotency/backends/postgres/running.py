"""What both kinds of connection share: how one statement is run, what an error means, and when another try makes sense.

Statements are never prepared on the server, and nothing of a session is used, since a pooler in transaction mode may
stand in between. Every wait is bounded here: the server's own limits need settings that such a pooler may not pass on,
and a server that has vanished sets none.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import generators, pq
from psycopg.errors import error_from_result

from open_idempotency.backends.postgres.encoding import Row, rows
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.psycopg_waits import AsyncBoundedConnection, BoundedConnection, ServerSilent
from open_idempotency.exceptions import BackendUnavailable

#: seconds after which an idle connection is closed, and after which any is
IDLE, AGE = 600.0, 3600.0
#: for every connection; how it may be used is up to `running`
ARGUMENTS: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}

_MET = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_MISSING = (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
_TUPLES, _COMMAND = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK
_READY = pq.ConnStatus.OK
_IDLE = pq.TransactionStatus.IDLE


class Busy(psycopg.OperationalError):
    """Every connection was in use for the whole time."""


class _Kept:
    """A connection that is kept for the next call."""

    #: seconds on the monotonic clock: the last use, and when it is closed
    used = 0.0
    until = float("inf")

    pgconn: pq.abc.PGconn

    def __del__(self, *unused: Any) -> None:
        """Nothing to warn of: libpq's own object closes itself, and only in the process that opened it."""

    def is_fresh(self, now: float) -> bool:
        """Whether another call may use it."""
        return bool(self.pgconn.status == _READY) and now < self.until

    def is_clean(self) -> bool:
        """Whether the last call came to its end."""
        return bool(self.pgconn.status == _READY and self.pgconn.transaction_status == _IDLE)


class KeptConnection(_Kept, BoundedConnection):
    """The blocking one."""


class AsyncKeptConnection(_Kept, AsyncBoundedConnection):
    """The awaited one."""


def running(
    connection: KeptConnection | AsyncKeptConnection, text: bytes, parameters: list[bytes | None], formats: list[int]
) -> Generator[Any, Any, list[Row]]:
    """Run one statement in a transaction of its own; for the connection's ``wait``. Raises ``psycopg.Error``."""
    connection.pgconn.send_query_params(text, parameters, param_formats=formats, result_format=pq.Format.BINARY)
    result = (yield from generators.execute(connection.pgconn))[-1]
    if result.status not in (_TUPLES, _COMMAND):
        raise error_from_result(result)
    return rows(result)


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


def wrapped(error: Exception) -> BackendUnavailable:
    """The library's error as ours; the caller keeps it as the cause."""
    hint = "; run `open-idempotency migrate` with the URL of the backend" if isinstance(error, _MISSING) else ""
    return BackendUnavailable(f"PostgreSQL: {type(error).__name__}: {str(error).strip()}{hint}")


def was_refused(error: BackendUnavailable) -> bool:
    """Whether the server itself said no, to a statement; another may do better."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate is not None
