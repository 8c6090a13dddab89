"""The ledger on a psycopg connection of the application's, blocking or awaited.

Its cursors are of psycopg's own class, whatever ``cursor_factory`` and ``row_factory`` the application has set.
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
from open_idempotency.ledger.dialects import POSTGRESQL, Dialect
from open_idempotency.ledger.looking import in_thread_of_a_loop, is_seen
from open_idempotency.ledger.problems import explain, no_transaction
from open_idempotency.ledger.steps import Kept, Parameters, Rows

#: seconds for a connection on which is asked what became of a COMMIT
_PATIENCE = "2"
_UNTOLD = Watch(lambda: End.UNTOLD)
_NAMED = re.compile(r"(?<!:):(\w+)")


class PsycopgTransaction:
    """The transaction that the connection is in, or begins with its next statement."""

    awaited = False
    dialect: Dialect = POSTGRESQL

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.entered: object = None

    def current(self) -> object:
        """See ``Transaction.current``; the server tells one from another."""
        return True

    def watch(self, kept: Kept | None) -> Watch:
        """See ``Transaction.watch``."""
        return _watch(self._connection, kept)

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        with psycopg.Cursor(self._connection, row_factory=tuple_row) as cursor:
            try:
                cursor.execute(_with_percents(statement), dict(parameters), binary=True)
            except psycopg.Error as error:
                explain(error, error, POSTGRESQL)
                raise
            return cursor.fetchall() if cursor.description else []


class AsyncPsycopgTransaction:
    """The same, awaited."""

    awaited = True
    dialect: Dialect = POSTGRESQL

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self.entered: object = None

    def current(self) -> object:
        """See ``Transaction.current``; the server tells one from another."""
        return True

    def watch(self, kept: Kept | None) -> Watch:
        """See ``Transaction.watch``."""
        return _watch(self._connection, kept)

    async def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            try:
                await cursor.execute(_with_percents(statement), dict(parameters), binary=True)
            except psycopg.Error as error:
                explain(error, error, POSTGRESQL)
                raise
            return await cursor.fetchall() if cursor.description else []


def _watch(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], kept: Kept | None) -> Watch:
    """psycopg reports no commit and no rollback; the server can be asked on another connection."""
    if kept is None:
        return _UNTOLD
    where = connection.info.get_parameters()
    password = connection.info.password

    def ask() -> bool:
        there = make_conninfo(**{**where, "password": password, "connect_timeout": _PATIENCE})
        with psycopg.connect(there) as other:
            return is_seen(PsycopgTransaction(other), kept)

    return Watch(_UNTOLD.end, in_thread_of_a_loop(ask))


def transaction_of(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> PsycopgTransaction | AsyncPsycopgTransaction:
    """See ``transactions.transaction_of``."""
    if connection.closed:
        raise ConfigurationError("tx=: the psycopg connection is closed")
    if connection.info.pipeline_status is not PipelineStatus.OFF:
        raise ConfigurationError(
            "tx=: the psycopg connection is in pipeline mode, which tells no result; leave it first"
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
