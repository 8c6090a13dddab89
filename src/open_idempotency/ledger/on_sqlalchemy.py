"""The ledger on a session or connection of SQLAlchemy's, blocking or awaited.

A session may have several databases, and send what only reads to a replica (``get_bind``). The ledger has to be where
it writes, whatever a statement of the ledger's is, so each of them runs on the connection for an UPDATE.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import CursorResult, TextClause, column, table, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from open_idempotency._core.attempt import End, Watch
from open_idempotency._perform.loops import current_library
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.dialects import Dialect
from open_idempotency.ledger.looking import ais_seen, in_thread_of_a_loop, is_seen
from open_idempotency.ledger.problems import dialect_named, explain, no_transaction
from open_idempotency.ledger.sqlalchemy_ends import watch
from open_idempotency.ledger.steps import Kept, Parameters, Rows

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session, async_sessionmaker
    from typing_extensions import TypeIs

    Awaited = AsyncSession | async_scoped_session[AsyncSession] | AsyncConnection
    #: they can be called, and so would be taken for what makes the transaction of a decorator's call
    Makers = sessionmaker[Session] | async_sessionmaker[AsyncSession]

Blocking = Session | scoped_session[Session] | Connection

#: what a session is shown to find out where it writes; never executed
_WRITE = update(table("open_idempotency_ledger", column("token"))).values(token=0)


class SqlalchemyTransaction:
    """The transaction that the session or connection is in, or begins with its next statement."""

    awaited = False

    def __init__(self, tx: Blocking, dialect: Dialect) -> None:
        self._tx = tx
        self.dialect = dialect
        self.entered: object = None
        #: the one that the last statement ran on
        self._connection: Connection

    def current(self) -> object:
        """See ``Transaction.current``."""
        return _current(self._tx)

    def watch(self, kept: Kept | None) -> Watch:
        """See ``Transaction.watch``."""
        end = watch(self._connection, _session_or_connection(self._tx))
        engine, dialect = self._connection.engine, self.dialect
        if kept is None:
            return Watch(end)

        def ask() -> bool:
            if end() is not End.DOUBTFUL:
                return False
            with engine.connect() as other:
                return is_seen(SqlalchemyTransaction(other, dialect), kept)

        return Watch(end, in_thread_of_a_loop(ask))

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        try:
            self._connection = _connection(self._tx)
            return _rows(self._connection.execute(_clause(statement), dict(parameters)))
        except DBAPIError as error:
            _explain(error, self.dialect)
            raise


class AsyncSqlalchemyTransaction:
    """The same, awaited."""

    awaited = True

    def __init__(self, tx: Awaited, dialect: Dialect) -> None:
        self._tx = tx
        self.dialect = dialect
        self.entered: object = None
        #: the one that the last statement ran on
        self._connection: Connection

    def current(self) -> object:
        """See ``Transaction.current``."""
        return _current(_inner(self._tx))

    def watch(self, kept: Kept | None) -> Watch:
        """See ``Transaction.watch``."""
        end = watch(self._connection, _session_or_connection(_inner(self._tx)))
        engine, dialect = self._connection.engine, self.dialect
        if kept is None:
            return Watch(end)

        async def ask() -> bool:
            if end() is not End.DOUBTFUL:
                return False
            from sqlalchemy.ext.asyncio import AsyncEngine

            async with AsyncEngine(engine).connect() as other:
                return await ais_seen(AsyncSqlalchemyTransaction(other, dialect), kept)

        # Whose loop is over by the time that its blocking adapter settles cannot be asked.
        return Watch(end, lambda: False if current_library() is None else ask())

    async def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""

        def run(tx: Session | Connection) -> Rows:
            self._connection = _connection(tx)
            return _rows(self._connection.execute(_clause(statement), dict(parameters)))

        # Both in one: a session may give another connection after each COMMIT or ROLLBACK.
        tx = self._tx() if _is_scoped(self._tx) else self._tx
        try:
            return await tx.run_sync(run)
        except DBAPIError as error:
            _explain(error, self.dialect)
            raise


def transaction_of(tx: Blocking | Awaited | Makers) -> SqlalchemyTransaction | AsyncSqlalchemyTransaction:
    """See ``transactions.transaction_of``."""
    if _is_maker(tx):
        raise ConfigurationError(
            f"tx=: {type(tx).__name__} makes another session each time; give tx= the session that has your rows, in a "
            "decorator a callable that returns it, as tx=lambda session, order: session"
        )
    if _is_awaited(tx):
        return AsyncSqlalchemyTransaction(tx, _dialect(_inner(tx)))
    return SqlalchemyTransaction(tx, _dialect(tx))


def _inner(tx: Awaited) -> Blocking:
    """The blocking object that an awaited one stands before."""
    if _is_scoped(tx):
        tx = tx()
    if _is_session(tx):
        return tx.sync_session
    if tx.sync_connection is None:
        raise no_transaction("the SQLAlchemy connection, which was not started,", "use it in `async with`")
    return tx.sync_connection


# Awaited sessions come from a module that cannot be imported without greenlet; who has one has imported it.


def _is_one(tx: object, *names: str) -> bool:
    library: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    return library is not None and isinstance(tx, tuple(getattr(library, name) for name in names))


def _is_awaited(tx: object) -> TypeIs[Awaited]:
    return _is_one(tx, "AsyncSession", "async_scoped_session", "AsyncConnection")


def _is_scoped(tx: object) -> TypeIs[async_scoped_session[AsyncSession]]:
    return _is_one(tx, "async_scoped_session")


def _is_session(tx: object) -> TypeIs[AsyncSession]:
    return _is_one(tx, "AsyncSession")


def _is_maker(tx: object) -> TypeIs[Makers]:
    return isinstance(tx, sessionmaker) or _is_one(tx, "async_sessionmaker")


def _session_or_connection(tx: Blocking) -> Session | Connection:
    return tx() if isinstance(tx, scoped_session) else tx


def _dialect(tx: Blocking) -> Dialect:
    tx = _session_or_connection(tx)
    if isinstance(tx, Session):
        _check_session(tx)
        return dialect_named(tx.get_bind(clause=_WRITE).dialect.name)
    if _commits_by_itself(tx):
        raise no_transaction("the SQLAlchemy connection (AUTOCOMMIT)", "take a connection that begins one")
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
    # What create_engine(isolation_level=...) was given has no public name, and asking the database costs a round trip.
    return (level or getattr(connection.dialect, "_on_connect_isolation_level", None)) == "AUTOCOMMIT"


def _connection(tx: Blocking) -> Connection:
    """The connection of the transaction; a session begins it if it has to."""
    if isinstance(tx, Connection):
        return tx
    connection = tx.connection(bind_arguments={"clause": _WRITE})
    if _commits_by_itself(connection):  # by its engine, or by what the session was asked for this one transaction
        raise no_transaction("the SQLAlchemy session (AUTOCOMMIT)", "take a connection that begins transactions")
    return connection


def _current(tx: Blocking) -> object:
    """Its transaction; savepoints are none."""
    return _session_or_connection(tx).get_transaction()


def _rows(result: Any) -> Rows:
    return result.fetchall() if isinstance(result, CursorResult) and result.returns_rows else []


def _explain(error: DBAPIError, dialect: Dialect) -> None:
    """Raise what it is of the caller's transaction; what it says otherwise has no answer or value in it."""
    error.hide_parameters = True
    # Its own text has the statement in it, and so always a name of ours.
    explain(error, error.orig, dialect)


@lru_cache(maxsize=32)
def _clause(statement: str) -> TextClause:
    return text(statement)
