"""How engines of our own are made, and a step of a verb carried out on one of their connections.

An application's engine is never used itself: handlers that hold all of its connections must not keep its own records
from being written. Ours connects as that one does, with what its owner told it and its pool's listeners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import AsyncAdaptedQueuePool, Connection, Engine, Pool, QueuePool, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from open_idempotency.backends.sqlalchemy import drivers
from open_idempotency.backends.sqlalchemy.options import Options
from open_idempotency.backends.sqlalchemy.transactions import Settings, read, write
from open_idempotency.backends.sqlalchemy.verbs import Step

_MODES: dict[str, Callable[..., Any]] = {"read": read, "write": write}


def carried_out(step: Step, settings: Settings) -> Callable[[Connection], Any]:
    """What does a step with a connection."""
    return lambda connection: _MODES[step.mode](connection, settings, step.work)


def levels(options: Options, mode: str) -> dict[str, Any]:
    """The execution options for a mode; none where the connections have its isolation level already."""
    if mode == "read" or options.dialect.writing == options.dialect.reading:
        return {}
    return {"isolation_level": options.dialect.writing}


def make_engine(options: Options) -> Engine:
    """A blocking engine; nothing is connected yet."""
    connect_args = drivers.connect_arguments(options)
    engine = create_engine(options.url, poolclass=QueuePool, **_arguments(options, connect_args))
    connect = None if options.lender is not None else drivers.bounded_connect(options)
    if connect is not None:
        bounded = connect

        def do_connect(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> Any:
            return bounded(*arguments, **keywords)

        event.listen(engine, "do_connect", do_connect)
    _prepare(engine, options)
    return engine


def make_async_engine(options: Options) -> AsyncEngine:
    """An engine for one event loop; nothing is connected yet."""
    connect_args = drivers.async_connect_arguments(options)
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
    """Makes connections as a pool does, and takes them out of it."""

    def create() -> Any:
        lent = lender.connect()
        connection = lent.dbapi_connection
        lent.detach()
        return connection

    return create


def _prepare(engine: Engine, options: Options) -> None:
    make = options.dialect.on_connect
    if make is None:
        return
    statement = make(options.timeout)

    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()

    event.listen(engine, "connect", on_connect)
