"""How the blocking colour carries out its steps: on an engine, or where the driver is asynchronous on a loop's thread.

SQLite's locks do not survive a fork, so before one the connections to a file are closed.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.sqlalchemy.engines import carried_out, levels, make_engine
from open_idempotency.backends.sqlalchemy.errors import Tries
from open_idempotency.backends.sqlalchemy.loop_engines import LoopEngines
from open_idempotency.backends.sqlalchemy.options import Options
from open_idempotency.backends.sqlalchemy.transactions import Settings
from open_idempotency.backends.sqlalchemy.verbs import Step

T = TypeVar("T")


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
    """One process's engine, and how many calls use it."""

    def __init__(self, options: Options) -> None:
        self.engine: Engine = make_engine(options)
        # When nothing uses it any more, and at exit: an application need not close its backend.
        weakref.finalize(self, _dispose_own, self.engine, os.getpid())
        self._timeout = options.timeout
        self._changed = threading.Condition()
        self._calls = 0
        self._paused = False

    @contextmanager
    def used(self) -> Generator[None, None, None]:
        """For a call, which waits while the process forks."""
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
        """Let calls end, and close what they leave."""
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
    # A child that ends leaves alone what its parent has opened.
    if os.getpid() == pid:
        engine.dispose()


class OnEngine:
    """On a blocking engine of each process."""

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._held = PerProcess(lambda: _Held(options))
        if options.is_file:
            _files.add(self)

    def run(self, step: Step) -> Any:
        """See ``Runner``."""
        return self.call(carried_out(step, self._settings), step.mode)

    def call(self, function: Callable[[Connection], T], mode: str) -> T:
        """See ``Runner``."""
        tries = Tries(self._options)
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

    def pause(self) -> None:
        """Before a fork."""
        self._held.get().pause()

    def resume(self) -> None:
        """After it, in the parent."""
        self._held.get().resume()


def _demand_descriptors() -> None:
    """Raise ``OSError`` where an event loop would find no file descriptors: asyncio would leave it half made."""
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
    """On the asynchronous engine of a loop that belongs to nobody else, so that no handler can block it."""

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


_files: weakref.WeakSet[OnEngine] = weakref.WeakSet()
_paused: list[OnEngine] = []


def _before_fork() -> None:
    for runner in list(_files):
        runner.pause()
        _paused.append(runner)


def _after_fork_in_parent() -> None:
    while _paused:
        _paused.pop().resume()


if hasattr(os, "register_at_fork"):
    # The child needs nothing: its engines are new, and what it inherits is neither used nor closed there.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_paused.clear)
