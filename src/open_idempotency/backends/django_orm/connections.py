"""The backend's own connections to a database of Django's, beside those of the application's threads.

A claim must be committed by itself, whatever transaction the view, ATOMIC_REQUESTS or a TestCase has open: inside it
duplicates would wait for its end, and a rollback would forget the claim. So there is a small pool for each process,
made from the alias's settings as Django has them at that moment, those of a test database included. At the end of each
request, connections that are older than CONN_MAX_AGE are closed, as Django does with its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from django.core.signals import request_finished, request_started
from django.db import Error, InterfaceError, OperationalError, connections
from django.db.utils import load_backend

from open_idempotency._runtime.processes import KINDS, PerProcess, is_local
from open_idempotency.backends._shared import sqlite_files, waiters
from open_idempotency.backends._shared.one_process import warn_of_other_workers
from open_idempotency.backends._shared.sql_verbs import Step
from open_idempotency.backends.django_orm import dialects
from open_idempotency.backends.django_orm.dialects import Dialect
from open_idempotency.backends.django_orm.transactions import Statements, Transaction
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError

T = TypeVar("T")
_BROKEN = (OperationalError, InterfaceError)


class _Stale(Exception):
    """A connection that was kept is dead, so nothing has been done yet."""


class _Pool:
    """The connections of one process. ``turn``: queues its writers where the database would let them poll."""

    def __init__(self, most: int) -> None:
        self.idle: deque[Any] = deque()
        self.slots = threading.BoundedSemaphore(most)
        self.turn = threading.Lock()

    def close(self) -> None:
        while self.idle:
            with suppress(IndexError):  # another thread has taken the last one
                _shut(self.idle.pop())


class Connections:
    """Runs transactions on the database of one alias. ``timeout``: seconds for each wait; ``most``: connections of
    each process.
    """

    def __init__(self, alias: str, dialect: Dialect, sql: Statements, timeout: float, most: int) -> None:
        self.alias = alias
        self.dialect = dialect
        self._sql = sql
        self._timeout = timeout
        self._most = most
        self._pools: PerProcess[_Pool] = PerProcess(lambda: _Pool(most))
        self._file = sqlite_files.Watched()
        weakref.finalize(self, _close, self._pools).atexit = False
        waiters.pause_at_forks(self)
        _all.add(self)
        # Connected here and not at import: a project with another backend has no connections to close at each request.
        for signal in (request_started, request_finished):
            signal.connect(_close_old, dispatch_uid="open_idempotency.close_old")

    def run(self, step: Step) -> Any:
        """Run a transaction: committed at the end, rolled back when the work raises.

        Raises ``Overtaken`` where another transaction was in the way, ``BackendUnavailable`` and ``RecordUnreadable``.
        """
        started = time.monotonic()
        while True:
            try:
                return _off_the_loop(partial(self._run_once, step, started + self._timeout))
            except _Stale as stale:
                # The other idle connections are as old, so each of them may be dead too.
                self._pools.get().close()
                error = stale.__cause__
                assert isinstance(error, Error)
                if time.monotonic() >= started + self._timeout:
                    raise self._wrapped(error) from error

    def close(self) -> None:
        """Close this process's idle connections; the others are closed when their calls end."""
        _close(self._pools)

    def close_old(self) -> None:
        """Close the connections that Django would close between two requests."""
        idle = self._pools.get().idle
        for _ in range(len(idle)):
            try:
                connection = idle.popleft()
            except IndexError:
                return
            if connection.close_at is not None and time.monotonic() >= connection.close_at:
                _shut(connection)
                continue
            connection.close_if_unusable_or_obsolete()
            if connection.connection is not None:
                idle.append(connection)

    def _run_once(self, step: Step, deadline: float) -> Any:
        if self.dialect.one_writer:
            # A new pool: connections that are in use on the old file are closed when they are given back.
            name = str(connections.settings[self.alias]["NAME"])
            if not is_in_memory(name) and self._file.moved(name):
                self.close()
        pool = self._pools.get()
        in_turn = step.mode == "write" and self.dialect.one_writer
        if in_turn:
            _acquire(pool.turn, deadline, "turn to write")
        try:
            _acquire(pool.slots, deadline, "connection free")
            try:
                connection, kept = self._take(pool)
                begin = None  # a single statement that reads needs no transaction
                if step.mode != "read":
                    begin = (self.dialect.begin if step.mode == "write" else self.dialect.begin_reading)(self._timeout)
                transaction = Transaction(connection, self.dialect, self._sql, deadline, begin)
                return self._use(pool, connection, kept, transaction, step)
            finally:
                pool.slots.release()
        finally:
            if in_turn:
                pool.turn.release()

    def _use(self, pool: _Pool, connection: Any, kept: bool, transaction: Transaction, step: Step) -> Any:
        try:
            found = transaction.carry_out(step)
        except IdempotencyError:
            self._give_back(pool, connection, transaction.sound)  # a response such as LeaseLost
            raise
        except Error as error:
            sound = transaction.sound and dialects.is_overtaken(error)
            stale = kept and not transaction.late and isinstance(error, _BROKEN) and not _is_usable(connection)
            self._give_back(pool, connection, sound)
            if stale:
                raise _Stale from error
            raise self._wrapped(error) from error
        except BaseException:
            self._give_back(pool, connection, False)
            raise
        self._give_back(pool, connection, True)
        return found

    def _take(self, pool: _Pool) -> tuple[Any, bool]:
        """A connection, and whether it was kept from an earlier call."""
        while pool.idle:
            with suppress(IndexError):  # another thread was quicker
                connection = pool.idle.pop()
                # A test runner points an alias at another database.
                if connection.settings_dict == self._settings():
                    return connection, True
                _shut(connection)
        return self._open(), False

    def _give_back(self, pool: _Pool, connection: Any, sound: bool) -> None:
        # After close() there is another pool, and a connection that cannot be reused is closed.
        if sound and self._pools.get() is pool:
            pool.idle.append(connection)
        else:
            _shut(connection)

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = dict(connections.settings[self.alias])
        options = {name: value for name, value in settings["OPTIONS"].items() if name not in self.dialect.drops}
        # Connections are not checked before use: a call that finds one dead is made again on a new one.
        ours = {"AUTOCOMMIT": True, "CONN_HEALTH_CHECKS": False}
        return {**settings, **ours, "OPTIONS": {**options, **self.dialect.options(self._timeout)}}

    def _open(self) -> Any:
        settings = self._settings()
        if self.dialect.one_writer and lives_in_one_connection(str(settings["NAME"])):
            raise BackendUnavailable(
                f"Django's database {self.alias!r} is in the memory of a single connection; give it a file, or take "
                "memory:// for the records"
            )
        if self.dialect.one_writer and "mode=memory" in str(settings["NAME"]):
            warn_of_other_workers(f"Django's database {self.alias!r}")
        connection: Any = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, self.alias)
        # One thread at a time uses it, but not always the same one.
        connection.inc_thread_sharing()
        # Django's log of statements would hold the stored responses.
        connection.make_debug_cursor = connection.make_cursor
        try:
            connection.ensure_connection()
            _bound_waits(connection.connection, self._timeout)
            with connection.cursor() as cursor:
                for statement in self.dialect.prepare(self._timeout):
                    cursor.execute(statement)
                connection.largest = None
                if self.dialect.largest is not None and self.dialect.largest.ask is not None:
                    cursor.execute(self.dialect.largest.ask)
                    connection.largest = int(cursor.fetchone()[0])
        except Error as error:
            _shut(connection)
            raise self._wrapped(error) from error
        except BaseException:
            _shut(connection)
            raise
        return connection

    def _wrapped(self, error: Error) -> IdempotencyError:
        return dialects.wrapped(error, self.alias, connections[self.alias].vendor)

    def pause(self) -> Callable[[], None]:
        """See ``forks.Pausable``."""
        pool = self._pools.get()
        deadline = time.monotonic() + self._timeout
        held = 0
        while held < self._most and pool.slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
            held += 1
        pool.close()

        def resume() -> None:
            for _ in range(held):
                pool.slots.release()

        return resume


