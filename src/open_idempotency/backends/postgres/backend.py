"""The PostgreSQL backend: each verb is one function on the server, one statement, one round trip.

The functions decide on the server's clock, and are ``open_idempotency.decisions`` in SQL. No state of a session is
used, so a pooler in transaction mode may be in between.

Tables and functions are made by numbered migrations. ``open-idempotency migrate`` applies them; the backend never does
so by itself, since the application's own user need not be allowed to create anything.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, TypeVar

import psycopg

from open_idempotency._runtime.loops import current_library, in_thread, signal, sleep
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Finding, Level, Wait
from open_idempotency.backends._shared import findings, urls
from open_idempotency.backends._shared.findings import MOST_COUNTED, megabytes
from open_idempotency.backends._shared.fronts import AsyncFront, SyncFront
from open_idempotency.backends._shared.waiters import Waiter, Waiters
from open_idempotency.backends.postgres.connections import wrapped
from open_idempotency.backends.postgres.executors import AsyncExecutor, Executor
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
    """Apply missing migrations in one transaction. Returns their names. Raises ``BackendUnavailable``."""
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
    many others are on their way are sent together, in one statement and one commit (default true). ``prepare``: whether
    a connection prepares statements that it sends often, unless a pooler prevents it (default true). ``clock``:
    seconds, for tests; without it the server's clock decides. Raises ``ConfigurationError``. Since 0.1.
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
        #: the settings from the URL and the keywords
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
        """The listener that reports the ends of attempts to this process, for both fronts."""
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
        try:
            with psycopg.connect(self.options.conninfo, prepare_threshold=None) as connection:
                return _examine(connection, migrations())
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


# The examination: settings of the server, privileges, tables, indexes and purging (P-17). It uses a separate connection
# and one read-only transaction with limits, so that it works behind a pooler.

Connection = psycopg.Connection[Any]

_LIMITS = "SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '1s'; SET LOCAL TRANSACTION READ ONLY"
_SETTINGS = """
    SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('fsync'),
        current_setting('full_page_writes'), current_setting('synchronous_commit'), current_setting('autovacuum'),
        current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity)
"""
_PRIVILEGES = """
    SELECT t.name || ': ' || p.name FROM unnest(ARRAY['records', 'stages', 'reservations']) AS t (name),
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (name)
    WHERE NOT has_table_privilege('open_idempotency.' || t.name, p.name)
"""
_TABLES = """
    SELECT s.relname, pg_total_relation_size(s.relid), s.n_live_tup, s.n_dead_tup,
        greatest(s.last_autovacuum, s.last_vacuum) IS NOT NULL
    FROM pg_stat_user_tables s WHERE s.schemaname = 'open_idempotency' AND s.relname IN ('records', 'stages')
    ORDER BY s.relname
"""
_INVALID = """
    SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relnamespace = 'open_idempotency'::regnamespace AND NOT (i.indisvalid AND i.indisready)
"""
_EXPIRED = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp()) - min(e.expires_at), 0)::float8 FROM (
        SELECT expires_at FROM open_idempotency.records
        WHERE claimed_at + ttl <= extract(epoch FROM clock_timestamp())
            AND expires_at <= extract(epoch FROM clock_timestamp()) LIMIT %s
    ) e
"""
_BUSY, _DEAD, _FEW = 0.9, 1.0, 10_000


def _examine(connection: Connection, known: Collection[str]) -> list[Finding]:
    """Look at the server. ``known``: the names of all migrations. Raises psycopg's errors."""
    with connection.transaction():
        connection.execute(_LIMITS)
        found = list(_settings(connection))
        (has_any,) = connection.execute(_HAS_ANY).fetchone() or (False,)
        applied = _applied_as_far_as_known(connection) if has_any else set[str]()
        if applied is None:
            found.append(findings.denied("migrations", "the table of migrations may not be read"))
        else:
            missing = sorted(set(known) - applied)
            found.append(findings.migrations(missing, "run `open-idempotency migrate` with the URL of the backend"))
            if missing:
                return found
        found += _privileges(connection)
        found += _tables(connection)
        return found


def _applied_as_far_as_known(connection: Connection) -> set[str] | None:
    try:
        with connection.transaction():
            return {name for (name,) in connection.execute("SELECT name FROM open_idempotency.migrations")}
    except psycopg.errors.InsufficientPrivilege:
        return None


