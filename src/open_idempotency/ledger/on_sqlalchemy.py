"""The ledger on a session or connection of SQLAlchemy, sync or async; and its tables as SQLAlchemy metadata.

A session may have several databases, and may send reads to a replica (``get_bind``). The ledger has to be in the
database that the session writes to, so all its statements run on the connection for an UPDATE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import (
    BigInteger,
    Column,
    CursorResult,
    Double,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    TextClause,
    column,
    event,
    table,
    text,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Connection, Engine, ExceptionContext, RootTransaction
from sqlalchemy.engine import Dialect as SqlalchemyDialect
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.schema import BLANK_SCHEMA
from sqlalchemy.types import TypeEngine

from open_idempotency._core.attempt import End, Watch
from open_idempotency._runtime.loops import current_library
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.dialects import Dialect, dialect_named, explain, no_transaction
from open_idempotency.ledger.steps import (
    Parameters,
    Rows,
    StoredResponse,
    ais_visible,
    in_thread_on_a_loop,
    is_visible,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session, async_sessionmaker
    from typing_extensions import TypeIs

    AsyncTx = AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection
    #: these are callable, so a decorator could mistake one for a callable that returns a transaction
    Makers = sessionmaker[Session] | async_sessionmaker[AsyncSession]

SyncTx = Session | scoped_session[Session] | Connection

#: a statement that shows which database a session writes to; never executed
_WRITE = update(table("open_idempotency_ledger", column("token"))).values(token=0)


class SqlalchemyTransaction:
    """The transaction that a sync session or connection is in, or begins with its next statement."""

    awaited = False

    def __init__(self, tx: SyncTx, dialect: Dialect) -> None:
        self._tx = tx
        self.dialect = dialect
        self.entered: object = None
        #: the connection of the last statement
        self._connection: Connection

    def current(self) -> object:
        """SQLAlchemy's transaction object; None outside of a transaction."""
        return _current(self._tx)

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the end of the transaction."""
        end = _watch_end(self._connection, _session_or_connection(self._tx))
        engine, dialect = self._connection.engine, self.dialect
        if stored is None:
            return Watch(end)

        def ask() -> bool:
            if end() is not End.DOUBTFUL:
                return False
            with engine.connect() as other:
                return is_visible(SqlalchemyTransaction(other, dialect), stored)

        return Watch(end, in_thread_on_a_loop(ask))

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """Run a statement on the connection of the transaction. Returns its rows."""
        try:
            self._connection = _connection(self._tx)
            return _rows(self._connection.execute(_clause(statement), dict(parameters)))
        except DBAPIError as error:
            _explain(error, self.dialect)
            raise


class AsyncSqlalchemyTransaction:
    """The transaction that an async session or connection is in, or begins with its next statement."""

    awaited = True

    def __init__(self, tx: AsyncTx, dialect: Dialect) -> None:
        self._tx = tx
        self.dialect = dialect
        self.entered: object = None
        #: the connection of the last statement
        self._connection: Connection

    def current(self) -> object:
        """SQLAlchemy's transaction object; None outside of a transaction."""
        return _current(_inner(self._tx))

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the end of the transaction."""
        end = _watch_end(self._connection, _session_or_connection(_inner(self._tx)))
        engine, dialect = self._connection.engine, self.dialect
        if stored is None:
            return Watch(end)

        async def ask() -> bool:
            if end() is not End.DOUBTFUL:
                return False
            from sqlalchemy.ext.asyncio import AsyncEngine

            async with AsyncEngine(engine).connect() as other:
                return await ais_visible(AsyncSqlalchemyTransaction(other, dialect), stored)

        # A sync adapter settles after the event loop of the view has ended; then the database cannot be asked.
        return Watch(end, lambda: False if current_library() is None else ask())

    async def execute(self, statement: str, parameters: Parameters) -> Rows:
        """Run a statement on the connection of the transaction. Returns its rows."""

        def run(tx: Session | Connection) -> Rows:
            self._connection = _connection(tx)
            return _rows(self._connection.execute(_clause(statement), dict(parameters)))

        # In one step: a session may have another connection after each COMMIT or ROLLBACK.
        tx = self._tx() if _is_scoped(self._tx) else self._tx
        try:
            return await tx.run_sync(run)
        except DBAPIError as error:
            _explain(error, self.dialect)
            raise


def transaction_of(tx: SyncTx | AsyncTx | Makers) -> SqlalchemyTransaction | AsyncSqlalchemyTransaction:
    """The transaction of a session or connection.

    Raises ``ConfigurationError`` for a session maker, a transaction that has failed, a connection that commits each
    statement by itself, or a database that the ledger does not support.
    """
    if _is_maker(tx):
        raise ConfigurationError(
            f"tx=: {type(tx).__name__} makes another session each time; give tx= the session that has your rows, in a "
            "decorator a callable that returns it, as tx=lambda session, order: session"
        )
    if _is_async(tx):
        return AsyncSqlalchemyTransaction(tx, _dialect(_inner(tx)))
    return SqlalchemyTransaction(tx, _dialect(tx))


def _inner(tx: AsyncTx) -> SyncTx:
    """The sync object behind an async one."""
    if _is_scoped(tx):
        tx = tx()
    if _is_session(tx):
        return tx.sync_session
    if tx.sync_connection is None:
        raise no_transaction("the SQLAlchemy connection, which was not started,", "use it in `async with`")
    return tx.sync_connection


# The module of async sessions cannot be imported without greenlet. An application that has one has imported it.


def _is_one(tx: object, *names: str) -> bool:
    library: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    return library is not None and isinstance(tx, tuple(getattr(library, name) for name in names))


def _is_async(tx: object) -> TypeIs[AsyncTx]:
    return _is_one(tx, "AsyncSession", "async_scoped_session", "AsyncConnection")


def _is_scoped(tx: object) -> TypeIs[async_scoped_session[AsyncSession]]:
    return _is_one(tx, "async_scoped_session")


def _is_session(tx: object) -> TypeIs[AsyncSession]:
    return _is_one(tx, "AsyncSession")


def _is_maker(tx: object) -> TypeIs[Makers]:
    return isinstance(tx, sessionmaker) or _is_one(tx, "async_sessionmaker")


def _session_or_connection(tx: SyncTx) -> Session | Connection:
    return tx() if isinstance(tx, scoped_session) else tx


def _dialect(tx: SyncTx) -> Dialect:
    tx = _session_or_connection(tx)
    if isinstance(tx, Session):
        _check_session(tx)
        return dialect_named(tx.get_bind(clause=_WRITE).dialect.name)
    if _commits_by_itself(tx):
        raise no_transaction("the SQLAlchemy connection (AUTOCOMMIT)", "use a connection that begins one")
    return dialect_named(tx.dialect.name)


def _check_session(session: Session) -> None:
    if not session.is_active:
        raise ConfigurationError("tx=: the SQLAlchemy session's transaction has failed; roll it back first")
    if not session.in_transaction() and not session.autobegin:
        raise no_transaction("the SQLAlchemy session", "use it in `with session.begin():`")
    try:
        session.get_bind(clause=_WRITE)
    except InvalidRequestError as error:
        raise ConfigurationError(
            "tx=: the SQLAlchemy session has no database for the ledger; give tx= the connection that has your rows, "
            f"session.connection(bind_arguments={{'mapper': YourModel}}) ({error})"
        ) from error


def _commits_by_itself(connection: Connection) -> bool:
    level = connection.get_execution_options().get("isolation_level")
    # create_engine(isolation_level=...) has no public attribute, and asking the database costs a round trip.
    return (level or getattr(connection.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


def _connection(tx: SyncTx) -> Connection:
    """The connection of the transaction, which a session begins if necessary."""
    if isinstance(tx, Connection):
        return tx
    connection = tx.connection(bind_arguments={"clause": _WRITE})
    if _commits_by_itself(connection):  # by its engine, or by the options of this one transaction
        raise no_transaction("the SQLAlchemy session (AUTOCOMMIT)", "use a connection that begins transactions")
    return connection


def _current(tx: SyncTx) -> object:
    """The outermost transaction; savepoints do not count."""
    return _session_or_connection(tx).get_transaction()


def _rows(result: Any) -> Rows:
    return result.fetchall() if isinstance(result, CursorResult) and result.returns_rows else []


def _explain(error: DBAPIError, dialect: Dialect) -> None:
    """Raise a clearer error where ``explain`` has one; otherwise hide the parameters, which may hold response bytes."""
    error.hide_parameters = True
    # Only the driver's error is examined. SQLAlchemy's text contains the statement, so it always names the ledger's
    # tables.
    explain(error, error.orig, dialect)


@lru_cache(maxsize=32)
def _clause(statement: str) -> TextClause:
    return text(statement)


# The end of a transaction, as SQLAlchemy's events report it
#
# The connection's own transaction decides. A session on a connection whose transaction has begun already
# (``Session(bind=connection)``) commits nothing itself, and its rows are lost if the connection, or a savepoint around
# them, is rolled back. The session reports two things that the connection cannot know: that the session was closed
# without a commit or rollback, and that it has committed while a test keeps the connection's transaction open.


class _SessionEndCount:
    """How many transactions a session has committed or rolled back, savepoints excluded."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class _Watched:
    """One transaction of a connection, observed from now on."""

    __slots__ = ("end", "savepoints", "transaction")

    def __init__(self, connection: Connection) -> None:
        transaction = connection.get_transaction()
        # Weak: the transaction refers to its connection, which is the key that keeps this object alive.
        self.transaction = None if transaction is None else ref(transaction)
        self.end = End.OPEN
        #: savepoints that were begun since, and are still open
        self.savepoints = 0

    def is_of(self, transaction: RootTransaction) -> bool:
        """Whether ``transaction`` is the watched one."""
        return self.transaction is not None and self.transaction() is transaction

    def ends(self, end: End) -> None:
        """Note the end. Only the first counts: after a rollback to an outer savepoint, a COMMIT commits nothing."""
        if self.end is End.OPEN:
            self.end = end

    def began_savepoint(self) -> None:
        """A savepoint within the watched part was begun."""
        self.savepoints += 1

    def left_savepoint(self, end: End | None) -> None:
        """The innermost savepoint has ended. ``end``: the end of the watched part, if the savepoint was around it."""
        if self.savepoints:
            self.savepoints -= 1
        elif end is not None:
            self.ends(end)

    def failed(self) -> None:
        """A COMMIT raised. SQLAlchemy reports a commit before it sends it, so the commit may have failed."""
        if self.end is End.COMMITTED:
            self.end = End.DOUBTFUL


