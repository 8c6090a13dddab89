"""The PostgreSQL backend: each verb is one function on the server, one statement, one round trip.

The functions decide on the server's clock, and say in SQL what ``open_idempotency.decisions`` says. Nothing of a
session is used, so a pooler in transaction mode may stand in between.

Tables and functions are made by numbered migrations. ``open-idempotency migrate`` applies them; the backend never does
so by itself, since the application's own user need not be allowed to create anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import psycopg

from open_idempotency._runtime.loops import current_library, in_thread, signal, sleep
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Finding, Wait
from open_idempotency.backends._shared import urls
from open_idempotency.backends._shared.fronts import AsyncFront, SyncFront
from open_idempotency.backends.postgres.connections import wrapped
from open_idempotency.backends.postgres.executors import AsyncExecutor, Executor
from open_idempotency.backends.postgres.listening import Listener
from open_idempotency.backends.postgres.options import OPTIONS, Options, options_of
from open_idempotency.backends.postgres.verbs import AWAIT, VERBS, Verb
from open_idempotency.exceptions import BackendUnavailable

# Migrations

# One migration runs at a time; the number is arbitrary.
_LOCK = "SELECT pg_advisory_xact_lock(7031975330129)"
_HAS_ANY = "SELECT to_regclass('open_idempotency.migrations') IS NOT NULL"
_APPLIED = "SELECT name FROM open_idempotency.migrations"
_RECORD = "INSERT INTO open_idempotency.migrations (name) VALUES (%s)"


def migrations() -> dict[str, str]:
    """The script of each migration by name, in order; a name begins with its number."""
    folder = files("open_idempotency.backends.postgres") / "sql"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return {name.removesuffix(".sql"): (folder / name).read_text(encoding="utf-8") for name in names}


def migrate(options: Options) -> list[str]:
    """Apply, in one transaction, the migrations that the database lacks; their names. Raises ``BackendUnavailable``."""
    try:
        with psycopg.connect(options.conninfo, prepare_threshold=None) as connection:
            connection.execute(_LOCK)
            return _apply(connection)
    except psycopg.Error as error:
        raise BackendUnavailable(f"PostgreSQL: {type(error).__name__}: {str(error).strip()}") from error


def _apply(connection: psycopg.Connection[Any]) -> list[str]:
    (has_any,) = connection.execute(_HAS_ANY).fetchone() or (False,)
    applied = {name for (name,) in connection.execute(_APPLIED)} if has_any else set[str]()
    missing = {name: script for name, script in migrations().items() if name not in applied}
    for name, script in missing.items():
        connection.execute(script.encode())
        connection.execute(_RECORD, (name,))
    return list(missing)


# The backend

C = TypeVar("C")
R = TypeVar("R")


class PostgresBackend(SyncFront):
    """The sync front, on the database at a ``postgresql://`` URL.

    ``url``: the URL, or a ``ConnectionPool`` or ``AsyncConnectionPool`` of ``psycopg_pool``. Of a pool the settings of
    its connections are used, never the connections; ``close`` does not close it.
    ``timeout``: seconds to wait for a connection, and then for a reply (default 2). ``max_connections``: for each
    process and event loop (default 10). ``listen``: false where no connection may be kept for notifications, as
    behind a pooler in transaction mode; waiting duplicates then poll. ``coalesce``: whether requests that arrive while
    many others are on their way go out with them, in one statement and one commit (default true). ``prepare``: whether
    a connection prepares what it sends often, where nothing in between prevents it (default true). ``clock``: seconds,
    for tests; without it the server's clock decides. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        url: str | Any,
        *,
        timeout: urls.Seconds | None = None,
        max_connections: int | None = None,
        listen: bool | str | None = None,
        coalesce: bool | None = None,
        prepare: bool | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        given = {
            "timeout": timeout,
            "max_connections": max_connections,
            "listen": listen,
            "coalesce": coalesce,
            "prepare": prepare,
            "clock": clock,
        }
        #: what the URL and the keywords said
        self.options = options_of(url, given)
        self._executor = Executor(self.options)
        super().__init__(VERBS, self._executor.execute)
        self._listeners = PerProcess(lambda: Listener(self.options))
        self.call_timeout = self.options.call_timeout
        self._async = AsyncPostgresBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> PostgresBackend:
        """``postgresql://user:password@host:port/database?timeout=…&max_connections=…``, and libpq's own options."""
        return cls(url, **urls.keywords(options, OPTIONS, "postgresql://"))

    def __repr__(self) -> str:
        return f"PostgresBackend({self.options.where!r})"

    @property
    def listener(self) -> Listener:
        """What reports the ends of attempts to this process; for both fronts."""
        return self._listeners.get()

    def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``; ends when the server reports it, or after ``c.pause`` where it cannot."""
        until, ended = time.monotonic() + c.seconds, threading.Event()
        if not self.listener.enter(c.record_id, ended):
            time.sleep(min(c.pause, c.seconds))
            return
        try:
            if self._execute(AWAIT, c.record_id):
                ended.wait(until - time.monotonic())
        except BackendUnavailable:
            time.sleep(max(0.0, min(c.pause, until - time.monotonic())))  # the next claim will report it
        finally:
            self.listener.leave(c.record_id, ended)

    def to_async(self) -> AsyncPostgresBackend:
        """The async front over the same records."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """See ``Backend.migrate``; makes the schema ``open_idempotency``. Raises ``BackendUnavailable``."""
        return migrate(self.options)

    def examine(self) -> Sequence[Finding]:
        """See ``Backend.examine``; on a connection of its own. Raises ``BackendUnavailable``."""
        from open_idempotency.backends.postgres.examination import examine

        try:
            with psycopg.connect(self.options.conninfo, prepare_threshold=None) as connection:
                return examine(connection, migrations())
        except psycopg.Error as error:
            raise wrapped(error) from error

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        listener = self._listeners.pop()
        if listener is not None:
            listener.close()
        self._executor.close()
        self._async.close_ended()


class AsyncPostgresBackend(AsyncFront):
    """The async front, on asyncio and on trio; takes the same arguments as ``PostgresBackend``. Since 0.1.

    The client library knows asyncio alone, so under trio each call is the sync front's, made in a thread.
    """

    def __init__(self, url: str | Any = "", *, over: PostgresBackend | None = None, **options: Any) -> None:
        if over is None:
            over = PostgresBackend(url, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other front
        super().__init__(VERBS, self._carry_out)
        self._sync = over
        self._in_threads = over._executor  # pyright: ignore[reportPrivateUsage]  # its other front
        self._executor = AsyncExecutor(over.options)
        self.call_timeout = over.call_timeout

    def __repr__(self) -> str:
        return f"AsyncPostgresBackend({self._sync.options.where!r})"

    def _carry_out(self, verb: Verb[C, R], command: C) -> Awaitable[R]:
        # Not ``async def``: one coroutine less to resume.
        if current_library() == "trio":
            return in_thread(self._in_threads.execute, verb, command)
        return self._executor.execute(verb, command)

    async def wait(self, c: Wait, /) -> None:
        """See ``PostgresBackend.wait``; the same thread listens for both fronts, and wakes the task."""
        until, ended = time.monotonic() + c.seconds, signal()
        if not self._sync.listener.enter(c.record_id, ended):
            await sleep(min(c.pause, c.seconds))
            return
        try:
            if await self._execute(AWAIT, c.record_id):
                await ended.wait(max(0.0, until - time.monotonic()))
        except BackendUnavailable:
            await sleep(max(0.0, min(c.pause, until - time.monotonic())))
        finally:
            self._sync.listener.leave(c.record_id, ended)

    def to_sync(self) -> PostgresBackend:
        """The sync front over the same records."""
        return self._sync

    def close_ended(self) -> None:
        """Close the connections of event loops that have ended."""
        self._executor.close_ended()

    async def close(self) -> None:
        """Close the running loop's connections, and those of the sync front."""
        if current_library() == "asyncio":
            self._executor.close()
        await in_thread(self._sync.close)
