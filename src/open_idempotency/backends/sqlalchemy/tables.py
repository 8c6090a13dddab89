"""The tables, in plain types of SQLAlchemy's, so that Alembic can write them down.

Everything but numbers is bytes: what a client sent never becomes text of some character set, and comparing is exact.
Times are seconds since 1970 on the database's clock.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, LargeBinary, MetaData, Table
from sqlalchemy.dialects import mysql
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

# Names and keys may be long and MySQL's indexes may not, so a digest of both knows the stage.
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
