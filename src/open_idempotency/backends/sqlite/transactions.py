"""Connections to one SQLite file, and group commit on them.

Requests that arrive while the last transaction is written share the next one.

Each process has a small pool of connections and one writer at a time. SQLite must not be carried across a fork: the
child inherits the memory of its locks but not the locks (POSIX locks belong to a process), so even a new connection of
the child would be unprotected beside an inherited one. Right before a fork this process's calls therefore come to an
end and its connections are closed; both sides open new ones.

No response leaves before its transaction is committed. A refusal, such as LeaseLost, is a response like others, since a
verb that raises one has written nothing. If SQLite fails for one request, such as for a value that is too large, the
whole transaction is undone and each request is tried alone. If the database is locked or full, all requests fail.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backends._shared import sizes, sqlite_files, waiters
from open_idempotency.backends._shared.coalescing import NOT_ALONE, Limits, ThreadCoalescer
from open_idempotency.backends.sqlite import verbs
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, RecordUnreadable

# Connections

P = ParamSpec("P")
T = TypeVar("T")

_MAX_IDLE = 8
_CACHED_STATEMENTS = 64


class Turn:
    """A lock whose ``release`` does nothing if this thread does not hold it.

    A signal's handler may raise right after ``acquire``, before a ``try`` after it begins. So ``acquire`` belongs
    inside the ``try``.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, timeout: float) -> bool:
        """Take the lock within ``timeout`` seconds. Returns whether that succeeded."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Release the lock, if this thread holds it."""
        with suppress(RuntimeError):
            self._lock.release()


class _Connection(sqlite3.Connection):
    """A connection. ``file``: the identity of the file that it has opened."""

    file: sqlite_files.Identity | None = None


class _Pool:
    """The connections of one process. ``writing``: queues the writers, which would poll in SQLite otherwise."""

    def __init__(self) -> None:
        self.idle: deque[_Connection] = deque()
        #: closes idle connections when nothing uses this pool any more, and at exit: a backend need not be closed
        self.ending = weakref.finalize(self, _close_own, self.idle, os.getpid())
        self.calls: set[object] = set()
        self.writing = Turn()
        #: held by the thread that opens the process's first connection, which may have to make the tables
        self.opening = threading.Lock()
        self.opened = False
        self._forking: threading.Event | None = None

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()

    def enter(self, seconds: float) -> object:
        """Add a call to ``calls``. If the process is forking, wait until that has ended, for ``seconds`` at most."""
        call = object()
        deadline = time.monotonic() + seconds
        while True:
            # First, so that either this call sees the fork, or the fork sees this call.
            self.calls.add(call)
            forking = self._forking
            if forking is None:
                return call
            self.calls.discard(call)
            if not forking.wait(deadline - time.monotonic()):
                raise BackendUnavailable(f"the process was forking for {seconds} s")

    def pause(self, seconds: float) -> Callable[[], None]:
        deadline = time.monotonic() + seconds
        held = self.writing.acquire(timeout=seconds)
        forking = self._forking = threading.Event()
        while self.calls and time.monotonic() < deadline:
            time.sleep(0.001)
        self.close()

        def resume() -> None:
            self._forking = None
            forking.set()
            if held:
                self.writing.release()

        return resume


def _close_own(idle: deque[_Connection], pid: int) -> None:
    # A child that ends does not close what its parent has opened.
    with suppress(IndexError):
        while os.getpid() == pid:
            idle.pop().close()


