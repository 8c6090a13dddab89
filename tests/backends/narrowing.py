"""Backends that refuse large values, for the contract's tests of sizes: a real limit of each kind of server."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest
from django.db import connections
from sqlalchemy import create_engine

from open_idempotency.backend import Backend
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance.sizes import Narrow

#: sizes that a limited store takes, and refuses; a record with its stage has two of the first
TAKES, REFUSES = 200_000, 600_000
_BETWEEN = 500_000


@contextmanager
def narrow(made: Backend, mode: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Narrow]:
    """A backend with a size limit, in this mode, and sizes around the limit."""
    kind = next((kind for kind in _NARROWS if isinstance(made, kind)), None)
    if kind is None:
        pytest.skip(f"{type(made).__name__} has no store that refuses a value for its size")
    with _NARROWS[kind](made, monkeypatch) as (takes, refuses):
        yield Narrow(made if mode == "sync" else made.to_async(), takes, refuses)


Sizes = tuple[int, int]


@contextmanager
def _on_sqlite(made: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sizes]:
    """SQLite, as if compiled with a lower SQLITE_MAX_LENGTH (a billion bytes by default)."""
    if sys.version_info < (3, 11):
        pytest.skip("before Python 3.11 the limit of a connection to SQLite cannot be set")
    connect = sqlite3.connect

    def limited(*arguments: Any, **keywords: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **keywords)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _BETWEEN)
        return connection

    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", limited)
    yield TAKES, REFUSES


# A gigabyte is more than a test can afford. The trigger's error has the code of PostgreSQL's own.
_TRIGGER = """
    CREATE OR REPLACE FUNCTION {schema}refuse_large() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF length(NEW.{column}) > {most} THEN
            RAISE EXCEPTION 'the value is too large' USING ERRCODE = 'program_limit_exceeded';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse_large BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {schema}refuse_large();
"""


@contextmanager
def _with_triggers(execute: Callable[[str], Any], prefix: str) -> Iterator[Sizes]:
    tables = {f"{prefix}records": "response", f"{prefix}stages": "frame"}
    try:
        for table, column in tables.items():
            schema = f"refuse_{column}_"
            execute(_TRIGGER.format(schema=schema, column=column, most=_BETWEEN, table=table))
        yield TAKES, REFUSES
    finally:
        for table in tables:
            execute(f"DROP TRIGGER IF EXISTS refuse_large ON {table}")


@contextmanager
def _on_postgres(made: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sizes]:
    connection = psycopg.connect(made.options.conninfo, autocommit=True)
    with connection, _with_triggers(lambda text: connection.execute(text.encode()), "open_idempotency.") as sizes:
        yield sizes


def _of_packets(most: int) -> Sizes:
    """Drivers may send each byte as two bytes."""
    return int(most * 0.49), most // 2


@contextmanager
def _on_sqlalchemy(made: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sizes]:
    url = made.options.url
    if url.get_backend_name() == "sqlite":
        with _on_sqlite(made, monkeypatch) as sizes:
            yield sizes
        return
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    engine = create_engine(url.set(drivername=drivers[url.get_backend_name()]), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "mysql":
                yield _of_packets(int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()))
                return
            with _with_triggers(connection.exec_driver_sql, "open_idempotency_sqlalchemy_") as sizes:
                yield sizes
    finally:
        engine.dispose()


@contextmanager
def _on_django(made: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sizes]:
    connection = connections[made.alias]
    if connection.vendor == "sqlite":
        with _on_sqlite(made, monkeypatch) as sizes:
            yield sizes
        return
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SELECT @@max_allowed_packet")
            yield _of_packets(int(cursor.fetchone()[0]))
            return
        with _with_triggers(cursor.execute, "open_idempotency_django_") as sizes:
            yield sizes


_NARROWS: dict[type[Any], Callable[[Any, pytest.MonkeyPatch], AbstractContextManager[Sizes]]] = {
    SqliteBackend: _on_sqlite,
    PostgresBackend: _on_postgres,
    SqlalchemyBackend: _on_sqlalchemy,
    DjangoBackend: _on_django,
}
