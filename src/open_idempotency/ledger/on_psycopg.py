"""The ledger on a psycopg connection of the application, sync or async.

The cursors are psycopg's own, so that the application's ``cursor_factory`` and ``row_factory`` have no effect.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from open_idempotency._core.attempt import End, Watch
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.dialects import POSTGRESQL, Dialect, explain, no_transaction
from open_idempotency.ledger.steps import Parameters, Rows, StoredResponse, in_thread_on_a_loop, is_visible

#: seconds to connect, when the server is asked whether a COMMIT counted
_CONNECT_TIMEOUT = "2"
_NOT_REPORTED = Watch(lambda: End.UNREPORTED)
_NAMED = re.compile(r"(?<!:):(\w+)")


class PsycopgTransaction:
    """The transaction that a sync connection is in, or begins with its next statement."""

    awaited = False
    dialect: Dialect = POSTGRESQL

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.entered: object = None

    def current(self) -> object:
        """Constant: the number of the transaction, which the server returns, distinguishes transactions."""
        return True

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the end of the transaction."""
        return _watch(self._connection, stored)

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """Run a statement on the connection. Returns its rows."""
        with psycopg.Cursor(self._connection, row_factory=tuple_row) as cursor:
            try:
                cursor.execute(_with_percents(statement), dict(parameters), binary=True)
            except psycopg.Error as error:
                explain(error, error, POSTGRESQL)
                raise
            return cursor.fetchall() if cursor.description else []


class AsyncPsycopgTransaction:
    """The transaction that an async connection is in, or begins with its next statement."""

    awaited = True
    dialect: Dialect = POSTGRESQL

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self.entered: object = None

    def current(self) -> object:
        """Constant: the number of the transaction, which the server returns, distinguishes transactions."""
        return True

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the end of the transaction."""
        return _watch(self._connection, stored)

    async def execute(self, statement: str, parameters: Parameters) -> Rows:
        """Run a statement on the connection. Returns its rows."""
        async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            try:
                await cursor.execute(_with_percents(statement), dict(parameters), binary=True)
            except psycopg.Error as error:
                explain(error, error, POSTGRESQL)
                raise
            return await cursor.fetchall() if cursor.description else []


def _watch(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], stored: StoredResponse | None) -> Watch:
    """psycopg reports neither commits nor rollbacks, so the server is asked on another connection."""
    if stored is None:
        return _NOT_REPORTED
    parameters = connection.info.get_parameters()
    password = connection.info.password

    def ask() -> bool:
        conninfo = make_conninfo(**{**parameters, "password": password, "connect_timeout": _CONNECT_TIMEOUT})
        with psycopg.connect(conninfo) as other:
            return is_visible(PsycopgTransaction(other), stored)

    return Watch(_NOT_REPORTED.end, in_thread_on_a_loop(ask))


def transaction_of(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> PsycopgTransaction | AsyncPsycopgTransaction:
    """The transaction of a connection.

    Raises ``ConfigurationError`` if the connection is closed, is in pipeline mode, commits each statement by itself, or
    if its transaction has failed.
    """
    if connection.closed:
        raise ConfigurationError("tx=: the psycopg connection is closed")
    if connection.info.pipeline_status is not PipelineStatus.OFF:
        raise ConfigurationError(
            "tx=: the psycopg connection is in pipeline mode, which returns no results; leave it first"
        )
    status = connection.info.transaction_status
    if status is TransactionStatus.IDLE and connection.autocommit:
        raise no_transaction("the psycopg connection", "use it in `with connection.transaction():`")
    if status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
        raise ConfigurationError(
            f"tx=: the psycopg connection cannot be used: its transaction is {status.name}; roll it back"
        )
    if isinstance(connection, psycopg.AsyncConnection):
        return AsyncPsycopgTransaction(connection)
    return PsycopgTransaction(connection)


@lru_cache(maxsize=32)
def _with_percents(statement: str) -> bytes:
    return _NAMED.sub(r"%(\1)s", statement.replace("%", "%%")).encode()
