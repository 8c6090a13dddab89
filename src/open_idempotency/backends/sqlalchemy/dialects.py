"""The differences between databases: their clock, how a write transaction begins, and what their errors mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, literal_column
from sqlalchemy.exc import DBAPIError, IntegrityError

from open_idempotency.backends._shared import sizes

_MARIADB_RECORD_CHANGED = 1020
_MYSQL_DEADLOCK = 1213


@dataclass(frozen=True)
class Dialect:
    """One kind of database.

    ``reading``, ``writing``: isolation levels; a connection has the first one until a transaction asks for the other.
    ``clock``: its time in seconds, None where the machine's own is as good. ``on_connect``: a statement for each new
    connection, which gets the seconds to wait for a lock. ``begin``: the first statement of a write transaction, where
    the driver's own is not enough. ``limits``: settings of a write transaction, which get milliseconds.
    ``cascades``: whether stages go with their record, whoever deletes it. ``again``: the codes of errors after which
    the same transaction may well succeed. ``largest``: the most bytes of a value; None where its error is enough.
    """

    reading: str
    writing: str
    clock: ColumnElement[float] | None = None
    on_connect: Callable[[float], str] | None = None
    begin: str | None = None
    limits: tuple[str, ...] = ()
    largest: sizes.Limit | None = None
    cascades: bool = True
    again: frozenset[Any] = frozenset()


# Not the functions that go by the session's time zone: they repeat an hour when summer time ends.
_MYSQL = Dialect(
    reading="READ COMMITTED",
    writing="READ COMMITTED",
    clock=literal_column("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6", Double()),
    on_connect=lambda seconds: f"SET SESSION innodb_lock_wait_timeout = {max(1, math.ceil(seconds))}",
    largest=sizes.OF_MYSQL,
    again=frozenset({_MYSQL_DEADLOCK, _MARIADB_RECORD_CHANGED}),
)

#: by SQLAlchemy's name of the database
DIALECTS: Mapping[str, Dialect] = {
    "postgresql": Dialect(
        # Without BEGIN and COMMIT a single SELECT is one round trip.
        reading="AUTOCOMMIT",
        writing="READ COMMITTED",
        clock=literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", Double()),
        # Of the transaction alone: behind a pooler the session belongs to another client next.
        limits=("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"),
        largest=sizes.OF_POSTGRESQL,
        again=frozenset({"40001", "40P01"}),
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": Dialect(
        reading="AUTOCOMMIT",
        writing="AUTOCOMMIT",
        on_connect=lambda seconds: f"PRAGMA busy_timeout = {math.ceil(seconds * 1000)}",
        # A transaction that has read could not become a writer without failing at once.
        begin="BEGIN IMMEDIATE",
        cascades=False,
    ),
}


def begin(connection: Connection, dialect: Dialect) -> None:
    """Make the transaction that SQLAlchemy has begun a write transaction."""
    if dialect.begin is not None:
        connection.exec_driver_sql(dialect.begin)


def may_succeed_again(error: BaseException, dialect: Dialect) -> bool:
    """Whether the transaction lost a race, or its connection was broken before, as after a restart.

    Each verb may be sent twice (B-08).
    """
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error, IntegrityError) or error.connection_invalidated:
        return True
    return not dialect.again.isdisjoint(codes(error.orig))


def codes(error: BaseException | None) -> set[Any]:
    """The codes that drivers give to an error: PostgreSQL's five characters, MySQL's numbers."""
    found = {getattr(error, name, None) for name in ("sqlstate", "pgcode", "errno")}
    first = error.args[0] if error is not None and error.args else None
    return {code for code in (*found, first) if isinstance(code, int | str)}
