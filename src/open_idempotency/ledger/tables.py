"""The ledger's tables as SQLAlchemy knows them, equal to the scripts in ``sql/``."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, LargeBinary, MetaData, String, Table
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import BLANK_SCHEMA
from sqlalchemy.types import TypeEngine

# MySQL rolls back with InnoDB only, whatever the server's default is.
_ENGINE = "InnoDB"


def add_tables(into: MetaData | None) -> MetaData:
    """The metadata with the two tables, which are added once."""
    found = MetaData() if into is None else into
    if "open_idempotency_ledger" not in found.tables:
        _add(found)
    return found


def _add(found: MetaData) -> None:
    # No schema of the application's: the ledger's statements name none, so the tables are where the connection looks.
    Table(
        "open_idempotency_ledger",
        found,
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
        found,
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
    """Of whatever characters, whatever those of the database are."""
    return String(200).with_variant(mysql.VARCHAR(200, charset="utf8mb4"), "mysql", "mariadb")


def _bytes(length: int) -> TypeEngine[bytes]:
    """Bytes that may be a key: MySQL indexes no blobs."""
    return LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def _long_bytes() -> TypeEngine[bytes]:
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
