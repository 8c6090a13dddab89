"""Carrying out transactions: on a sync engine, on async engines, or on an async engine in a thread of its own.

A transaction that lost a race, or whose connection was broken before, is tried again while there is time. Any other
error of the database becomes one error of this package, with the driver's error as its cause. SQLite's locks do not
survive a fork, so the connections to a file are closed before a fork.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from open_idempotency._runtime.processes import PerProcess, is_local
from open_idempotency.backends._shared import sizes, sqlite_files, waiters
from open_idempotency.backends._shared.sql_verbs import Step
from open_idempotency.backends.sqlalchemy.engines import Options, levels, make_async_engine, make_engine
from open_idempotency.backends.sqlalchemy.statements import codes, may_succeed_again, metadata
from open_idempotency.backends.sqlalchemy.transactions import Settings, carry_out
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge, first_line

T = TypeVar("T")

#: errors of SQLAlchemy, and of the network behind it
DATABASE = (SQLAlchemyError, OSError, asyncio.TimeoutError)
_MISSING = ("no such table", "does not exist", "doesn't exist", "no such column", "has no column", "unknown column")


class Tries:
    """The tries of one transaction: whether an error is worth another try, and what it becomes otherwise."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._started = time.monotonic()

    def check(self, error: Exception) -> None:
        """Return if the caller is to try again. Otherwise raises ``BackendUnavailable``, or ``error`` if it is no error
        of the database.
        """
        if not self._is_databases(error):
            raise error
        in_time = time.monotonic() - self._started < self._options.timeout
        if not (in_time and may_succeed_again(error, self._options.dialect)):
            raise wrapped(error) from error

    def _is_databases(self, error: Exception) -> bool:
        # While they connect, some drivers raise errors of their own, or start threads.
        if isinstance(error, DATABASE) or is_local(error):
            return True
        return type(error).__module__.partition(".")[0] == self._options.driver


def wrapped(error: Exception) -> BackendUnavailable | RecordTooLarge:
    """The error as one of this package; the caller keeps it as the cause."""
    # SQLAlchemy's own text repeats the statement.
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = first_line(original)
    if any(sizes.is_refused(code, text) for code in codes(original) or [None]):
        return RecordTooLarge(f"SQLAlchemy: {type(original).__name__}: {text}")
    hint = "; run `open-idempotency migrate` with the URL of the backend" if _is_missing(text) else ""
    return BackendUnavailable(f"SQLAlchemy: {type(original).__name__}: {text}{hint}")


def _is_missing(text: str) -> bool:
    return any(name in text for name in metadata.tables) and any(words in text.lower() for words in _MISSING)


def is_replaced(options: Options, file: sqlite_files.Watched) -> bool:
    """Whether SQLite's file was replaced by another one. A missing file is created, for its owner alone.

    Raises ``BackendUnavailable`` where it is gone.
    """
    path = options.url.database or ""
    if not file.known:
        sqlite_files.make(path)
    return file.moved(path)


class _OfLoop(NamedTuple):
    """The engine of one event loop. ``file``: of SQLite, the one that its connections are on."""

    engine: AsyncEngine
    file: sqlite_files.Watched


class LoopEngines:
    """The asyncio engines of this process, by event loop."""

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._engines: PerProcess[dict[asyncio.AbstractEventLoop, _OfLoop]] = PerProcess(dict)

    def of_loop(self) -> _OfLoop:
        """The engine of the running loop."""
        engines = self._engines.get()
        loop = asyncio.get_running_loop()
        mine = engines.get(loop)
        if mine is None:
            # Not a weak dictionary: connections hold their loop, so an entry would keep itself alive.
            for other in [other for other in list(engines) if other.is_closed()]:
                engines.pop(other, None)
            mine = engines[loop] = _OfLoop(make_async_engine(self._options), sqlite_files.Watched())
        return mine

    async def run(self, step: Step) -> Any:
        """Carry out one transaction of a verb. Raises ``BackendUnavailable``."""
        return await self.call(partial(carry_out, settings=self._settings, step=step), step.mode)

    async def call(self, function: Callable[..., T], mode: str) -> T:
        """Call a function with a sync connection, which waits for the loop."""
        tries = Tries(self._options)
        while True:
            try:
                return await asyncio.wait_for(self._call(function, mode), self._options.try_timeout)
            except Exception as error:
                tries.check(error)

    async def _call(self, function: Callable[..., T], mode: str) -> T:
        mine = self.of_loop()
        if self._options.is_file and is_replaced(self._options, mine.file):
            await mine.engine.dispose()
        engine = mine.engine.execution_options(**levels(self._options, mode))
        async with engine.connect() as connection:
            return await connection.run_sync(function)

    async def close(self) -> None:
        """Close the running loop's connections; those of other loops can only be closed there."""
        mine = self._engines.get().pop(asyncio.get_running_loop(), None)
        if mine is not None:
            await mine.engine.dispose()