class Connections:
    """Runs functions on connections to one file.

    ``timeout``: seconds to wait for each lock; ``synchronous``: a PRAGMA.
    """

    def __init__(self, path: str, timeout: float, synchronous: str) -> None:
        self._path = path
        self._timeout = timeout
        self._synchronous = synchronous
        self._pools = PerProcess(_Pool)
        waiters.pause_at_forks(self)

    def read(self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call with a connection for single reads; waits for no writer. Raises ``BackendUnavailable``."""
        pool = self._pools.get()
        call = pool.enter(self._timeout)
        try:
            connection = self._take(pool)
            try:
                result = function(connection, *args, **kwargs)
            except (sqlite3.Error, OverflowError):
                connection.close()
                raise
            except BaseException:
                # The error may be a response such as LeaseLost, raised between statements. Then the connection is
                # sound, unless there was no memory left to end its transaction.
                if connection.in_transaction:
                    connection.close()
                else:
                    self._give_back(pool, connection)
                raise
            self._give_back(pool, connection)
            return result
        except (sqlite3.Error, OverflowError) as error:
            if not is_databases(error):
                raise
            raise wrapped(error) from error
        finally:
            pool.calls.discard(call)

    def take_turn(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call with a connection while no other thread of this process writes. Raises ``BackendUnavailable``."""
        turn = self.turn
        try:
            if not turn.acquire(timeout=self._timeout):
                raise BackendUnavailable(f"no turn to write within {self._timeout} s")
            return self.read(function, *args, **kwargs)
        finally:
            turn.release()

    @property
    def turn(self) -> Turn:
        """Held by the thread of this process that writes."""
        return self._pools.get().writing

    def close(self) -> None:
        """Close this process's idle connections; others close when their call ends."""
        pool = self._pools.pop()
        if pool is not None:
            pool.close()

    def pause(self) -> Callable[[], None]:
        """See ``forks.Pausable``."""
        return self._pools.get().pause(self._timeout)

    def _take(self, pool: _Pool) -> _Connection:
        if not pool.opened:
            return self._open_first(pool)
        file = sqlite_files.identity(self._path)
        if file is None:
            raise sqlite_files.gone(self._path)
        while True:
            try:
                connection = pool.idle.pop()
            except IndexError:
                return self._open(file)
            if connection.file == file:
                return connection
            connection.close()

    def _open_first(self, pool: _Pool) -> _Connection:
        # One thread prepares the file. The others wait, since they would poll for its locks, and some would fail.
        if not pool.opening.acquire(timeout=self._timeout):
            raise BackendUnavailable(f"SQLite: the database was not opened within {self._timeout} s")
        try:
            sqlite_files.make(self._path)
            connection = self._open(sqlite_files.identity(self._path))
            pool.opened = True
            return connection
        finally:
            pool.opening.release()

    def _give_back(self, pool: _Pool, connection: _Connection) -> None:
        # After close() the pool is another one, and at exit it ends; what is not reused is closed.
        if len(pool.idle) < _MAX_IDLE and pool.ending.alive and self._pools.get() is pool:
            pool.idle.append(connection)
        else:
            connection.close()

    def _open(self, file: sqlite_files.Identity | None) -> _Connection:
        """A new connection to the database. ``file``: the identity that its file must have, or None."""
        connection = sqlite3.connect(
            sqlite_files.uri(self._path),
            uri=True,
            factory=_Connection,
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
        )
        try:
            self._prepare(connection)
            connection.file = sqlite_files.identity(self._path)
            if connection.file != file:
                raise sqlite_files.replaced(self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        self._use_write_ahead_log(connection)
        versions = _versions(connection)
        if versions in _OLDER:
            self._bring_up(connection)
            versions = _versions(connection)
        if versions != [verbs.SCHEMA_VERSION]:
            raise RecordUnreadable(
                f"the database has schema version {versions!r:.40}; this release reads {verbs.SCHEMA_VERSION}"
            )
        if connection.execute(verbs.HAS_ABOUT).fetchone() is None:
            with transaction(connection):
                # Another process may have been first.
                if connection.execute(verbs.HAS_ABOUT).fetchone() is None:
                    connection.execute(verbs.ADD_ABOUT)

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        # Changing the journal waits for no lock, unlike statements, so two processes that start together wait here.
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _bring_up(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            # Another process may have been first.
            versions = _versions(connection)
            if versions in _OLDER:
                for script in verbs.SCHEMAS[_OLDER.index(versions) :]:
                    for statement in script.split(";"):
                        connection.execute(statement)


class transaction:  # noqa: N801 (reads as a verb)
    """``with transaction(connection):`` begins to write; committed at the end, rolled back when the block raises."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute(verbs.BEGIN)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute(verbs.COMMIT)
        finally:
            # After an error SQLite may have rolled back by itself, as when the disk is full.
            if self._connection.in_transaction:
                self._connection.execute(verbs.ROLLBACK)


# The versions that a database may have had before, in order; at first it has none.
_OLDER: list[list[int] | None] = [None, *([version] for version in range(1, verbs.SCHEMA_VERSION))]


def _versions(connection: sqlite3.Connection) -> list[int] | None:
    if connection.execute(verbs.HAS_SCHEMA).fetchone() is None:
        return None
    return [row[0] for row in connection.execute(verbs.READ_SCHEMA)]


def is_databases(error: BaseException) -> bool:
    """Whether an error is SQLite's, or the driver's about a value that SQLite could not take."""
    return isinstance(error, sqlite3.Error) or (isinstance(error, OverflowError) and sizes.is_refused(None, str(error)))


def wrapped(error: Exception) -> IdempotencyError:
    """The error of this package for a driver's error."""
    if sizes.is_refused(None, str(error)):
        return sizes.too_large("SQLite", error)
    # A malformed file, or one that is no database, raises this very class; all other errors are subclasses.
    if type(error) is sqlite3.DatabaseError:
        return RecordUnreadable(f"SQLite cannot read the database: {error}")
    return BackendUnavailable(f"SQLite: {error}")


# Group commit

C = TypeVar("C")
R = TypeVar("R")

#: expired records that are deleted along with each claim, and with all claims of a transaction
_PURGED_PER_CLAIM = 4
_PURGED_AT_ONCE = 100
#: seconds after which expired records are looked for again, where there were few
_PURGE_PAUSE = 1.0


#: takes the responses of a batch in order; an exception counts as a response, and None means that there is none yet
Report = Callable[[Sequence[Any]], object]


class Request(Generic[C, R]):
    """A verb with its command. ``size``: about how many bytes it writes. It must begin within ``seconds`` of ``now``.

    ``now``: the clock on which it waits; that of a task does not count time in which its loop stood still.
    """

    __slots__ = ("command", "looked", "now", "size", "until", "verb")

    def __init__(
        self, verb: verbs.Verb[C, R], command: C, seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.verb = verb
        self.command = command
        self.size = 0 if verb.size is None else verb.size(command)
        self.now = now
        self.until = now() + seconds
        self.looked = verb.look is None

    @property
    def is_overdue(self) -> bool:
        """Whether it must not be written any more."""
        return self.until < self.now()


class Transactions:
    """Carries out verbs. ``timeout``: seconds within which each must begin to write. ``durable``: whether a commit
    waits for the disk.
    """

    def __init__(
        self, connections: Connections, clock: verbs.Clock, timeout: float, coalesce: bool, durable: bool
    ) -> None:
        self.timeout = timeout
        self.coalesce = coalesce
        # A commit that does not wait for the disk costs less than waking the threads that would share it.
        self._coalesce_threads = coalesce and durable
        self._connections = connections
        self._clock = clock
        self._coalescers: PerProcess[ThreadCoalescer[Request[Any, Any], Any]] = PerProcess(
            lambda: ThreadCoalescer(self._carry_out, Limits(timeout))
        )
        self._purge_from = 0.0

    def execute(self, verb: verbs.Verb[C, R], command: C) -> R:
        """The response to one command, once it is durable."""
        if verb.reads:
            return self._connections.read(verb.write, command, self._clock)
        response: Any = self._connections.read(self._look_and_write, verb, command)
        if response is NOT_ALONE:
            return self._write_with_others(verb, command)
        found: R = response
        return found

    def _look_and_write(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> Any:
        response = None if verb.look is None else verb.look(connection, command, self._clock)
        if response is not None:
            return response
        if self._coalesce_threads:
            return self._coalescers.get().alone(self._write_at_once, connection, verb, command)
        return self._write_at_once(connection, verb, command)

    def _write_at_once(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> Any:
        # A caller that waits for a turn must hold no connection: see Connections.pause.
        turn = self._connections.turn
        try:
            return self._write_alone(connection, verb, command) if turn.acquire(timeout=0) else NOT_ALONE
        finally:
            turn.release()

    def _write_with_others(self, verb: verbs.Verb[C, R], command: C) -> R:
        if not self._coalesce_threads:
            return self._connections.take_turn(self._write_alone, verb, command)
        request = Request(verb, command, self.timeout)
        written: R = self._coalescers.get().ask(request, request.size)
        return written

    def execute_all(self, requests: Sequence[Request[Any, Any]], report: Report | None = None) -> Sequence[Any]:
        """The responses to several requests; a response may be an exception.

        Responses that need no write are passed to ``report`` first, with None for the requests that have to be written.
        """
        if len(requests) == 1:
            (alone,) = requests
            return (self.execute(alone.verb, alone.command),)
        responses = self.look(requests)
        left = [(request, request.size) for request, found in zip(requests, responses, strict=True) if found is None]
        if report is not None and 0 < len(left) < len(requests):
            report(responses)
        written = iter(self._coalescers.get().ask_all(left) if left else ())
        return [next(written) if found is None else found for found in responses]

    def look(self, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        """The responses that need no write; None for the other requests."""
        if all(request.looked for request in requests):
            return [None] * len(requests)
        return self._connections.read(self._look, requests)

    def _look(self, connection: sqlite3.Connection, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        self._pass_over_new(connection, [request for request in requests if request.verb is verbs.CLAIM])
        return [self._look_for(connection, request) for request in requests]

    def _pass_over_new(self, connection: sqlite3.Connection, claims: Sequence[Request[Any, Any]]) -> None:
        # Most claims are of new keys. One statement finds that out for all, since each releases the interpreter's lock.
        if len(claims) < 2:
            return
        # A value that cannot be an id is refused later, when its request is looked up alone.
        with suppress(sqlite3.InterfaceError, sqlite3.ProgrammingError):
            found = verbs.find(connection, [claim.command.record_id for claim in claims])
            for claim in claims:
                claim.looked = claim.looked or claim.command.record_id not in found

    def _look_for(self, connection: sqlite3.Connection, request: Request[Any, Any]) -> Any:
        look = request.verb.look
        if look is None or request.looked:
            return None
        request.looked = True
        try:
            return look(connection, request.command, self._clock)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            return _refused(error)

    def _carry_out(self, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        if len(requests) == 1:
            return (self._carry_out_alone(*requests),)
        overdue = [request.is_overdue for request in requests]
        in_time = [request for request, late in zip(requests, overdue, strict=True) if not late]
        written = iter(self._connections.take_turn(self._write, in_time) if in_time else ())
        return [self._too_late() if late else next(written) for late in overdue]

    def _carry_out_alone(self, request: Request[Any, Any]) -> Any:
        if request.is_overdue:
            return self._too_late()
        try:
            return self._connections.take_turn(self._write_alone, request.verb, request.command)
        except IdempotencyError as error:
            return error

    def _write_alone(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> R:
        response = None if verb.alone is None else verb.alone(connection, command, self._clock)
        if response is not None:
            return response
        with transaction(connection):
            written = verb.write(connection, command, self._clock)
            if verb is verbs.CLAIM:
                self._purge(connection, 1)
        return written

    def _too_late(self) -> BackendUnavailable:
        return BackendUnavailable(f"SQLite: no turn to write within {self.timeout} s")

    def _write(self, connection: sqlite3.Connection, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        started = time.monotonic()
        try:
            return self._transact(connection, requests)
        except sqlite3.OperationalError:
            # The database is locked, full, or cannot be read or written: each request would fail in the same way.
            raise
        except Exception:
            if len(requests) == 1:
                raise
        return [self._write_one(connection, request, started + self.timeout) for request in requests]

    def _write_one(self, connection: sqlite3.Connection, request: Request[Any, Any], until: float) -> Any:
        if time.monotonic() > until:
            return BackendUnavailable("SQLite: no time was left after another write failed")
        try:
            return self._transact(connection, (request,))[0]
        except Exception as error:
            return _refused(error)

    def _transact(self, connection: sqlite3.Connection, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        with transaction(connection):
            responses = [self._respond(connection, request) for request in requests]
            self._purge(connection, sum(request.verb is verbs.CLAIM for request in requests))
        return responses

    def _respond(self, connection: sqlite3.Connection, request: Request[Any, Any]) -> Any:
        try:
            return request.verb.write(connection, request.command, self._clock)
        except IdempotencyError as error:
            return error

    def _purge(self, connection: sqlite3.Connection, claims: int) -> None:
        if not claims:
            return
        now = self._clock()
        # A clock that was put back must not end the purging.
        if self._purge_from - _PURGE_PAUSE <= now < self._purge_from:
            return
        most = min(claims * _PURGED_PER_CLAIM, _PURGED_AT_ONCE)
        purged = verbs.purge_some(connection, now, most)
        self._purge_from = now if purged == most else now + _PURGE_PAUSE


def _refused(error: Exception) -> Exception:
    """The error for the one request that SQLite or the verb did not accept."""
    if not is_databases(error):
        return error
    refused = wrapped(error)
    refused.__cause__ = error
    return refused
