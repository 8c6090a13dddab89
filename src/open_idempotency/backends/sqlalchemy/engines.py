"""The engines of the SQLAlchemy backend's own, and the options that they are made with.

A URL may have options of the backend and options of SQLAlchemy. Options that cannot work here are refused.

An application's engine is never used itself: handlers that hold all of its connections must not keep their own records
from being written. The backend's engine connects in the same way, with the arguments of that engine and the listeners
of its pool. There is one for each process or event loop. SQLAlchemy itself bounds only the wait for a connection of the
pool, so the waits of each driver are bounded here. Another driver has limits of its own, which the URL may set.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from sqlalchemy import URL, AsyncAdaptedQueuePool, Engine, Pool, QueuePool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import Dialect as SqlalchemyDialect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from open_idempotency.backends._shared import urls
from open_idempotency.backends.sqlalchemy.statements import DIALECTS, Dialect
from open_idempotency.exceptions import ConfigurationError, MissingExtra

# Options of a URL or an engine

SCHEME = "sqlalchemy+"
OPTIONS: dict[str, urls.Parser] = {"timeout": urls.seconds, "max_connections": urls.count}


@dataclass(frozen=True)
class Options:
    """``sync``, ``awaitable``: how the driver can be used, sync or async, at least one of the two.

    ``lender``: the pool of an engine that was given; the backend's connections are made as that pool makes its own.
    """

    url: URL = field(repr=False)
    dialect: Dialect
    sync: bool
    awaitable: bool
    lender: Pool | None = None
    timeout: float = 2.0
    max_connections: int = 10
    clock: Callable[[], float] | None = None

    @property
    def where(self) -> str:
        """The database, without names and passwords."""
        url = self.url
        address = f"{url.host or ''}:{url.port}" if url.port else url.host or ""
        return f"{SCHEME}{url.drivername}://{address}/{url.database or ''}"

    @property
    def driver(self) -> str:
        """SQLAlchemy's name for the client library, mostly the module's."""
        return self.url.get_dialect().driver

    @property
    def is_file(self) -> bool:
        """Whether the database is SQLite, whose locks a fork breaks."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def connect_seconds(self) -> int:
        """The drivers' limit for connecting, in whole seconds; libpq's smallest is 2."""
        return max(2, math.ceil(self.timeout))

    @property
    def try_timeout(self) -> float:
        """Seconds for one try: to get and open a connection, for the statements, the last one, and the commit."""
        return 2 * self.timeout + 3 * self.connect_seconds

    @property
    def call_timeout(self) -> float:
        """Seconds for a call, in which no further try begins after ``timeout``."""
        return self.timeout + self.try_timeout


def read(source: str | Engine | AsyncEngine, given: dict[str, Any]) -> Options:
    """The options of a URL or an engine, overruled by keywords that are not None. Raises ``ConfigurationError``."""
    found = _of_url(source) if isinstance(source, str) else _of_engine(source)
    found.update(urls.keywords(given, OPTIONS, SCHEME))
    url: URL = found["url"]
    try:
        dialect = DIALECTS[url.get_backend_name()]
    except KeyError:
        raise ConfigurationError(f"backend: {url.get_backend_name()} is none of {', '.join(DIALECTS)}") from None
    if url.get_backend_name() == "sqlite":
        found["url"] = _with_file(url)
    return Options(dialect=dialect, **found)


def _of_url(text: str) -> dict[str, Any]:
    scheme, separator, rest = text.partition("://")
    if not separator or not scheme.lower().startswith(SCHEME):
        raise ConfigurationError("backend: expected sqlalchemy+ before a URL of SQLAlchemy's")
    try:
        url = make_url(f"{scheme[len(SCHEME) :]}://{rest}")
        kind = url.get_dialect()
        other = kind.get_async_dialect_cls(url)
    except NoSuchModuleError:
        raise ConfigurationError(f"backend: SQLAlchemy knows no {scheme[len(SCHEME) :]}://") from None
    except (ArgumentError, ValueError):  # the message may repeat the URL, and a password in it
        raise ConfigurationError("backend: the URL is malformed") from None
    _check_driver(kind, url)
    if kind.is_async and not _has_greenlet():
        raise MissingExtra("backend: asynchronous drivers need greenlet: pip install 'sqlalchemy[asyncio]'")
    said = {name: url.query[name] for name in set(url.query) & set(OPTIONS)}
    for name, value in said.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"backend: option {name} is given twice")
    read = urls.keywords(said, OPTIONS, SCHEME)
    # Without greenlet, a driver that can be sync or async is called in threads.
    uses = {"sync": not kind.is_async, "awaitable": other.is_async and _has_greenlet()}
    return {"url": url.difference_update_query(read), **uses, **read}


#: distributions of drivers that have another name than their module
_DISTRIBUTIONS = {"MySQLdb": "mysqlclient", "mysql": "mysql-connector-python"}


def _has_greenlet() -> bool:
    return find_spec("greenlet") is not None


def _check_driver(kind: type[SqlalchemyDialect], url: URL) -> None:
    try:
        kind.import_dbapi()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtra(
            f"backend: {SCHEME}{url.drivername}:// needs a driver: pip install {_DISTRIBUTIONS.get(package, package)}"
        ) from error


def _of_engine(engine: Engine | AsyncEngine) -> dict[str, Any]:
    awaited = isinstance(engine, AsyncEngine)
    sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if not isinstance(sync, Engine):
        raise ConfigurationError(f"backend: expected a URL or an engine of SQLAlchemy's, got {type(engine).__name__}")
    return {"url": sync.url, "sync": not awaited, "awaitable": awaited, "lender": sync.pool}


def _with_file(url: URL) -> URL:
    path = url.database or ""
    if path in ("", ":memory:") or path.startswith("file:") or url.query.get("mode") == "memory":
        raise ConfigurationError(
            "backend: SQLite needs a file such as sqlalchemy+sqlite:///idem.db; for records in memory use memory://"
        )
    # So that a later change of directory does not matter.
    absolute = os.path.abspath(path)
    if not os.path.isdir(os.path.dirname(absolute)):
        raise ConfigurationError(f"backend: the directory {os.path.dirname(absolute)} does not exist; create it first")
    return url.set(database=absolute)


# Engines

Connect = Callable[..., Any]

#: the key in a connection's ``info`` for the most bytes of a statement
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
    """The function that makes connections with bounded waits; None if the driver's own function does that."""
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
    """A sync engine; nothing is connected yet."""
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
