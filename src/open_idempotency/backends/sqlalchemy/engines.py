"""Engines of the backend's own, one for each process or event loop, and what bounds the waits of each driver.

An application's engine is never used itself: handlers that hold all of its connections must not keep their own records
from being written. The backend's engine connects as that one does, with its arguments and its pool's listeners.
SQLAlchemy bounds no wait but that for a connection of the pool. A driver that is not named here has limits of its own,
which the URL may set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import AsyncAdaptedQueuePool, Engine, Pool, QueuePool, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from open_idempotency.backends.sqlalchemy.options import Options

Connect = Callable[..., Any]

#: under which a connection's ``info`` has the most bytes of a statement
LARGEST = "open_idempotency_largest"

_PSYCOPG = ("psycopg", "psycopg_async")


def _libpq(options: Options) -> dict[str, Any]:
    return {"connect_timeout": options.connect_seconds, "application_name": "open-idempotency"}


def _psycopg(options: Options) -> dict[str, Any]:
    # Behind a pooler in transaction mode a prepared statement may be missing on the next connection.
    return {**_libpq(options), "prepare_threshold": None}


def _mysql(options: Options) -> dict[str, Any]:
    seconds = options.connect_seconds
    return {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}


#: the arguments of a new connection, unless the URL sets them
_ARGUMENTS: Mapping[str, Callable[[Options], dict[str, Any]]] = {
    "psycopg": _psycopg,
    "psycopg_async": _psycopg,
    "psycopg2": _libpq,
    "asyncpg": lambda options: {"timeout": options.timeout, "command_timeout": options.timeout},
    "pg8000": lambda options: {"timeout": options.timeout},
    "pymysql": _mysql,
    "mysqldb": _mysql,
    "aiomysql": lambda options: {"connect_timeout": options.connect_seconds},
    "asyncmy": lambda options: {"connect_timeout": options.connect_seconds},
    "mysqlconnector": lambda options: {"connection_timeout": options.connect_seconds},
}


def connect_arguments(options: Options) -> dict[str, Any]:
    """The keywords that ``create_engine`` is to hand on to the driver."""
    make = _ARGUMENTS.get(options.driver)
    arguments = {} if make is None else make(options)
    return {name: value for name, value in arguments.items() if name not in options.url.query}


def check(options: Options) -> None:
    """Raise ``MissingExtra`` for a release of the driver whose waits cannot be bounded."""
    if options.driver in _PSYCOPG:
        from open_idempotency.backends._shared import psycopg_waits

        psycopg_waits.check_release()


def bounded_connect(options: Options) -> Connect | None:
    """How to connect, where the driver's own way would make connections that wait for ever; else None."""
    if options.driver != "psycopg":
        return None
    from open_idempotency.backends._shared.psycopg_waits import BoundedConnection

    def connect(*arguments: Any, **keywords: Any) -> Any:
        connection = BoundedConnection.connect(*arguments, **keywords)
        connection.deadline = time.monotonic() + options.timeout
        return connection

    return connect


def async_connect_arguments(options: Options) -> dict[str, Any]:
    """The keywords for an asynchronous engine, with the same way to connect."""
    arguments = connect_arguments(options)
    if options.driver not in _PSYCOPG:
        return arguments
    from open_idempotency.backends._shared.psycopg_waits import AsyncBoundedConnection

    async def connect(*arguments: Any, **keywords: Any) -> Any:
        connection = await AsyncBoundedConnection.connect(*arguments, **keywords)
        connection.deadline = time.monotonic() + options.timeout
        return connection

    return {**arguments, "async_creator_fn": connect}


def levels(options: Options, mode: str) -> dict[str, Any]:
    """The execution options for a mode; none where the connections have its isolation level already."""
    if mode != "write" or options.dialect.writing == options.dialect.reading:
        return {}
    return {"isolation_level": options.dialect.writing}


def make_engine(options: Options) -> Engine:
    """A blocking engine; nothing is connected yet."""
    connect_args = connect_arguments(options)
    engine = create_engine(options.url, poolclass=QueuePool, **_arguments(options, connect_args))
    connect = None if options.lender is not None else bounded_connect(options)
    if connect is not None:
        bounded = connect

        def do_connect(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> Any:
            return bounded(*arguments, **keywords)

        event.listen(engine, "do_connect", do_connect)
    _prepare(engine, options)
    return engine


def make_async_engine(options: Options) -> AsyncEngine:
    """An engine for one event loop; nothing is connected yet."""
    connect_args = async_connect_arguments(options)
    engine = create_async_engine(options.url, poolclass=AsyncAdaptedQueuePool, **_arguments(options, connect_args))
    _prepare(engine.sync_engine, options)
    return engine


def _arguments(options: Options, connect_args: dict[str, Any]) -> dict[str, Any]:
    lender = options.lender
    return {
        **({"connect_args": connect_args} if lender is None else {"creator": _creator(lender.recreate())}),
        "pool_size": options.max_connections,
        "max_overflow": 0,
        "pool_timeout": options.timeout,
        "isolation_level": options.dialect.reading,
        "hide_parameters": True,
    }


def _creator(lender: Pool) -> Callable[[], Any]:
    """A function that makes connections as a pool does, and takes them out of it."""

    def create() -> Any:
        lent = lender.connect()
        connection = lent.dbapi_connection
        lent.detach()
        return connection

    return create


def _prepare(engine: Engine, options: Options) -> None:
    make, largest = options.dialect.on_connect, options.dialect.largest
    if make is None:
        return
    statement = make(options.timeout)

    def on_connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        if largest is not None and largest.ask is not None:
            cursor.execute(largest.ask)
            record.info[LARGEST] = int(cursor.fetchone()[0])
        cursor.close()

    event.listen(engine, "connect", on_connect)
