"""The tables of the SQLAlchemy backend, what differs between databases, and the statements.

The tables have plain types of SQLAlchemy's, so that Alembic can describe them; ``migrate`` makes them without Alembic.
Everything but numbers is bytes: no value of a client becomes text in a character set, and comparisons are exact. Times
are seconds since 1970 on the database's clock. A backend never makes tables by itself: the application's own user need
not be allowed to.

Databases differ in their clock, in how a write transaction begins, and in what their errors mean. Statements are built
once for each backend. No value ever becomes part of one. Reads take columns as the driver gives them, since a
conversion would hide wrong types; ``sql_verbs`` checks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Double,
    Executable,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    inspect,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine.interfaces import Dialect as SqlalchemyDialect
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from open_idempotency.backends._shared import sizes, sql_verbs

# Tables

#: all tables of this backend and no others; their names begin with ``open_idempotency_sqlalchemy_``
metadata = MetaData()

_PREFIX = "open_idempotency_sqlalchemy_"
# MySQL rolls back with InnoDB only, whatever the server's default is.
_ENGINE = "InnoDB"


def _id() -> TypeEngine[bytes]:
    """A digest; MySQL needs a length to index it."""
    return LargeBinary().with_variant(mysql.VARBINARY(512), "mysql", "mariadb")


def _bytes() -> TypeEngine[bytes]:
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


records = Table(
    f"{_PREFIX}records",
    metadata,
    Column("record_id", _id(), primary_key=True),
    Column("record_version", Integer, nullable=False),
    Column("fingerprint", _bytes(), nullable=False),
    Column("status", Integer, nullable=False),
    Column("owner", _bytes(), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("lease_end", Double, nullable=False),
    Column("ttl", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("final", Integer, nullable=False),
    # Workers of a version that does not know it leave it NULL.
    Column("about", _id()),
    Column("response", _bytes()),
    Index(f"{_PREFIX}records_by_expiry", "expires_at"),
    mysql_engine=_ENGINE,
    mariadb_engine=_ENGINE,
)

# Names and keys may be too long for an index of MySQL's, so a digest of both identifies a stage.
stages = Table(
    f"{_PREFIX}stages",
    metadata,
    Column("record_id", _id(), ForeignKey(records.c.record_id, ondelete="CASCADE"), primary_key=True),
    Column("stage_id", _id(), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("name", _bytes(), nullable=False),
    Column("stage_key", _bytes(), nullable=False),
    Column("frame", _bytes(), nullable=False),
    mysql_engine=_ENGINE,
    mariadb_engine=_ENGINE,
)

reservations = Table(
    f"{_PREFIX}reservations",
    metadata,
    Column("scope_id", _id(), primary_key=True),
    Column("record_id", _id(), primary_key=True),
    Column("ends", Double, nullable=False),
    Index(f"{_PREFIX}reservations_by_end", "ends"),
    mysql_engine=_ENGINE,
    mariadb_engine=_ENGINE,
)

# A row to lock while the reservations of a caller are counted; it may be purged and made again at any time.
scopes = Table(
    f"{_PREFIX}scopes",
    metadata,
    Column("scope_id", _id(), primary_key=True),
    Column("ends", Double, nullable=False),
    Index(f"{_PREFIX}scopes_by_end", "ends"),
    mysql_engine=_ENGINE,
    mariadb_engine=_ENGINE,
)


def migrate(connection: Connection) -> list[str]:
    """Make missing tables, columns and indexes, and return the names of those tables and columns.

    Another process may do so meanwhile.
    """
    made: list[str] = []
    for table in metadata.sorted_tables:
        if _create(connection, table.name):
            made.append(table.name)
        else:
            made += [f"{table.name}.{column.name}" for column in table.columns if _add_column(connection, column)]
        _create_indexes(connection, table.name)
    return made


def _add_column(connection: Connection, column: Column[Any]) -> bool:
    """Add a column of a later version to a table of an earlier one. Returns whether it was missing."""
    name = column.table.name
    if _has_column(connection, column):
        return False
    preparer, described = connection.dialect.identifier_preparer, CreateColumn(column).compile(connection)
    try:
        connection.exec_driver_sql(f"ALTER TABLE {preparer.quote(name)} ADD COLUMN {described}")
        connection.commit()
    except DBAPIError:
        connection.rollback()
        if not _has_column(connection, column):
            raise
        return False
    return True


def _has_column(connection: Connection, column: Column[Any]) -> bool:
    return column.name in {found["name"] for found in inspect(connection).get_columns(column.table.name)}


def _create(connection: Connection, name: str) -> bool:
    made = False
    if not inspect(connection).has_table(name):
        try:
            # Indexes come later: where each statement is committed, another process may be making them already.
            connection.execute(CreateTable(metadata.tables[name]))
            connection.commit()
            made = True
        except DBAPIError:
            connection.rollback()
            # If two processes create the table at the same moment, one fails, with an error that differs by database.
            if not inspect(connection).has_table(name):
                raise
    return made


def _create_indexes(connection: Connection, name: str) -> None:
    """Make missing indexes, as after a table was made on a database that commits each statement by itself."""
    for index in metadata.tables[name].indexes:
        found = {each["name"] for each in inspect(connection).get_indexes(name)}
        if index.name in found:
            continue
        try:
            index.create(connection)
            connection.commit()
        except DBAPIError:
            connection.rollback()
            if index.name not in {each["name"] for each in inspect(connection).get_indexes(name)}:
                raise


# Differences between databases

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
        # Set for the transaction only: behind a pooler the session belongs to another client next.
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


_IN_PROGRESS = 1


def _raw(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(column, NullType())


class _Seconds(TypeDecorator[Any]):
    """A time in the form in which ``_sent`` makes the database send it."""

    impl = NullType
    cache_ok = True

    def result_processor(self, dialect: SqlalchemyDialect, coltype: object) -> Any:
        """The function that converts it back to seconds; None if it is in seconds."""
        return sql_verbs.in_seconds if dialect.name == "postgresql" else None


class _sent(FunctionElement[Any]):  # noqa: N801 (reads as a function)
    """A time that the database sends: see ``sql_verbs.MICROSECONDS``. Other databases send it as it is."""

    inherit_cache = True
    type = _Seconds()


@compiles(_sent)
def _send_as_it_is(element: _sent, compiler: Any, **options: Any) -> str:
    sent: str = compiler.process(element.clauses.clauses[0], **options)
    return sent


@compiles(_sent, "postgresql")
def _send_as_a_number(element: _sent, compiler: Any, **options: Any) -> str:
    return sql_verbs.MICROSECONDS.format(_send_as_it_is(element, compiler, **options))


# Statements

HEADER = [_sent(records.c[name]) if name in sql_verbs.SECONDS else _raw(records.c[name]) for name in sql_verbs.HEADER]
_STAGE = [_raw(stages.c.name), _raw(stages.c.stage_key), _raw(stages.c.frame)]
# A claim needs the response only to replay it, so not while it runs and not for another request.
_REPLAY = case(
    (
        (records.c.status != _IN_PROGRESS) & (records.c.fingerprint == bindparam("fingerprint")),
        records.c.response,
    )
)
_THIS = records.c.record_id == bindparam("id")
_OF_THIS = stages.c.record_id == bindparam("id")
_RESERVATION = (reservations.c.scope_id == bindparam("scope"), reservations.c.record_id == bindparam("id"))
_NOW: ColumnElement[float] = bindparam("now", type_=Double())
_END: ColumnElement[float] = bindparam("end", type_=Double())

LOCK = select(*HEADER, null()).where(_THIS).with_for_update()
LOCK_FOR_CLAIM = select(*HEADER, _raw(_REPLAY)).where(_THIS).with_for_update()
# In one order, so that two renewals of the same records never wait for each other.
LOCK_MANY = (
    select(_raw(records.c.record_id), *HEADER, null())
    .where(records.c.record_id.in_(bindparam("ids", expanding=True)))
    .order_by(records.c.record_id)
    .with_for_update()
)
INSERT = insert(records)
UPDATE = update(records).where(_THIS)
EXTEND = (
    update(records)
    .where(records.c.record_id.in_(bindparam("ids", expanding=True)))
    .values(lease_end=_END, expires_at=_END + records.c.ttl)
)
DELETE = delete(records).where(_THIS)
EXPIRED = (
    select(_raw(records.c.record_id))
    .where(records.c.expires_at <= _NOW)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)

STAGES = select(*_STAGE).where(_OF_THIS).order_by(stages.c.position)
FIRST_STAGE = STAGES.limit(1)
STAGE = select(*_STAGE).where(_OF_THIS, stages.c.stage_id == bindparam("stage"))
LAST_POSITION = select(func.coalesce(func.max(stages.c.position), 0)).where(_OF_THIS)
ADD_STAGE = insert(stages)
DELETE_STAGES = delete(stages).where(_OF_THIS)

LOCK_SCOPE = select(_raw(scopes.c.ends)).where(scopes.c.scope_id == bindparam("scope")).with_for_update()
INSERT_SCOPE = insert(scopes)
EXTEND_SCOPE = update(scopes).where(scopes.c.scope_id == bindparam("scope"), scopes.c.ends < _END).values(ends=_END)
INSERT_RESERVATION = insert(reservations)
EXTEND_RESERVATION = update(reservations).where(*_RESERVATION).values(ends=_END)
DELETE_RESERVATION = delete(reservations).where(*_RESERVATION)
DELETE_SCOPE = delete(scopes).where(scopes.c.scope_id == bindparam("scope"))
_TAKEN = (reservations.c.scope_id == bindparam("scope"), reservations.c.ends > _NOW)
# The first end, if there are more than ``others`` reservations. Skipping rows is the cheapest way to count them.
FIRST_OF_MORE_THAN = (
    select(select(_sent(func.min(reservations.c.ends))).where(*_TAKEN).scalar_subquery())
    .select_from(reservations)
    .where(*_TAKEN)
    .order_by(reservations.c.ends)
    .limit(1)
    .offset(bindparam("others"))
)
EXPIRED_RESERVATIONS = (
    select(_raw(reservations.c.scope_id), _raw(reservations.c.record_id))
    .where(reservations.c.ends <= _NOW)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
EXPIRED_SCOPES = (
    select(_raw(scopes.c.scope_id))
    .where(scopes.c.ends <= _NOW)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)


class Statements:
    """The statements that read the time. ``own_clock``: whether each gets it, instead of the database's clock."""

    def __init__(self, dialect: Dialect, own_clock: bool, timeout: float) -> None:
        database_clock = None if own_clock else dialect.clock
        self.needs_clock = database_clock is None
        time: ColumnElement[float] = _NOW if database_clock is None else database_clock
        self.now = select(_sent(time))
        #: the first statement of a write transaction: reads the time, and sets limits for the transaction
        self.open = _open(dialect, time, timeout)
        self.peek = select(_sent(time), *HEADER, _raw(_REPLAY)).where(_THIS)
        first_row = or_(stages.c.position.is_(None), stages.c.position == 1)
        #: a row for each stage, only the first one with the response: all of one moment, without a transaction
        self.get = (
            select(_sent(time), *HEADER, _raw(case((first_row, records.c.response))), *_STAGE)
            .select_from(records.outerjoin(stages, stages.c.record_id == records.c.record_id))
            .where(_THIS)
            .order_by(stages.c.position)
        )
        self.scan = (
            select(_raw(records.c.record_id))
            .where(records.c.record_id > bindparam("after"), records.c.expires_at > time)
            .order_by(records.c.record_id)
            .limit(bindparam("limit"))
        )
        self.scan_headers = (
            select(_raw(records.c.record_id), *HEADER, null())
            .where(records.c.record_id > bindparam("after"), records.c.expires_at > time)
            .order_by(records.c.record_id)
            .limit(bindparam("limit"))
        )
        end = select(_sent(reservations.c.ends)).where(*_RESERVATION).scalar_subquery()
        self.reservation: Executable = select(_sent(time), end)


def _open(dialect: Dialect, time: ColumnElement[float], timeout: float) -> Select[Any]:
    limit = str(max(1, round(timeout * 1000)))
    return select(_sent(time), *(func.set_config(name, limit, True) for name in dialect.limits))
