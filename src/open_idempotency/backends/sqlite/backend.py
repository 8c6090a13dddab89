"""The SQLite backend: works across the processes of one machine, and is the default for embedded use.

What only reads (a replay, a 409, a 422) is one SELECT and takes no lock. What writes reads again inside a write
transaction, where ``open_idempotency.decisions`` decides.

On asyncio a batch of requests goes to a thread together, so that a loop with many requests in flight does not wake a
thread for each of them. The batches of several loops, and of threads, meet in ``transactions``. On trio, and where
nothing is to be coalesced, each call has a thread for itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from open_idempotency._runtime.loops import current_library, in_thread
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Finding, Get
from open_idempotency.backends._shared import urls
from open_idempotency.backends._shared.coalescing import Limits, LoopCoalescer
from open_idempotency.backends._shared.fronts import AsyncFront, SyncFront
from open_idempotency.backends._shared.threads import run_in_thread
from open_idempotency.backends.sqlite.connections import Connections
from open_idempotency.backends.sqlite.transactions import Request, Transactions
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
        # The turn among this process's threads, the opening of a connection, the turn among processes.
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
        from open_idempotency.backends.sqlite.examination import examine

        return self._connections.read(examine, self._path, self.now())

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
    """What one loop has on its way: one batch that may write, and beside it one that only reads.

    So a replay waits neither for the disk behind a new key nor for another process that holds the write lock. A request
    that arrives between two batches goes with the next, and a response that needs no write is reported before that
    batch is written: the claims of new keys that arrive with it would else miss the batch while they are looked for,
    and each batch would be half as large.
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