_session_ends: WeakKeyDictionary[Session, _SessionEndCount] = WeakKeyDictionary()
_watched_on: WeakKeyDictionary[Connection, list[_Watched]] = WeakKeyDictionary()
# Listeners are added once for each engine and dialect and for all sessions, since adding one costs as much as a few
# statements.
_engines_with_listeners: WeakSet[Engine] = WeakSet()
_dialects_with_listeners: WeakSet[SqlalchemyDialect] = WeakSet()


def _watch_end(connection: Connection, tx: Session | Connection) -> Callable[[], End]:
    """A function that reports the end of the present transaction. ``tx``: ``connection``, or a session that uses it."""
    watched = _Watched(connection)
    _listen(connection.engine)
    _watched_on[connection] = [*_present(connection), watched]  # earlier transactions have ended
    if isinstance(tx, Connection):
        return lambda: watched.end
    if not event.contains(Session, "after_commit", _note_session):
        for name in ("after_commit", "after_rollback"):
            event.listen(Session, name, _note_session)
    session = _session_ends.get(tx)
    if session is None:
        session = _session_ends[tx] = _SessionEndCount()
    known, before = session, session.count
    return lambda: _end(watched.end, known.count == before)


def _end(connection: End, silent: bool) -> End:
    """The end, from both reports. ``silent``: the session has neither committed nor rolled back."""
    if silent and connection is End.ROLLED_BACK:  # the session was closed
        return End.OPEN
    if not silent and connection is End.OPEN:  # the transaction was begun elsewhere, such as by a test's fixture
        return End.UNREPORTED
    return connection