def _settings(connection: Connection) -> Iterator[Finding]:
    row = connection.execute(_SETTINGS).fetchone()
    assert row is not None
    version, recovering, fsync, pages, commit, autovacuum, most, used = row
    yield findings.server(f"PostgreSQL {version}")
    if recovering:
        yield findings.replica("the server is in recovery, so it only reads")
    for name, value in (("fsync", fsync), ("full_page_writes", pages)):
        if value != "on":
            found = f"{name} is {value}: a crash of the machine may corrupt the database"
            yield Finding("durability", Level.PROBLEM, found, f"set {name} = on")
    if commit == "off":
        cure = "ALTER ROLE ... SET synchronous_commit = on, for the application's user"
        found = "synchronous_commit is off for this user: a crash forgets the last keys, which run again"
        yield Finding("durability", Level.WARNING, found, cure)
    else:
        yield Finding("durability", Level.OK, f"synchronous_commit is {commit}")
    if autovacuum != "on":
        yield Finding("vacuum", Level.WARNING, "autovacuum is off, so the tables grow", "set autovacuum = on")
    busy = used > _BUSY * most
    cure = "lower max_connections= of the workers, put a pooler in front, or raise the server's" if busy else ""
    level = Level.WARNING if busy else Level.OK
    yield Finding("connections", level, f"{used} of {most} are in use", cure)


def _privileges(connection: Connection) -> Iterator[Finding]:
    missing = [name for (name,) in connection.execute(_PRIVILEGES)]
    if missing:
        yield Finding(
            "privileges",
            Level.PROBLEM,
            f"this user lacks {', '.join(missing)}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA open_idempotency TO the application's user",
        )


def _tables(connection: Connection) -> Iterator[Finding]:
    for name, size, live, dead, vacuumed in connection.execute(_TABLES).fetchall():
        found = f"{name}: {megabytes(size)}, about {live} live rows and {dead} dead ones"
        if dead > max(_FEW, _DEAD * live):
            often = "" if vacuumed else " (it was never vacuumed)"
            yield Finding("table", Level.WARNING, found + often, f"VACUUM open_idempotency.{name}; look at autovacuum")
        else:
            yield Finding("table", Level.OK, found)
    invalid = [name for (name,) in connection.execute(_INVALID)]
    if invalid:
        yield Finding(
            "index", Level.PROBLEM, f"not valid: {', '.join(invalid)}", "REINDEX INDEX CONCURRENTLY each of them"
        )
    try:
        with connection.transaction():
            row = connection.execute(_EXPIRED, (MOST_COUNTED + 1,)).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return  # the missing privilege is a finding of its own
    assert row is not None
    yield findings.purging(*row)


# Notifications that attempts have ended: one thread with one connection in each process, for both fronts. The first
# caller that waits starts the thread. It listens to one channel for all records, and ends when no caller has waited for
# a while or its connection breaks. No outcome depends on a notification: it only makes waiting shorter.

#: seconds without waiting callers after which the thread ends
IDLE = 10.0
#: seconds without a new connection after one broke
REST = 5.0
#: seconds between two looks whether the thread is to end
LOOK = 0.5


class Listener:
    """The listener of one process. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._waiters = Waiters()
        self._thread: threading.Thread | None = None
        self._listening = self._closing = False
        self._resting_until = 0.0

    def enter(self, record_id: bytes, ended: Waiter) -> bool:
        """Wake ``ended`` when the attempt has ended; false where there is no listening connection yet: then poll."""
        if not self._options.listen:
            return False
        with self._lock:
            self._start()
            if self._listening:
                self._waiters.add(record_id, ended)
            return self._listening

    def leave(self, record_id: bytes, ended: Waiter) -> None:
        """Stop waiting."""
        with self._lock:
            self._waiters.discard(record_id, ended)

    def close(self) -> None:
        """End the thread, and wait for its end; it is started again for the next caller that waits."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            thread.join(self._options.timeout + LOOK)

    def _start(self) -> None:
        if self._thread is not None or time.monotonic() < self._resting_until:
            return
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="open-idempotency-listener", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the process may have no more threads
            self._thread = None
            self._resting_until = time.monotonic() + REST

    # In the thread

    def _run(self) -> None:
        try:
            with psycopg.connect(self._options.conninfo, autocommit=True, prepare_threshold=None) as connection:
                if _is_pooled(connection):
                    self._resting_until = math.inf
                    return
                connection.execute("LISTEN open_idempotency")
                with self._lock:
                    self._listening = True
                self._listen(connection)
        except (psycopg.Error, OSError):
            self._resting_until = time.monotonic() + REST
        finally:
            with self._lock:
                self._listening, self._thread = False, None
                self._waiters.wake_all()

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        idle_since = time.monotonic()
        while True:
            for notification in connection.notifies(timeout=LOOK):
                self._hear(notification.payload)
            with self._lock:
                if self._waiters:
                    idle_since = time.monotonic()
                if self._closing or time.monotonic() - idle_since > IDLE:
                    self._listening = False
                    return

    def _hear(self, payload: str) -> None:
        with suppress(ValueError):  # any user of the database may send any notification
            record_id = bytes.fromhex(payload)
            with self._lock:
                self._waiters.wake(record_id)


def _is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler stands in between, where LISTEN would run on a session that other clients get next.

    A pooler invents the process id that it gives to clients for cancelling, since the session may change each time.
    """
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid
