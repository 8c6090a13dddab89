"""Backends for this suite: one that records its commands, and real ones that are down.

``WatchedBackend`` delegates every verb to a real backend; it notes the command, and lets a test delay completions.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from open_idempotency import open_backend
from open_idempotency._runtime.loops import in_thread
from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency.exceptions import BackendUnavailable
from tests.http.behaviours import PATIENCE
from tests.http.variants import POSTGRES_VERSIONS

Command = Claim | Renew | SaveStage | Complete | Fail | Release | Get | Reserve | Unreserve


class WatchedBackend(Backend):
    """A real backend, with a list of the commands that it was given."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self.call_timeout = backend.call_timeout
        self.quotas = backend.quotas
        self.commands: list[Command] = []
        #: duplicates that wait, or have waited; not a round trip, so not among the commands
        self.waits: list[Wait] = []
        #: closed by a test that wants to see what leaves before a completion is durable
        self.may_complete = threading.Event()
        self.may_complete.set()
        self.completing = threading.Event()
        #: set by a test in which the backend is unavailable to an owner
        self.away = threading.Event()
        #: called between the reply to a claim and the handler, each once; it blocks the event loop meanwhile
        self.after_claim: list[Callable[[Claim], None]] = []
        #: raised by the next completions and stages, one by each, before the real backend is asked
        self.failures: list[Exception] = []
        self._async = _AsyncWatchedBackend(self)

    def claim(self, c: Claim, /) -> ClaimResult:
        self.commands.append(c)
        result = self.inner.claim(c)
        self.stall(c)
        return result

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        self.commands.append(c)
        self.check_reachable()
        return self.inner.renew(c)

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        self.commands.append(c)
        self.fail_as_prepared()
        return self.inner.save_stage(c)

    def complete(self, c: Complete, /) -> Completed:
        self.commands.append(c)
        self.fail_as_prepared()
        self.hold()
        self.check_reachable()
        return self.inner.complete(c)

    def fail(self, c: Fail, /) -> None:
        self.commands.append(c)
        self.check_reachable()
        self.inner.fail(c)

    def release(self, c: Release, /) -> None:
        self.commands.append(c)
        self.check_reachable()
        self.inner.release(c)

    def withdraw(self, c: Withdraw, /) -> None:
        self.commands.append(c)
        self.inner.withdraw(c)

    def get(self, c: Get, /) -> Record | None:
        self.commands.append(c)
        return self.inner.get(c)

    def wait(self, c: Wait, /) -> None:
        self.waits.append(c)
        self.inner.wait(c)

    def delete(self, record_id: bytes, /) -> bool:
        return self.inner.delete(record_id)

    def scan(self) -> Iterator[Record]:
        return self.inner.scan()

    def purge(self, limit: int = 1000) -> int:
        return self.inner.purge(limit)

    def reserve(self, c: Reserve, /) -> ReserveResult:
        self.commands.append(c)
        return self.inner.reserve(c)

    def unreserve(self, c: Unreserve, /) -> None:
        self.commands.append(c)
        self.inner.unreserve(c)

    def to_async(self) -> AsyncBackend:
        return self._async

    def check_reachable(self) -> None:
        """Raise while a test has the backend unavailable."""
        if self.away.is_set():
            raise BackendUnavailable("away")

    def stall(self, c: Claim) -> None:
        """Run the test's functions after this claim."""
        while self.after_claim:
            self.after_claim.pop()(c)

    def fail_as_prepared(self) -> None:
        """Raise the next prepared error."""
        if self.failures:
            raise self.failures.pop(0)

    def hold(self) -> None:
        """Wait while a test delays completions."""
        self.completing.set()
        if not self.may_complete.wait(PATIENCE):
            raise TimeoutError("the test did not let the completion go on")


class _AsyncWatchedBackend(AsyncBackend):
    """The same, on the async front of the real backend."""

    def __init__(self, watched: WatchedBackend) -> None:
        self._watched = watched
        self._inner = watched.inner.to_async()
        self._noted = watched.commands
        self.call_timeout = self._inner.call_timeout
        self.quotas = self._inner.quotas

    async def claim(self, c: Claim, /) -> ClaimResult:
        self._noted.append(c)
        result = await self._inner.claim(c)
        self._watched.stall(c)
        return result

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        self._noted.append(c)
        self._watched.check_reachable()
        return await self._inner.renew(c)

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        self._noted.append(c)
        self._watched.fail_as_prepared()
        return await self._inner.save_stage(c)

    async def complete(self, c: Complete, /) -> Completed:
        self._noted.append(c)
        self._watched.fail_as_prepared()
        await in_thread(self._watched.hold)
        self._watched.check_reachable()
        return await self._inner.complete(c)

    async def fail(self, c: Fail, /) -> None:
        self._noted.append(c)
        self._watched.check_reachable()
        await self._inner.fail(c)

    async def release(self, c: Release, /) -> None:
        self._noted.append(c)
        self._watched.check_reachable()
        await self._inner.release(c)

    async def withdraw(self, c: Withdraw, /) -> None:
        self._noted.append(c)
        await self._inner.withdraw(c)

    async def get(self, c: Get, /) -> Record | None:
        self._noted.append(c)
        return await self._inner.get(c)

    async def wait(self, c: Wait, /) -> None:
        self._watched.waits.append(c)
        await self._inner.wait(c)

    async def delete(self, record_id: bytes, /) -> bool:
        return await self._inner.delete(record_id)

    def scan(self) -> AsyncIterator[Record]:
        return self._inner.scan()

    async def purge(self, limit: int = 1000) -> int:
        return await self._inner.purge(limit)

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        self._noted.append(c)
        return await self._inner.reserve(c)

    async def unreserve(self, c: Unreserve, /) -> None:
        self._noted.append(c)
        await self._inner.unreserve(c)

    def to_sync(self) -> Backend:
        return self._watched


def memory_down(_: Path) -> Backend:
    """A memory backend that refuses new records, as it is full of live ones."""
    backend = open_backend("memory://?max_records=1")
    backend.claim(Claim(os.urandom(32), b"fingerprint", os.urandom(16), lease=3600.0, ttl=3600.0))
    return backend


def sqlite_down(folder: Path) -> Backend:
    """A SQLite file that another connection has locked for good."""
    path = folder / "locked.db"
    lock = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    _held.append(lock)
    return open_backend(f"sqlite:///{path}?timeout=0.05")


def _refusing_port() -> int:
    """A port that is bound, so that no other process can listen there, and that refuses connections."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    _held.append(taken)
    port: int = taken.getsockname()[1]
    return port


def redis_down(_: Path) -> Backend:
    """A Redis address without a server."""
    return open_backend(f"redis://127.0.0.1:{_refusing_port()}/0")


def postgres_down(_: Path) -> Backend:
    """A PostgreSQL address without a server."""
    return open_backend(f"postgresql://127.0.0.1:{_refusing_port()}/none?timeout=0.2")


_held: list[sqlite3.Connection | socket.socket] = []
DOWN: dict[str, Callable[[Path], Backend]] = {
    "memory": memory_down,
    "sqlite": sqlite_down,
    "redis": redis_down,
    **dict.fromkeys(("postgres", *POSTGRES_VERSIONS), postgres_down),
}


def close_held() -> None:
    """Release the resources that the backends hold while they are down."""
    while _held:
        _held.pop().close()
