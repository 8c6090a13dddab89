"""An application's database behind each kind of ``tx=``: the ledger's tables, and one table of orders.

``transaction()`` commits at its end and rolls back where its block raises. The async kinds have the same two verbs as
coroutines, so a test is written once, sync and async. MySQL and MariaDB are there where ``tests.mariadb_server`` has a
server.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import sqlalchemy
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from open_idempotency.ledger.dialects import DIALECTS, MYSQL, POSTGRESQL, SQLITE, Dialect
from tests import mariadb_server

ORDERS = "CREATE TABLE orders (name varchar(80) NOT NULL)"
INSERT = "INSERT INTO orders VALUES ('an order')"
COUNT = "SELECT count(*) FROM orders"


class Open(NamedTuple):
    """A transaction: the object for ``tx=``, and a function that runs a statement in it."""

    tx: Any
    execute: Callable[[str], Any]


class Database:
    """One database of one test. ``url``: SQLAlchemy's, without a driver."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.dialect = DIALECTS[url.partition(":")[0]]

    def make_tables(self, ledger: bool = True) -> None:
        """Run the ledger's script as an operator would."""
        script = (self.dialect.schema() if ledger else "") + ORDERS
        for statement in script.split(";"):
            self.query(statement)

    @property
    def path(self) -> str:
        """The file of a SQLite database."""
        return self.url.removeprefix("sqlite:///")

    def query(self, statement: str) -> list[Any]:
        """The rows of a query on another connection, which sees committed data only."""
        with contextlib.closing(_CONNECT[self.dialect](self)) as connection:
            cursor = connection.cursor()
            cursor.execute(statement)
            rows = list(cursor.fetchall()) if cursor.description else []
            connection.commit()
            return rows

    def orders(self) -> int:
        """The number of committed orders."""
        return int(self.query(COUNT)[0][0])


def _mysql(database: Database) -> Any:
    import pymysql

    where = make_url(database.url)
    return pymysql.connect(
        host=where.host, port=where.port or 3306, user=where.username, password=where.password or "",
        database=where.database, charset="utf8mb4",
    )  # fmt: skip


_CONNECT: dict[Dialect, Callable[[Database], Any]] = {
    SQLITE: lambda database: sqlite3.connect(database.path),
    POSTGRESQL: lambda database: psycopg.connect(database.url),
    MYSQL: _mysql,
}


@contextlib.contextmanager
def sqlite3_(database: Database) -> Iterator[Open]:
    """A plain connection of the standard library's ``sqlite3``."""
    with contextlib.closing(sqlite3.connect(database.path, timeout=20)) as connection, connection:
        yield Open(connection, connection.execute)


@contextlib.contextmanager
def psycopg_(database: Database) -> Iterator[Open]:
    """A psycopg connection that begins a transaction implicitly."""
    with psycopg.connect(database.url) as connection:
        yield Open(connection, connection.execute)


@contextlib.contextmanager
def psycopg_block(database: Database) -> Iterator[Open]:
    """An autocommit psycopg connection in a ``transaction()`` block."""
    with psycopg.connect(database.url, autocommit=True) as connection, connection.transaction():
        yield Open(connection, connection.execute)


#: by dialect: SQLAlchemy's drivers, sync and async
_DRIVERS = {
    SQLITE: ("sqlite", "sqlite+aiosqlite"),
    POSTGRESQL: ("postgresql+psycopg", "postgresql+psycopg"),
    MYSQL: ("mysql+pymysql", "mysql+asyncmy"),
}


def _engine_url(database: Database, asynchronous: bool = False) -> str:
    return _DRIVERS[database.dialect][asynchronous] + ":" + database.url.partition(":")[2]


@contextlib.contextmanager
def _engine(database: Database) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(_engine_url(database))
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def session(database: Database) -> Iterator[Open]:
    """A SQLAlchemy session, which begins with the first statement."""
    with _engine(database) as engine, Session(engine) as opened:
        yield Open(opened, lambda statement: opened.execute(sqlalchemy.text(statement)))
        opened.commit()


@contextlib.contextmanager
def connection(database: Database) -> Iterator[Open]:
    """A SQLAlchemy connection."""
    with _engine(database) as engine, engine.begin() as opened:
        yield Open(opened, lambda statement: opened.execute(sqlalchemy.text(statement)))


@contextlib.contextmanager
def django_alias(database: Database) -> Iterator[str]:
    """A Django alias for the database."""
    from django.db import connections

    alias = f"ledger{secrets.token_hex(4)}"
    options = _DJANGO[database.dialect](database)
    connections.databases[alias] = connections.configure_settings({"default": options})["default"]
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]


