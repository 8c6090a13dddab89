"""The ledger on a ``sqlite3.Connection`` of the application's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from open_idempotency.ledger.dialects import SQLITE, Dialect
from open_idempotency.ledger.problems import explain, no_transaction
from open_idempotency.ledger.steps import Parameters, Rows


class SqliteTransaction:
    """The transaction that the connection is in, or begins with its next write."""

    awaited = False
    dialect: Dialect = SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.entered: object = None

    def current(self) -> object:
        """See ``Transaction.current``; a block that ends one and begins another is not noticed here."""
        return self._connection.in_transaction or None

    def watch(self) -> Callable[[], bool]:
        """See ``Transaction.watch``; where every statement is in some transaction, none can be told from another."""
        return self._is_open if getattr(self._connection, "autocommit", -1) == -1 else lambda: False

    def _is_open(self) -> bool:
        try:
            return self._connection.in_transaction
        except sqlite3.ProgrammingError:  # in another thread
            return False

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        cursor = self._connection.cursor()
        cursor.row_factory = None  # the application's may make anything of a row
        try:
            return cursor.execute(statement, dict(parameters)).fetchall()
        except sqlite3.OperationalError as error:
            explain(error, error, SQLITE)
            raise


def transaction_of(connection: sqlite3.Connection) -> SqliteTransaction:
    """See ``transactions.transaction_of``."""
    if not connection.in_transaction and _commits_by_itself(connection):
        raise no_transaction("the sqlite3 connection", "execute BEGIN first, or leave isolation_level at its default")
    return SqliteTransaction(connection)


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    # Since Python 3.12 there is `autocommit`, whose value -1 means: as isolation_level says.
    autocommit = getattr(connection, "autocommit", -1)
    return connection.isolation_level is None if autocommit == -1 else bool(autocommit)
