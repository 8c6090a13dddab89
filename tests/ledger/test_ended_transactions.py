"""A block that ends the transaction of its own stage or response is reported: the rest would commit separately."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from open_idempotency import ConfigurationError, idem
from open_idempotency._core.models import Response
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

#: kinds that allow a commit within a block; Django and a psycopg block refuse it
COMMIT = ["sqlite3", "psycopg", "session on SQLite", "session on PostgreSQL"]
#: kinds that distinguish one transaction from the next
KNOW = COMMIT[1:]
STAGES = "SELECT count(*) FROM open_idempotency_ledger_stages WHERE frame IS NOT NULL"
RESPONSES = "SELECT count(*) FROM open_idempotency_ledger WHERE response IS NOT NULL"


@contextmanager
def reported() -> Iterator[None]:
    """Expect the error that the block raises at its end."""
    with pytest.raises(ConfigurationError, match="committed or rolled back within the block"):
        yield


def in_a_stage(opened: Open, work: Callable[[], None]) -> None:
    """Do the work in a stage."""
    with idem.stage("order", tx=opened.tx):
        work()


def in_an_atomic_block(opened: Open, work: Callable[[], None]) -> None:
    """Do the work in an atomic block, and respond."""
    with idem.atomic(opened.tx) as block:
        work()
        block.respond(Response(201, [], b"placed"))


FORMS = pytest.mark.parametrize("form", [in_a_stage, in_an_atomic_block])


def ordered(opened: Open) -> Callable[[], None]:
    """Place an order and commit it, as many functions do at their end."""

    def work() -> None:
        opened.execute(INSERT)
        opened.tx.commit()

    return work


@FORMS
@pytest.mark.parametrize("kind", COMMIT)
def test_a_commit_at_the_end_of_a_block_is_reported(client: Client, kind: str, form: Any, database: Database) -> None:
    """S-05, S-06: stage and response would go into the next transaction, which may never commit."""
    with client.request(), reported(), BLOCKING[kind][1](database) as opened:
        form(opened, ordered(opened))
    assert database.query(STAGES) == database.query(RESPONSES) == [(0,)]


@FORMS
@pytest.mark.parametrize("kind", KNOW)
def test_a_commit_in_the_middle_of_a_block_is_reported(
    client: Client, kind: str, form: Any, database: Database
) -> None:
    """S-05, S-06: even if a new transaction is open where the block ends."""

    def committed_in_the_middle(opened: Open) -> Callable[[], None]:
        def work() -> None:
            ordered(opened)()
            opened.execute(INSERT)

        return work

    with client.request(), reported(), BLOCKING[kind][1](database) as opened:
        form(opened, committed_in_the_middle(opened))
    assert database.query(STAGES) == database.query(RESPONSES) == [(0,)]
    assert database.orders() == 1


@FORMS
@pytest.mark.parametrize("kind", ["psycopg", "session on SQLite", "session on PostgreSQL", "connection on PostgreSQL"])
def test_a_savepoint_within_a_block_ends_nothing(client: Client, kind: str, form: Any, database: Database) -> None:
    """S-05, S-06: whether it is released or rolled back."""

    def in_savepoints(opened: Open) -> Callable[[], None]:
        def work() -> None:
            for name in ("kept", "lost"):
                opened.execute(f"SAVEPOINT {name}")
                opened.execute(INSERT)
            opened.execute("ROLLBACK TO SAVEPOINT lost")

        return work

    with client.request(), BLOCKING[kind][1](database) as opened:
        form(opened, in_savepoints(opened))
    assert database.orders() == 1
    assert sorted(database.query(kept) for kept in (STAGES, RESPONSES)) == [[(0,)], [(1,)]]


def test_a_savepoint_around_a_block_ends_nothing(client: Client, new_database: Callable[[str], Database]) -> None:
    """S-05: rolling it back removes the stage with its rows."""
    database = new_database("postgresql")
    database.make_tables()
    found = []
    with client.request(), BLOCKING["session on PostgreSQL"][1](database) as opened:
        for _ in range(2):
            savepoint = opened.tx.begin_nested()
            with idem.stage("order", tx=opened.tx) as stage:
                found.append(stage.done)
                opened.execute(INSERT)
            savepoint.rollback()
    assert found == [False, False]
    assert (database.orders(), database.query(STAGES)) == (0, [(0,)])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("awaited_kind", ["psycopg", "session on SQLite", "session through asyncpg"])
@pytest.mark.anyio
async def test_awaited_a_commit_in_the_middle_of_a_block_is_reported(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-05, S-06."""

    async def place_twice(opened: Open) -> None:
        await opened.execute(INSERT)
        await opened.tx.commit()
        await opened.execute(INSERT)

    async def in_awaited_stage(opened: Open) -> None:
        async with idem.stage("order", tx=opened.tx):
            await place_twice(opened)

    async def in_awaited_block(opened: Open) -> None:
        async with idem.atomic(opened.tx) as block:
            await place_twice(opened)
            block.respond(Response(201, [], b"placed"))

    for form in (in_awaited_stage, in_awaited_block):
        with client.request(), reported():
            async with AWAITED[awaited_kind][1](awaited_database) as opened:
                await form(opened)
    assert await asyncio.to_thread(awaited_database.query, STAGES) == [(0,)]
    assert await asyncio.to_thread(awaited_database.orders) == 2


# A transaction that has failed


def broken(opened: Open) -> None:
    """A view that goes on after a database error."""
    with pytest.raises(Exception, match="nowhere"):
        opened.execute("SELECT * FROM nowhere")


FAILED = ["psycopg", "session on PostgreSQL", "connection on PostgreSQL", "Django on PostgreSQL"]


@pytest.mark.parametrize("kind", FAILED[1:])
def test_a_block_in_a_transaction_that_has_failed_is_reported(client: Client, kind: str, database: Database) -> None:
    """Bad input: SQLAlchemy and Django do not detect it."""
    failed = pytest.raises(ConfigurationError, match="transaction has failed; roll it back")

    def enter(opened: Open) -> None:
        broken(opened)
        with failed, idem.stage("order", tx=opened.tx):
            raise AssertionError("not reached")

    with client.request(), rolled_back(), BLOCKING[kind][1](database) as opened:
        enter(opened)
        raise _Left


@pytest.mark.parametrize("kind", FAILED)
def test_a_transaction_that_fails_within_a_block_is_reported(client: Client, kind: str, database: Database) -> None:
    """S-05: the stage cannot be kept."""
    failed = pytest.raises(ConfigurationError, match="transaction has failed; roll it back")

    def fail_within(opened: Open) -> None:
        with failed, idem.stage("order", tx=opened.tx):
            opened.execute(INSERT)
            broken(opened)

    with client.request(), rolled_back(), BLOCKING[kind][1](database) as opened:
        fail_within(opened)
        raise _Left
    assert database.orders() == 0


class _Left(Exception):
    """Raised by the view to give up."""


@contextmanager
def rolled_back() -> Iterator[None]:
    """Expect that the view's transaction ends with an exception."""
    with pytest.raises(_Left):
        yield
