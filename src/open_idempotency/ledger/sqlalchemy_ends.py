"""What became of the transaction of a SQLAlchemy session or connection, as SQLAlchemy's events report it.

The connection's own transaction counts: a session on a connection that has begun already (``Session(bind=connection)``)
commits nothing itself, and its rows are lost where the connection, or a savepoint around them, is rolled back. The
session adds what the connection cannot know: that it was closed without a commit or a rollback, which somebody forgot;
and that it has committed as far as it is concerned, where tests hold the connection's transaction open around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine, ExceptionContext, RootTransaction
from sqlalchemy.orm import Session

from open_idempotency._core.attempt import End


class _SessionEnds:
    """How many transactions a session has committed or rolled back; savepoints are none."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class _Watched:
    """One transaction of a connection, from now on."""

    __slots__ = ("end", "savepoints", "transaction")

    def __init__(self, connection: Connection) -> None:
        transaction = connection.get_transaction()
        # Weak, since it knows its connection, which is what this is kept by.
        self.transaction = None if transaction is None else ref(transaction)
        self.end = End.OPEN
        #: those that were begun since and are still there
        self.savepoints = 0

    def is_of(self, transaction: RootTransaction) -> bool:
        """Whether it is this transaction."""
        return self.transaction is not None and self.transaction() is transaction

    def ends(self, end: End) -> None:
        """The first end counts: what was rolled back to a savepoint is not committed."""
        if self.end is End.OPEN:
            self.end = end

    def began_savepoint(self) -> None:
        """One within what is watched."""
        self.savepoints += 1

    def left_savepoint(self, end: End | None) -> None:
        """The innermost savepoint is over. ``end``: what that means where it is around what is watched."""
        if self.savepoints:
            self.savepoints -= 1
        elif end is not None:
            self.ends(end)

    def failed(self) -> None:
        """A COMMIT raised: SQLAlchemy reports it before it is sent."""
        if self.end is End.COMMITTED:
            self.end = End.DOUBTFUL


_of_sessions: WeakKeyDictionary[Session, _SessionEnds] = WeakKeyDictionary()
_of_connections: WeakKeyDictionary[Connection, list[_Watched]] = WeakKeyDictionary()
# Once for each engine and dialect, and for all sessions: a listener of one alone costs as much as a few statements.
_heard_engines: WeakSet[Engine] = WeakSet()
_heard_dialects: WeakSet[Dialect] = WeakSet()


def watch(connection: Connection, tx: Session | Connection) -> Callable[[], End]:
    """What reports the end of the present transaction of ``connection``, which ``tx`` is or runs its statements on."""
    watched = _Watched(connection)
    _listen(connection.engine)
    _of_connections[connection] = [*_present(connection), watched]  # those of earlier transactions have ended
    if isinstance(tx, Connection):
        return lambda: watched.end
    if not event.contains(Session, "after_commit", _note_session):
        for name in ("after_commit", "after_rollback"):
            event.listen(Session, name, _note_session)
    session = _of_sessions.get(tx)
    if session is None:
        session = _of_sessions[tx] = _SessionEnds()
    known, before = session, session.count
    return lambda: _end(watched.end, known.count == before)


def _end(connection: End, silent: bool) -> End:
    """``silent``: the session has neither committed nor rolled back."""
    if silent and connection is End.ROLLED_BACK:  # it was closed
        return End.OPEN
    if not silent and connection is End.OPEN:  # by whoever has begun it, such as the fixture of a test
        return End.UNTOLD
    return connection


def _listen(engine: Engine) -> None:
    if engine not in _heard_engines:
        _heard_engines.add(engine)
        for name, note in _NOTES.items():
            event.listen(engine, name, note)
    if engine.dialect not in _heard_dialects:
        _heard_dialects.add(engine.dialect)
        event.listen(engine, "handle_error", _note_error)


def _note_session(session: Session) -> None:
    known = _of_sessions.get(session)
    if known is not None and not session.in_nested_transaction():
        known.count += 1


def _present(connection: Connection) -> list[_Watched]:
    """What is watched of the transaction that the connection is in."""
    transaction = connection.get_transaction()
    if transaction is None:
        return []
    return [watched for watched in _of_connections.get(connection, ()) if watched.is_of(transaction)]


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