class Runner(Protocol):
    """Carries out steps of verbs without an event loop."""

    def run(self, step: Step) -> Any:
        """Carry out one step. Raises ``BackendUnavailable``."""

    def call(self, function: Callable[[Connection], T], mode: str) -> T:
        """Call a function with a connection. Raises ``BackendUnavailable``."""
        ...

    def close(self) -> None:
        """Close this process's connections."""


class _Held:
    """The engine of one process, and how many calls use it."""

    def __init__(self, options: Options) -> None:
        self.engine: Engine = make_engine(options)
        # When nothing uses the engine any more, and at exit: a backend need not be closed.
        weakref.finalize(self, _dispose_own, self.engine, os.getpid())
        self._timeout = options.timeout
        self._changed = threading.Condition()
        self._calls = 0
        self._paused = False

    @contextmanager
    def used(self) -> Generator[None, None, None]:
        """Around a call, which waits while the process forks."""
        with self._changed:
            self._changed.wait_for(lambda: not self._paused, self._timeout)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def pause(self) -> None:
        """Let calls end, and close the connections that they leave."""
        with self._changed:
            self._paused = True
            self._changed.wait_for(lambda: not self._calls, self._timeout)
        self.engine.dispose()

    def resume(self) -> None:
        """Let calls begin."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()


def _dispose_own(engine: Engine, pid: int) -> None:
    # A child that ends does not close what its parent has opened.
    if os.getpid() == pid:
        engine.dispose()


class OnEngine:
    """On a sync engine of each process."""

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._held = PerProcess(lambda: _Held(options))
        self._file = sqlite_files.Watched()
        if options.is_file:
            waiters.pause_at_forks(self)

    def run(self, step: Step) -> Any:
        """See ``Runner``."""
        return self.call(partial(carry_out, settings=self._settings, step=step), step.mode)

    def call(self, function: Callable[[Connection], T], mode: str) -> T:
        """See ``Runner``."""
        tries = Tries(self._options)
        if self._options.is_file and is_replaced(self._options, self._file):
            self.close()
        held = self._held.get()
        engine = held.engine.execution_options(**levels(self._options, mode))
        while True:
            try:
                with held.used(), engine.connect() as connection:
                    return function(connection)
            except Exception as error:
                tries.check(error)

    def close(self) -> None:
        """See ``Runner``."""
        held = self._held.pop()
        if held is not None:
            held.engine.dispose()

    def pause(self) -> Callable[[], None]:
        """See ``forks.Pausable``."""
        held = self._held.get()
        held.pause()
        return held.resume


def _demand_descriptors() -> None:
    """Raise ``OSError`` where there are no file descriptors for an event loop: asyncio would leave it half made."""
    with selectors.DefaultSelector():
        for end in socket.socketpair():
            end.close()


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        _demand_descriptors()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="open-idempotency-sqlalchemy", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the process may have no more threads
            self.loop.close()
            raise

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.close()

    def end(self, seconds: float) -> None:
        """Stop it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(seconds)


class OnLoop:
    """On the async engine of an event loop in a thread of its own, so that no handler can block it."""

    def __init__(self, options: Options, engines: LoopEngines) -> None:
        self._options = options
        self._engines = engines
        self._loops = PerProcess(_Loop)
        self._starting = PerProcess(threading.Lock)

    def run(self, step: Step) -> Any:
        """See ``Runner``."""
        return self._await(lambda: self._engines.run(step))

    def call(self, function: Callable[[Connection], T], mode: str) -> T:
        """See ``Runner``."""
        found: T = self._await(lambda: self._engines.call(function, mode))
        return found

    def close(self) -> None:
        """See ``Runner``."""
        with self._starting.get():
            running = self._loops.pop()
        if running is not None:
            future = asyncio.run_coroutine_threadsafe(self._engines.close(), running.loop)
            try:
                future.result(self._options.call_timeout)
            finally:
                running.end(self._options.timeout)

    def _await(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        with self._starting.get():
            loop = self._loops.get().loop
        return asyncio.run_coroutine_threadsafe(call(), loop).result()