def _listen(engine: Engine) -> None:
    if engine not in _engines_with_listeners:
        _engines_with_listeners.add(engine)
        for name, note in _NOTES.items():
            event.listen(engine, name, note)
    if engine.dialect not in _dialects_with_listeners:
        _dialects_with_listeners.add(engine.dialect)
        event.listen(engine, "handle_error", _note_error)


def _note_session(session: Session) -> None:
    known = _session_ends.get(session)
    if known is not None and not session.in_nested_transaction():
        known.count += 1


def _present(connection: Connection) -> list[_Watched]:
    """The watched parts of the transaction that the connection is in."""
    transaction = connection.get_transaction()
    if transaction is None:
        return []
    return [watched for watched in _watched_on.get(connection, ()) if watched.is_of(transaction)]


def _note_error(context: ExceptionContext) -> None:
    if context.statement is None and context.connection is not None:
        for watched in _present(context.connection):
            watched.failed()


def _note_commit(connection: Connection, *_: Any) -> None:
    for watched in _present(connection):
        watched.ends(End.COMMITTED)


def _note_rollback(connection: Connection, *_: Any) -> None:
    for watched in _present(connection):
        watched.ends(End.ROLLED_BACK)


def _note_savepoint(connection: Connection, *_: Any) -> None:
    for watched in _present(connection):
        watched.began_savepoint()


