"""The tables, in plain types of SQLAlchemy's so that Alembic can describe them, and their creation without Alembic.

Everything but numbers is bytes: no value of a client becomes text in a character set, and comparisons are exact. Times
are seconds since 1970 on the database's clock. A backend never makes tables by itself: the application's own user need
not be allowed to.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    inspect,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeEngine

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
    """Make missing tables and indexes, and return the names of those tables. Another process may do so meanwhile."""
    made: list[str] = []
    for table in metadata.sorted_tables:
        if _create(connection, table.name):
            made.append(table.name)
    return made


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
            # Of two processes that create it at the same moment one fails, in a way that differs with each database.
            if not inspect(connection).has_table(name):
                raise
    _create_indexes(connection, name)
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
