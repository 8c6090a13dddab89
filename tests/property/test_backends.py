"""The shipped model test on every backend, in both colours, on asyncio and on trio."""

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
from tests.conftest import SERVER_KINDS
from tests.effort import times
from tests.postgres_server import PostgresServer

COLOURS = ["sync", "asyncio", "trio"]
#: histories; a call costs most in the awaited colours, where it crosses threads
EXAMPLES = {"sync": 40, "asyncio": 20, "trio": 10}

Make = Callable[[ManualClock], Backend]


def check(make: Make, colour: str, share: float = 1.0) -> None:
    """Hold one colour of a backend against the model. ``share``: of the histories, where opening it costs much."""

    def coloured(clock: ManualClock) -> Backend | AsyncBackend:
        made = make(clock)
        return made if colour == "sync" else made.to_async()

    library = "trio" if colour == "trio" else "asyncio"
    check_against_model(coloured, examples=times(round(EXAMPLES[colour] * share)), steps=40, library=library)


@pytest.mark.parametrize("colour", COLOURS)
def test_memory_keeps_to_the_model(colour: str) -> None:
    """B-12: the records of one process."""
    check(lambda clock: MemoryBackend(clock=clock), colour)


@pytest.mark.parametrize("colour", COLOURS)
def test_sqlite_keeps_to_the_model(colour: str, tmp_path: Path) -> None:
    """B-12: the real statements, on a database of its own for each history."""
    numbers = itertools.count()

    def make(clock: ManualClock) -> Backend:
        return SqliteBackend(str(tmp_path / f"{next(numbers)}.db"), synchronous="normal", timeout=20, clock=clock)

    check(make, colour)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_the_redis_scripts_keep_to_the_model(colour: str, kind: str, request: pytest.FixtureRequest) -> None:
    """B-12: the real scripts, on the newest server and on the oldest."""
    url: str = request.getfixturevalue(f"{kind}_url")

    def make(clock: ManualClock) -> Backend:
        return RedisBackend(url, prefix=f"model:{secrets.token_hex(8)}:", timeout=10, clock=clock)

    check(make, colour)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_postgres_functions_keep_to_the_model(colour: str, postgres18: PostgresServer) -> None:
    """B-12: the real functions, on tables that are emptied for each history."""

    def make(clock: ManualClock) -> Backend:
        with postgres18.connect() as connection:
            connection.execute("DELETE FROM open_idempotency.records")
            connection.execute("DELETE FROM open_idempotency.reservations")
        return PostgresBackend(postgres18.url(), timeout=10, clock=clock)

    check(make, colour, share=0.4)