def _note_release(connection: Connection, *_: Any) -> None:
    for watched in _present(connection):
        watched.left_savepoint(None)


def _note_rollback_to(connection: Connection, *_: Any) -> None:
    for watched in _present(connection):
        watched.left_savepoint(End.ROLLED_BACK)


_NOTES: Mapping[str, Callable[..., None]] = {
    "commit": _note_commit,
    "commit_twophase": _note_commit,
    "rollback": _note_rollback,
    "rollback_twophase": _note_rollback,
    "savepoint": _note_savepoint,
    "release_savepoint": _note_release,
    "rollback_savepoint": _note_rollback_to,
}


# The tables

# In MySQL only InnoDB has transactions, and the server's default engine may be another one.
_ENGINE = "InnoDB"


def add_tables(into: MetaData | None) -> MetaData:
    """Add the ledger's tables, equal to the scripts in ``sql/``, to metadata that lacks them."""
    metadata = MetaData() if into is None else into
    if "open_idempotency_ledger" not in metadata.tables:
        _add(metadata)
    return metadata


def _add(metadata: MetaData) -> None:
    # Without the application's default schema: the ledger's statements name no schema, so the search path decides.
    Table(
        "open_idempotency_ledger",
        metadata,
        Column("record_id", _bytes(64), primary_key=True),
        Column("token", BigInteger, nullable=False),
        Column("fingerprint", _bytes(128), nullable=False),
        Column("response", _long_bytes()),
        Column("expires_at", Double, nullable=False),
        Index("open_idempotency_ledger_expires_at", "expires_at"),
        schema=BLANK_SCHEMA,
        mysql_engine=_ENGINE,
        mariadb_engine=_ENGINE,
    )
    Table(
        "open_idempotency_ledger_stages",
        metadata,
        Column("record_id", _bytes(64), primary_key=True),
        Column("stage_id", _bytes(32), primary_key=True),
        Column("name", _text(), nullable=False),
        Column("stage_key", _text(), nullable=False),
        Column("frame", _long_bytes()),
        schema=BLANK_SCHEMA,
        mysql_engine=_ENGINE,
        mariadb_engine=_ENGINE,
    )


def _text() -> TypeEngine[str]:
    """Text of any characters, whatever the character set of the database."""
    return String(200).with_variant(mysql.VARCHAR(200, charset="utf8mb4"), "mysql", "mariadb")


def _bytes(length: int) -> TypeEngine[bytes]:
    """Bytes that can be part of a key: MySQL does not index blobs."""
    return LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def _long_bytes() -> TypeEngine[bytes]:
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
