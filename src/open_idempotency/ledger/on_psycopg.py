"""The ledger on a psycopg connection of the application's, blocking or awaited.

Its cursors are of psycopg's own class, whatever ``cursor_factory`` and ``row_factory`` the application has set.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from open_idempotency._core.attempt import End
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.dialects import POSTGRESQL, Dialect
from open_idempotency.ledger.problems import explain, no_transaction
from open_idempotency.ledger.steps import Kept, Parameters, Rows

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

    def watch(self, kept: Kept | None) -> Callable[[], End]:
        """See ``Transaction.watch``; psycopg reports no commit and no rollback."""
        return lambda: End.UNTOLD

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

    def watch(self, kept: Kept | None) -> Callable[[], End]:
        """See ``Transaction.watch``; psycopg reports no commit and no rollback."""
        return lambda: End.UNTOLD

    async def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            try:
                await cursor.execute(_with_percents(statement), dict(parameters), binary=True)
            except psycopg.Error as error:
                explain(error, error, POSTGRESQL)
                raise
            return await cursor.fetchall() if cursor.description else []


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
