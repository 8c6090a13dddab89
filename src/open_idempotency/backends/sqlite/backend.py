"""The SQLite backend: works across the processes of one machine, and is the default for embedded use.

A claim that only reads (a replay, a 409, a 422) is one SELECT and takes no lock. A verb that writes reads again inside
a write transaction, where ``open_idempotency.decisions`` decides.

On asyncio a batch of requests goes to a thread together, so that a loop with many requests in flight does not wake a
thread for each of them. ``transactions`` joins the batches of several loops and of threads. On trio, and without
``coalesce``, each call has a thread to itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from open_idempotency._runtime.loops import current_library, in_thread
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Finding, Get, Level
from open_idempotency.backends._shared import findings, urls
from open_idempotency.backends._shared.coalescing import Limits, LoopCoalescer
from open_idempotency.backends._shared.findings import MOST_COUNTED, megabytes
from open_idempotency.backends._shared.fronts import AsyncFront, SyncFront
from open_idempotency.backends.sqlite.transactions import Connections, Request, Transactions
from open_idempotency.backends.sqlite.verbs import SCHEMA_VERSION, VERBS, Verb
from open_idempotency.exceptions import ConfigurationError

C = TypeVar("C")
R = TypeVar("R")

_SYNCHRONOUS = ("full", "normal")
_OPTIONS: dict[str, urls.Parser] = {
    "timeout": urls.seconds,
    "synchronous": urls.choice(*_SYNCHRONOUS),
    "coalesce": urls.yes_or_no,
}


class SqliteBackend(SyncFront):
    """The sync front, on the database file at ``path``, which is created; its directory must exist.

    ``timeout``: seconds to wait for another writer. ``synchronous``: ``"full"``, where an acknowledged write
    survives a power cut, or ``"normal"``, where it survives a crash of the process. ``coalesce``: whether requests
    that arrive while a transaction is written share the next one; threads do so with ``"full"``, tasks always.
    ``clock``: seconds, for tests. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        path: str,
        *,
        timeout: urls.Seconds = 2.0,
        synchronous: str = "full",
        coalesce: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        read = urls.keywords({"timeout": timeout, "synchronous": synchronous, "coalesce": coalesce}, _OPTIONS)
        seconds: float = read["timeout"]
        self.file = self._path = _database_path(path)
        self._connections = Connections(self._path, seconds, synchronous)
        durable = synchronous == "full"
        self._transactions = Transactions(self._connections, clock or time.time, seconds, read["coalesce"], durable)
        super().__init__(VERBS, self._transactions.execute)
        # Three waits: for the other threads of this process, to open a connection, and for other processes.
        self.call_timeout = 3 * seconds
        self._async = AsyncSqliteBackend(self._path, over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SqliteBackend:
        """``sqlite:///relative.db``, ``sqlite:////absolute.db``, with ``timeout``, ``synchronous`` and
        ``coalesce=yes|no``.
        """
        parts = urls.split(url)
        if parts.netloc:
            raise ConfigurationError(
                "backend: sqlite:// takes no host; write sqlite:///relative.db or sqlite:////absolute.db"
            )
        return cls(urls.path(parts), **urls.options(parts, _OPTIONS) | urls.keywords(options, _OPTIONS, "sqlite://"))

    def __repr__(self) -> str:
        return f"SqliteBackend({self._path!r})"

    def to_async(self) -> AsyncSqliteBackend:
        """The async front on the same file."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """See ``Backend.migrate``; makes the file, as the first request would. Raises ``BackendUnavailable``."""
        is_new = not os.path.exists(self._path)
        self.get(Get(bytes(32)))
        return (f"schema {SCHEMA_VERSION}",) if is_new else ()

    def examine(self) -> Sequence[Finding]:
        """See ``Backend.examine``; it reads a file of up to 256 MiB whole."""
        return self._connections.read(_examine, self._path, self.now())

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._connections.close()


def _database_path(path: str) -> str:
    """The absolute path, so that a later change of directory does not matter; checked at start rather than at the first
    request. Raises ``ConfigurationError``.
    """
    path = os.fspath(path)
    if path in ("", ":memory:"):
        raise ConfigurationError(
            "backend: sqlite needs a file such as sqlite:///idem.db; for records in memory use memory://"
        )
    absolute = os.path.abspath(path)
    directory = os.path.dirname(absolute)
    if not os.path.isdir(directory):
        raise ConfigurationError(f"backend: sqlite: the directory {directory} does not exist; create it first")
    if os.path.isdir(absolute):
        raise ConfigurationError(f"backend: sqlite: {absolute} is a directory, not a database file")
    return absolute


class _Lanes:
    """The batches of one loop that are on their way: one that may write, and one that only reads.

    So a replay waits neither for the disk write of a new key nor for another process that holds the write lock. A
    request that arrives between two batches goes with the next one, and a response that needs no write is reported
    before that batch is written. If requests were looked up before they join it, claims of new keys would miss it
    meanwhile, and each batch would be half as large.
    """

    def __init__(self, transactions: Transactions, loop: asyncio.AbstractEventLoop) -> None:
        self._transactions = transactions
        self._loop = loop
        limits = Limits(transactions.timeout)
        self._writing: LoopCoalescer[Request[Any, Any], Any] = LoopCoalescer(
            partial(run_in_thread, self._execute_all), limits
        )
        self._reading: LoopCoalescer[Request[Any, Any], Any] = LoopCoalescer(
            partial(run_in_thread, transactions.look), limits
        )

    def _execute_all(self, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        return self._transactions.execute_all(requests, self._report)

    def _report(self, responses: Sequence[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            self._loop.call_soon_threadsafe(self._writing.report, responses)

    async def execute(self, request: Request[C, R]) -> R:
        """The response to a request."""
        if request.verb.look is not None and self._writing.on_its_way:
            response: R | None = await self._reading.ask(request)
            if response is not None:
                return response
        written: R = await self._writing.ask(request, request.size)
        return written

    def now(self) -> float:
        """The clock on which a request waits."""
        return self._writing.now()


class AsyncSqliteBackend(AsyncFront):
    """The async front; takes the same arguments as ``SqliteBackend``. Since 0.1."""

    def __init__(self, path: str, *, over: SqliteBackend | None = None, **options: Any) -> None:
        if over is None:
            over = SqliteBackend(path, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other front
        super().__init__(VERBS, self._carry_out)
        self._sync = over
        self.call_timeout = over.call_timeout
        self._transactions = over._transactions  # pyright: ignore[reportPrivateUsage]  # its other front
        self._lanes: PerProcess[dict[asyncio.AbstractEventLoop, _Lanes]] = PerProcess(dict)

    def __repr__(self) -> str:
        return f"AsyncSqliteBackend({self._sync!r})"

    def to_sync(self) -> SqliteBackend:
        """The sync front on the same file."""
        return self._sync

    async def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        await in_thread(self._sync.close)

    def _carry_out(self, verb: Verb[C, R], command: C) -> Awaitable[R]:
        # Not ``async def``: one coroutine less to resume.
        transactions = self._transactions
        if verb.reads or not transactions.coalesce or current_library() != "asyncio":
            return in_thread(transactions.execute, verb, command)
        lanes = self._lanes_of(asyncio.get_running_loop())
        return lanes.execute(Request(verb, command, transactions.timeout, lanes.now))

    def _lanes_of(self, loop: asyncio.AbstractEventLoop) -> _Lanes:
        all_lanes = self._lanes.get()
        lanes = all_lanes.get(loop)
        if lanes is None:
            for other in list(all_lanes):
                if other.is_closed():
                    all_lanes.pop(other, None)
            lanes = all_lanes[loop] = _Lanes(self._transactions, loop)
        return lanes


# The examination: the health of the file, its permissions, the disk, and purging (P-17)

_EXPIRED = """
    SELECT count(*), coalesce(:now - min(expires_at), 0.0) FROM (
        SELECT expires_at FROM open_idempotency_records
        WHERE claimed_at + ttl <= :now AND expires_at <= :now LIMIT :most
    )
"""
#: bytes up to which a file is read whole to be checked
_CHECKED = 256 * 1024 * 1024
_LITTLE, _TOO_LITTLE = 1_000_000_000, 100_000_000


def _examine(connection: sqlite3.Connection, path: str, now: float) -> list[Finding]:
    """Look at the file. Raises ``sqlite3.Error``."""
    found = [findings.server(f"SQLite {sqlite3.sqlite_version}"), *_look_at_file(path), _check(connection, path)]
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        cure = "PRAGMA journal_mode=wal, once; the file keeps it. On a network file system SQLite is not safe at all"
        found.append(Finding("journal", Level.WARNING, f"journal_mode is {mode}, so readers hold up writers", cure))
    row = connection.execute(_EXPIRED, {"now": now, "most": MOST_COUNTED + 1}).fetchone()
    return [*found, findings.purging(*row)]


def _look_at_file(path: str) -> Iterator[Finding]:
    size = sum(os.path.getsize(path + end) for end in ("", "-wal") if os.path.exists(path + end))
    free = shutil.disk_usage(os.path.dirname(path)).free
    found = f"{megabytes(size)} with its log; the disk has {megabytes(free)} left"
    level = Level.PROBLEM if free < _TOO_LITTLE else Level.WARNING if free < _LITTLE else Level.OK
    yield Finding(
        "disk", level, found, "make room: on a full disk every new key gets 503" if level is not Level.OK else ""
    )
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if os.name == "posix" and mode & 0o007:
        found = f"every user of this machine may open the file (mode {mode:04o})"
        yield Finding("permissions", Level.WARNING, found, f"chmod o= {path}; stored responses are in it")


def _check(connection: sqlite3.Connection, path: str) -> Finding:
    if os.path.getsize(path) > _CHECKED:
        return Finding("integrity", Level.UNKNOWN, "the file is too large to be checked here", "run PRAGMA quick_check")
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said == "ok":
        return Finding("integrity", Level.OK, "quick_check found nothing")
    return Finding(
        "integrity", Level.PROBLEM, f"quick_check: {said}", "stop the workers, and restore or remake the file"
    )


# Sync calls of an asyncio loop in threads, at half the cost of an executor. There is one pool of threads for each
# process. A thread that is idle for a while ends. A thread that blocks delays no other call, since there are as many
# threads as calls at the same moment. The callers bound that number.

T = TypeVar("T")

#: seconds after which an idle thread ends
_IDLE = 10.0


class _Call:
    """One call, its outcome, and the future that its task awaits at the moment."""

    __slots__ = ("_loop", "argument", "done", "error", "function", "result", "waiter")

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        self.function = function
        self.argument = argument
        self._loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[None] = self._loop.create_future()
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        """In the thread."""
        try:
            self.result = self.function(self.argument)
        except BaseException as error:
            self.error = error

    def report(self) -> None:
        """In the thread: wake the task."""
        with suppress(RuntimeError):  # the loop is closed, and its task is gone
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.done = True
        if not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the end of the call, even if the task is cancelled: a call that has begun is not abandoned."""
        try:
            await self.waiter
        except asyncio.CancelledError:
            while not self.done:
                self.waiter = self._loop.create_future()
                with suppress(asyncio.CancelledError):
                    await self.waiter
            raise


class _Thread:
    """Makes one call after the other; it is in ``idle`` while it has none."""

    def __init__(self, idle: list[_Thread]) -> None:
        self._idle = idle
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        threading.Thread(target=self._work, name="open-idempotency-call", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                call = self.calls.get(timeout=_IDLE)
            except Empty:
                with suppress(ValueError):  # it was just taken, and its call is on its way
                    self._idle.remove(self)
                    return
                continue
            call.make()
            self._idle.append(self)
            call.report()
            del call


_idle: PerProcess[list[_Thread]] = PerProcess(list)


async def run_in_thread(function: Callable[[Any], T], argument: Any) -> T:
    """``function(argument)`` in a thread. A cancellation takes effect after the end of the call."""
    call = _Call(function, argument)
    idle = _idle.get()
    try:
        thread = idle.pop()
    except IndexError:
        thread = _Thread(idle)
    thread.calls.put(call)
    await call.wait()
    if call.error is not None:
        raise call.error
    result: T = call.result
    return result
