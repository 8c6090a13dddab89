"""The SQLAlchemy backend: records in PostgreSQL, MySQL, MariaDB or SQLite, through any driver that SQLAlchemy knows.

``open_idempotency.decisions`` decides under the lock of the record's row; ``_shared.sql_verbs`` says what is read and
written. No state of a session is used on PostgreSQL. For PostgreSQL the backend ``postgresql://`` takes fewer round
trips, and reports the end of an attempt to waiting duplicates.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from open_idempotency._runtime.loops import current_library, in_thread
from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings, urls
from open_idempotency.backends._shared.findings import MOST_COUNTED
from open_idempotency.backends._shared.fronts import AsyncFront, SyncFront
from open_idempotency.backends._shared.sql_verbs import VERBS, Step, carry_out, carry_out_async
from open_idempotency.backends.sqlalchemy import engines, statements
from open_idempotency.backends.sqlalchemy.runners import LoopEngines, OnEngine, OnLoop, Runner
from open_idempotency.backends.sqlalchemy.statements import metadata, records
from open_idempotency.backends.sqlalchemy.transactions import Settings


class SqlalchemyBackend(SyncFront):
    """The sync front, on the database of a URL ``sqlalchemy+…://`` or of an engine.

    The backend makes its own connections, in the way in which a given ``Engine`` or ``AsyncEngine`` makes them. An
    async driver is awaited in a thread. ``timeout``: seconds to wait for a connection, for a lock, and for a reply
    (default 2). ``max_connections``: for each process and event loop (default 10). ``clock``: seconds, for tests;
    without it the server's clock decides, with SQLite the machine's. Raises ``ConfigurationError``, ``MissingExtra``
    without the driver. Since 0.1.
    """

    def __init__(
        self,
        source: str | Engine | AsyncEngine,
        *,
        timeout: urls.Seconds | None = None,
        max_connections: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        given = {"timeout": timeout, "max_connections": max_connections, "clock": clock}
        #: the settings from the URL or the engine, and from the keywords
        self.options = engines.read(source, given)
        engines.check(self.options)
        self.file = self.options.url.database if self.options.url.get_backend_name() == "sqlite" else None
        settings = Settings(self.options.dialect, self.options.timeout, self.options.clock)
        #: the engines of event loops, for both fronts
        self.engines = LoopEngines(self.options, settings)
        sync = self.options.sync
        self._runner: Runner = OnEngine(self.options, settings) if sync else OnLoop(self.options, self.engines)
        super().__init__(VERBS, partial(carry_out, self._runner.run))
        self.call_timeout = self.options.call_timeout
        self._async = AsyncSqlalchemyBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SqlalchemyBackend:
        """``sqlalchemy+`` before a URL of SQLAlchemy's, with the options ``timeout`` and ``max_connections``."""
        return cls(url, **urls.keywords(options, engines.OPTIONS, engines.SCHEME))

    def __repr__(self) -> str:
        return f"SqlalchemyBackend({self.options.where!r})"

    def run(self, step: Step) -> Any:
        """Carry out one transaction of a verb. Raises ``BackendUnavailable``."""
        return self._runner.run(step)

    def to_async(self) -> AsyncSqlalchemyBackend:
        """The async front over the same records."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """See ``Backend.migrate``; makes the tables of ``metadata`` that are missing. Raises ``BackendUnavailable``."""
        return self._runner.call(statements.migrate, "write")

    def examine(self) -> Sequence[Finding]:
        """See ``Backend.examine``."""
        return self._runner.call(partial(_examine, now=self.now), "snapshot")

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._runner.close()


class AsyncSqlalchemyBackend(AsyncFront):
    """The async front, on asyncio and on trio; takes the same arguments as ``SqlalchemyBackend``. Since 0.1.

    Where the driver is async and the event loop is asyncio's, it uses engines of that loop; else a thread.
    """

    def __init__(
        self,
        source: str | Engine | AsyncEngine = "",
        *,
        over: SqlalchemyBackend | None = None,
        **options: Any,
    ) -> None:
        if over is None:
            over = SqlalchemyBackend(source, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other front
        super().__init__(VERBS, partial(carry_out_async, self._run))
        self._sync = over
        self.call_timeout = over.call_timeout

    def __repr__(self) -> str:
        return f"AsyncSqlalchemyBackend({self._sync.options.where!r})"

    def _run(self, step: Step) -> Awaitable[Any]:
        # Not ``async def``: one coroutine less to resume.
        if self._sync.options.awaitable and current_library() == "asyncio":
            return self._sync.engines.run(step)
        return in_thread(self._sync.run, step)

    def to_sync(self) -> SqlalchemyBackend:
        """The sync front over the same records."""
        return self._sync

    async def close(self) -> None:
        """Close the running loop's connections, and those of the sync front."""
        if current_library() == "asyncio":
            await self._sync.engines.close()
        await in_thread(self._sync.close)


# The examination: tables, settings of the server, and purging (P-17)


def _examine(connection: Connection, now: Callable[[], float]) -> list[Finding]:
    """Look at the database. ``now``: the clock that decides. Raises SQLAlchemy's errors."""
    dialect = connection.dialect
    version = ".".join(map(str, getattr(dialect, "server_version_info", None) or ()))
    found = [findings.server(f"{dialect.name} {version}".strip() + f", by {dialect.driver}")]
    missing = list(_missing(connection))
    found.append(findings.migrations(missing, "run `open-idempotency migrate` with the URL of the backend"))
    found += _SETTINGS.get(dialect.name, _none)(connection)
    if missing:
        return found
    expires = records.c.expires_at
    expired = select(expires).where(expires <= now()).limit(MOST_COUNTED + 1).subquery()
    count, first = connection.execute(select(func.count(), func.min(expired.c.expires_at)).select_from(expired)).one()
    return [*found, findings.purging(count, 0.0 if first is None else now() - float(first))]


def _missing(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name):
            yield table.name
            continue
        there = {column["name"] for column in inspector.get_columns(table.name)}
        yield from (f"{table.name}.{column.name}" for column in table.columns if column.name not in there)


def _none(connection: Connection) -> Iterator[Finding]:
    yield from ()


def _postgresql(connection: Connection) -> Iterator[Finding]:
    asked = "SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('synchronous_commit')"
    recovering, fsync, commit = connection.execute(text(asked)).one()
    if recovering:
        yield findings.replica("the server is in recovery, so it only reads")
    if fsync != "on":
        yield Finding("durability", Level.PROBLEM, "fsync is off: a crash may corrupt the database", "set fsync = on")
    if commit == "off":
        found = "synchronous_commit is off for this user: a crash forgets the last keys, which run again"
        yield Finding("durability", Level.WARNING, found, "ALTER ROLE ... SET synchronous_commit = on")


def _mysql(connection: Connection) -> Iterator[Finding]:
    read_only, flush = connection.execute(text("SELECT @@read_only, @@innodb_flush_log_at_trx_commit")).one()
    if int(read_only):
        yield findings.replica("the server is read-only")
    if int(flush) != 1:
        found = f"innodb_flush_log_at_trx_commit is {flush}: a crash forgets the last keys, which run again"
        yield Finding("durability", Level.WARNING, found, "set innodb_flush_log_at_trx_commit = 1")


_SETTINGS: dict[str, Callable[[Connection], Iterator[Finding]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}
