"""The model test on every backend, sync and async, on asyncio and on trio."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance import ManualClock, check_against_model
from tests.backends.postgres.on_postgres import BatchingPostgres, emptied
from tests.conftest import SERVER_KINDS
from tests.effort import times
from tests.postgres_server import PostgresServer

MODES = ["sync", "asyncio", "trio"]
#: histories; a call costs most in the async modes, where it crosses threads
EXAMPLES = {"sync": 10, "asyncio": 6, "trio": 3}

Make = Callable[[ManualClock], Backend]


def check(make: Make, mode: str, share: float = 1.0) -> None:
    """Compare one front of a backend with the model.

    ``share``: the share of histories, if opening the backend is slow.
    """

    def in_mode(clock: ManualClock) -> Backend | AsyncBackend:
        made = make(clock)
        return made if mode == "sync" else made.to_async()

    library = "trio" if mode == "trio" else "asyncio"
    check_against_model(in_mode, examples=times(round(EXAMPLES[mode] * share)), steps=40, library=library)


@pytest.mark.parametrize("mode", MODES)
def test_memory_keeps_to_the_model(mode: str) -> None:
    """B-12: the records of one process."""
    check(lambda clock: MemoryBackend(clock=clock), mode)


@pytest.mark.parametrize(("mode", "coalesce"), [*((mode, True) for mode in MODES), ("sync", False), ("asyncio", False)])
def test_sqlite_keeps_to_the_model(mode: str, coalesce: bool, tmp_path: Path) -> None:
    """B-12: the real statements, on a new database for each history, in shared transactions and without coalescing."""
    numbers = itertools.count()

    def make(clock: ManualClock) -> Backend:
        path = str(tmp_path / f"{next(numbers)}.db")
        return SqliteBackend(path, synchronous="normal", timeout=20, coalesce=coalesce, clock=clock)

    check(make, mode, share=1.0 if coalesce else 0.5)


@pytest.mark.parametrize(("mode", "coalesce"), [*((mode, True) for mode in MODES), ("asyncio", False)])
@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_the_redis_scripts_keep_to_the_model(
    mode: str, coalesce: bool, kind: str, request: pytest.FixtureRequest
) -> None:
    """B-12: the real scripts, on the newest and the oldest server; in batches and without coalescing."""
    url: str = request.getfixturevalue(f"{kind}_url")

    def make(clock: ManualClock) -> Backend:
        prefix = f"model:{secrets.token_hex(8)}:"
        return RedisBackend(url, prefix=prefix, timeout=10, coalesce=coalesce, clock=clock)

    check(make, mode, share=1.0 if coalesce else 0.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", [16, 18])
def test_the_postgres_functions_keep_to_the_model(mode: str, version: int, request: pytest.FixtureRequest) -> None:
    """B-12: the real functions, on tables that are emptied for each history; both versions have the same ones."""
    server: PostgresServer = request.getfixturevalue(f"postgres{version}")

    def make(clock: ManualClock) -> Backend:
        with server.connect() as connection:
            connection.execute("DELETE FROM open_idempotency.records")
            connection.execute("DELETE FROM open_idempotency.reservations")
        return PostgresBackend(server.url(), timeout=10, clock=clock)

    check(make, mode, share=0.25)


def test_batches_on_postgres_keep_to_the_model(postgres16: PostgresServer) -> None:
    """B-12: every claim, stage and completion in a batch; commands left out of the batch go alone."""

    def make(clock: ManualClock) -> Backend:
        return BatchingPostgres(emptied(postgres16), timeout=10, clock=clock)

    check(make, "sync", share=0.4)
