"""The ledger on a ``sqlite3.Connection`` of the application."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from urllib.parse import quote

from open_idempotency._core.attempt import End, Watch
from open_idempotency.ledger.dialects import SQLITE, Dialect, explain, no_transaction
from open_idempotency.ledger.steps import Parameters, Rows, StoredResponse

#: seconds to wait for a lock when the file is read, which may happen on an event loop
_LOCK_TIMEOUT = 0.01
_RESPONSE = "SELECT response FROM open_idempotency_ledger WHERE record_id = ?"


class SqliteTransaction:
    """The transaction that a connection is in, or begins with its next write."""

    awaited = False
    dialect: Dialect = SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.entered: object = None

    def current(self) -> object:
        """Whether there is a transaction. If a block ends one and begins another, this does not notice it."""
        return self._connection.in_transaction or None

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the end of the transaction. The connection reports no commit, so the file is read."""
        path = None if stored is None else _path(self._connection)
        if getattr(self._connection, "autocommit", -1) != -1:  # every statement is in some transaction
            return Watch(lambda: _end_in(path, stored))
        return Watch(lambda: End.OPEN if self._is_open() else _end_in(path, stored))

    def _is_open(self) -> bool:
        try:
            return self._connection.in_transaction
        except sqlite3.ProgrammingError:  # closed, or in another thread
            return False

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """Run a statement on the connection. Returns its rows."""
        cursor = self._connection.cursor()
        cursor.row_factory = None  # the application's row factory may return any type
        try:
            return cursor.execute(statement, dict(parameters)).fetchall()
        except sqlite3.OperationalError as error:
            explain(error, error, SQLITE)
            raise


def _path(connection: sqlite3.Connection) -> str:
    """The path of the database file; empty for a database in memory."""
    cursor = connection.cursor()
    cursor.row_factory = None
    files = {name: path for _, name, path in cursor.execute("PRAGMA database_list")}
    return files.get("main") or ""


def _end_in(path: str | None, stored: StoredResponse | None) -> End:
    """Committed if the file has the response, since another connection sees only what was committed."""
    if not path or stored is None:
        return End.UNREPORTED
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=_LOCK_TIMEOUT)) as connection:
            found = connection.execute(_RESPONSE, (stored.record_id,)).fetchone()
    except sqlite3.Error:  # locked, or readable only with settings of the application's connection
        return End.UNREPORTED
    return End.COMMITTED if found is not None and found[0] == stored.response else End.ROLLED_BACK


def transaction_of(connection: sqlite3.Connection) -> SqliteTransaction:
    """The transaction of a connection. Raises ``ConfigurationError`` if it commits each statement by itself."""
    if not connection.in_transaction and _commits_by_itself(connection):
        raise no_transaction("the sqlite3 connection", "execute BEGIN first, or leave isolation_level at its default")
    return SqliteTransaction(connection)


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    # Python 3.12 added `autocommit`; its value -1 means that isolation_level decides.
    autocommit = getattr(connection, "autocommit", -1)
    return connection.isolation_level is None if autocommit == -1 else bool(autocommit)
