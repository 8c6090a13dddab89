"""The ledger on a ``sqlite3.Connection`` of the application's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import quote

from open_idempotency._core.attempt import End, Watch
from open_idempotency.ledger.dialects import SQLITE, Dialect
from open_idempotency.ledger.problems import explain, no_transaction
from open_idempotency.ledger.steps import Kept, Parameters, Rows

#: seconds to wait for a lock where a file is asked, which may be on an event loop
_PATIENCE = 0.01
_RESPONSE = "SELECT response FROM open_idempotency_ledger WHERE record_id = ?"


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

    def watch(self, kept: Kept | None) -> Watch:
        """See ``Transaction.watch``. The connection reports no commit, so the file is asked for a response."""
        path = None if kept is None else _path(self._connection)
        if getattr(self._connection, "autocommit", -1) != -1:  # every statement is in some transaction
            return Watch(lambda: _end_in(path, kept))
        return Watch(lambda: End.OPEN if self._is_open() else _end_in(path, kept))

    def _is_open(self) -> bool:
        try:
            return self._connection.in_transaction
        except sqlite3.ProgrammingError:  # closed, or in another thread
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


def _path(connection: sqlite3.Connection) -> str:
    """The file that the ledger is in; empty for a database in memory."""
    cursor = connection.cursor()
    cursor.row_factory = None
    files = {name: path for _, name, path in cursor.execute("PRAGMA database_list")}
    return files.get("main") or ""


def _end_in(path: str | None, kept: Kept | None) -> End:
    """Whether the file has the response: what another connection sees was committed."""
    if not path or kept is None:
        return End.UNTOLD
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=_PATIENCE)) as connection:
            found = connection.execute(_RESPONSE, (kept.record_id,)).fetchone()
    except sqlite3.Error:  # locked, or not to be read without what the application's connection was given
        return End.UNTOLD
    return End.COMMITTED if found is not None and found[0] == kept.response else End.ROLLED_BACK


def transaction_of(connection: sqlite3.Connection) -> SqliteTransaction:
    """See ``transactions.transaction_of``."""
    if not connection.in_transaction and _commits_by_itself(connection):
        raise no_transaction("the sqlite3 connection", "execute BEGIN first, or leave isolation_level at its default")
    return SqliteTransaction(connection)


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    # Since Python 3.12 there is `autocommit`, whose value -1 means: as isolation_level says.
    autocommit = getattr(connection, "autocommit", -1)
    return connection.isolation_level is None if autocommit == -1 else bool(autocommit)
