"""What bounds the waits of each driver, since SQLAlchemy bounds none but that for a place in the pool.

A driver that is not named here has its own limits, which the URL may set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from open_idempotency.backends.sqlalchemy.options import Options

Connect = Callable[..., Any]

_PSYCOPG = ("psycopg", "psycopg_async")


def _libpq(options: Options) -> dict[str, Any]:
    return {"connect_timeout": options.connect_seconds, "application_name": "open-idempotency"}


def _psycopg(options: Options) -> dict[str, Any]:
    # A pooler in transaction mode knows no statement that was prepared on another of its connections.
    return {**_libpq(options), "prepare_threshold": None}


def _mysql(options: Options) -> dict[str, Any]:
    seconds = options.connect_seconds
    return {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}


#: what a connection is made with, unless the URL says otherwise
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
    """Raises ``MissingExtra`` for a release of the driver whose waits cannot be bounded."""
    if options.driver in _PSYCOPG:
        import_module("open_idempotency.backends.psycopg_waits")


def bounded_connect(options: Options) -> Connect | None:
    """How to connect in place of the driver's own way, where that would make connections that wait for ever."""
    if options.driver != "psycopg":
        return None
    from open_idempotency.backends.psycopg_waits import BoundedConnection

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
    from open_idempotency.backends.psycopg_waits import AsyncBoundedConnection

    async def connect(*arguments: Any, **keywords: Any) -> Any:
        connection = await AsyncBoundedConnection.connect(*arguments, **keywords)
        connection.deadline = time.monotonic() + options.timeout
        return connection

    return {**arguments, "async_creator_fn": connect}
