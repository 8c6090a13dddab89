"""The databases that the tests of the SQLAlchemy backend use, by SQLAlchemy's URLs.

MySQL and MariaDB are available where ``tests.mariadb_server`` has one; each test process has its own database.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, event, make_url

from open_idempotency.backends.sqlalchemy import metadata
from tests import mariadb_server
from tests.postgres_server import PostgresServer

KINDS = ["sqlite", "postgresql", *["mysql"] * mariadb_server.IN_USE]


def postgres_url(server: PostgresServer) -> str:
    """A PostgreSQL server's default database, through psycopg."""
    return server.url().replace("postgresql://", "postgresql+psycopg://")


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """The database of a kind, with empty tables."""
    folder: Path = request.getfixturevalue("tmp_path")
    if kind == "sqlite":
        url = f"sqlite:///{folder / 'records.db'}"
    elif kind == "mysql":
        url = _mysql_url()
    else:
        url = postgres_url(request.getfixturevalue("postgres18"))
    make_tables(url)
    return url


def _mysql_url() -> str:
    given = make_url(mariadb_server.url()).set(drivername="mysql+pymysql")
    name = f"{given.database}_sqlalchemy_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    engine = create_engine(given)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE IF NOT EXISTS {name}")
    engine.dispose()
    return given.set(database=name).render_as_string(hide_password=False)


#: databases in which an earlier test of this process has made the tables
_made: set[str] = set()


def make_tables(url: str) -> None:
    """Create the tables, or empty them."""
    engine = create_engine(url, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", without_disk)
    with engine.begin() as connection:
        if url not in _made:
            metadata.create_all(connection)
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    if engine.dialect.name != "sqlite":
        _made.add(url)
    engine.dispose()


def without_disk(connection: object, _record: object) -> None:
    """Disable durability, which these tests do not need and which is slow."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()