@contextlib.contextmanager
def django(database: Database) -> Iterator[Open]:
    """A Django alias in an atomic block."""
    from django.db import connections, transaction

    with django_alias(database) as alias, transaction.atomic(alias):
        yield Open(alias, lambda statement: _in_cursor(connections[alias], statement))


def _django_on_sqlite(database: Database) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": database.path}


def _django_on_postgresql(database: Database) -> dict[str, Any]:
    parts = psycopg.conninfo.conninfo_to_dict(database.url)
    where = {"NAME": parts["dbname"], "USER": parts["user"], "HOST": parts["host"], "PORT": parts["port"]}
    return {"ENGINE": "django.db.backends.postgresql", **where}


def _django_on_mysql(database: Database) -> dict[str, Any]:
    mariadb_server.for_django()
    url = make_url(database.url)
    where = {"NAME": url.database, "USER": url.username, "HOST": url.host, "PORT": str(url.port or 3306)}
    return {"ENGINE": "django.db.backends.mysql", "PASSWORD": url.password or "", **where}


_DJANGO = {SQLITE: _django_on_sqlite, POSTGRESQL: _django_on_postgresql, MYSQL: _django_on_mysql}


def _in_cursor(opened: Any, statement: str) -> None:
    with opened.cursor() as cursor:
        cursor.execute(statement)


@contextlib.asynccontextmanager
async def async_psycopg(database: Database) -> AsyncIterator[Open]:
    """psycopg's async connection."""
    async with await psycopg.AsyncConnection.connect(database.url) as opened:
        yield Open(opened, opened.execute)


@contextlib.asynccontextmanager
async def async_session(database: Database, driver: str | None = None) -> AsyncIterator[Open]:
    """SQLAlchemy's async session. ``driver``: replaces the usual driver of the dialect."""
    url = _engine_url(database, asynchronous=True)
    engine = create_async_engine(make_url(url).set(drivername=driver) if driver else url)
    try:
        async with AsyncSession(engine) as opened:
            yield Open(opened, lambda statement: opened.execute(sqlalchemy.text(statement)))
            await opened.commit()
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def async_connection(database: Database) -> AsyncIterator[Open]:
    """SQLAlchemy's async connection."""
    engine = create_async_engine(_engine_url(database, asynchronous=True))
    try:
        async with engine.begin() as opened:
            yield Open(opened, lambda statement: opened.execute(sqlalchemy.text(statement)))
    finally:
        await engine.dispose()


#: by name: the dialect of its database, and what opens a transaction
BLOCKING: dict[str, tuple[str, Callable[[Database], contextlib.AbstractContextManager[Open]]]] = {
    "sqlite3": ("sqlite", sqlite3_),
    "psycopg": ("postgresql", psycopg_),
    "psycopg in a block": ("postgresql", psycopg_block),
    "session on SQLite": ("sqlite", session),
    "session on PostgreSQL": ("postgresql", session),
    "connection on SQLite": ("sqlite", connection),
    "connection on PostgreSQL": ("postgresql", connection),
    "Django on SQLite": ("sqlite", django),
    "Django on PostgreSQL": ("postgresql", django),
}
AWAITED: dict[str, tuple[str, Callable[[Database], contextlib.AbstractAsyncContextManager[Open]]]] = {
    "psycopg": ("postgresql", async_psycopg),
    "session on SQLite": ("sqlite", async_session),
    "session on PostgreSQL": ("postgresql", async_session),
    "session through asyncpg": ("postgresql", functools.partial(async_session, driver="postgresql+asyncpg")),
    "connection on SQLite": ("sqlite", async_connection),
    "connection on PostgreSQL": ("postgresql", async_connection),
}

if mariadb_server.IN_USE:
    BLOCKING |= {
        "session on MySQL": ("mysql", session),
        "connection on MySQL": ("mysql", connection),
        "Django on MySQL": ("mysql", django),
    }
    AWAITED["session on MySQL"] = ("mysql", async_session)


def database_of(dialect: str, folder: Path, url: Callable[[], str]) -> Database:
    """A database without the ledger's tables. ``url``: the PostgreSQL database that the tests of a process share."""
    if dialect == "sqlite":
        return Database(f"sqlite:///{folder}/application.db")
    database = Database(_mysql_of_this_process() if dialect == "mysql" else url())
    database.query("DROP TABLE IF EXISTS orders, open_idempotency_ledger, open_idempotency_ledger_stages")
    return database


def _mysql_of_this_process() -> str:
    given = make_url(mariadb_server.url())
    name = f"{given.database}_ledger_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    Database(mariadb_server.url()).query(f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb4")
    return given.set(database=name).render_as_string(hide_password=False)