def is_in_memory(name: str) -> bool:
    """Whether the SQLite database of that name has no file of its own."""
    return name == ":memory:" or name.startswith("file:")


def lives_in_one_connection(name: str) -> bool:
    """Whether each connection to the SQLite database of that name would have a database of its own."""
    return name == ":memory:" or ("mode=memory" in name and "cache=shared" not in name)


def _acquire(lock: threading.Lock | threading.Semaphore, deadline: float, what: str) -> None:
    if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise BackendUnavailable(f"no {what} in time")


def _off_the_loop(call: Callable[[], T]) -> T:
    """Call a function in another thread if this one runs an event loop, where Django refuses to connect."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    with ThreadPoolExecutor(1, "open-idempotency-django") as thread:
        return thread.submit(call).result()


def _bound_waits(raw: Any, timeout: float) -> None:
    """Let psycopg 3 wait no longer than ``timeout`` seconds for a reply. Other drivers take a timeout with their
    options, or leave it to the operating system.
    """
    if hasattr(raw, "pgconn"):
        # Not at the top: the driver is psycopg 3 only where the project says so.
        from open_idempotency.backends._shared.psycopg_waits import bound_waits

        bound_waits(raw, timeout)


def _is_usable(connection: Any) -> bool:
    try:
        return bool(connection.is_usable())
    except Exception:  # what a driver says of a connection that is gone
        return False


def _shut(connection: Any) -> None:
    # Not the wrapper's close(), which spares databases in memory and refuses threads with an event loop.
    raw, connection.connection = connection.connection, None
    if raw is not None:
        with suppress(Exception):  # it may be gone already
            raw.close()


def _close(pools: PerProcess[_Pool]) -> None:
    pool = pools.pop()
    if pool is not None:
        pool.close()


_all: weakref.WeakSet[Connections] = weakref.WeakSet()


def _close_old(**kwargs: Any) -> None:
    for each in list(_all):
        try:
            _off_the_loop(each.close_old)
        except KINDS as error:
            if not is_local(error):  # after a local failure they are closed with a later request
                raise
