"""An atomic block that is entered again after its response asks the ledger whether that was committed (S-06a)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from open_idempotency import AlreadyCommitted, idem
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import Fate, abort, finish
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

FIRST, SECOND = Response(201, [], b"first"), Response(201, [], b"second")


class LostError(Exception):
    """A COMMIT succeeded, and its reply was lost."""


def order(opened: Open, response: Response) -> None:
    """Insert an order and respond."""
    with idem.atomic(opened.tx) as block:
        opened.execute(INSERT)
        block.respond(response)


def replayed(client: Client, attempt: Any, error: BaseException) -> bytes | None:
    """The body that the client gets when this error stops its view."""
    found = client.engine.sync.run(abort(attempt, error))
    assert isinstance(found, Response), found
    return found.body


def test_a_block_after_a_commit_does_not_run_again(client: Client, kind: str, database: Database) -> None:
    """S-06a: a view may try again on an error that was raised after its COMMIT."""
    with client.request() as attempt:
        with BLOCKING[kind][1](database) as opened:
            order(opened, FIRST)
        with pytest.raises(AlreadyCommitted) as raised, BLOCKING[kind][1](database) as opened:
            order(opened, SECOND)
        assert replayed(client, attempt, raised.value) == b"first"
    assert database.orders() == 1


def test_a_block_after_a_rollback_runs_again(client: Client, kind: str, database: Database) -> None:
    """S-06a: and the response of the second run counts."""

    def place_and_fail(opened: Open) -> None:
        order(opened, FIRST)
        raise ZeroDivisionError

    with client.request() as attempt:
        with pytest.raises(ZeroDivisionError), BLOCKING[kind][1](database) as opened:
            place_and_fail(opened)
        with BLOCKING[kind][1](database) as opened:
            order(opened, SECOND)
        assert attempt.ledger is not None
        assert attempt.ledger.stored is not None
        assert attempt.ledger.stored.response.body == b"second"
        assert client.engine.sync.run(finish(attempt, SECOND)) is Fate.KEPT
    assert database.orders() == 1


def test_a_stage_whose_commit_counted_is_found(client: Client, kind: str, database: Database) -> None:
    """S-06a: even in the attempt that committed it."""
    found = []
    with client.request():
        for _ in range(2):
            with BLOCKING[kind][1](database) as opened, idem.stage("order", tx=opened.tx) as stage:
                found.append(stage.done)
                if not stage.done:
                    opened.execute(INSERT)
    assert found == [False, True]
    assert database.orders() == 1


#: kinds whose transaction may be committed after an error in a second block
OPEN = ["sqlite3", "psycopg", "session on SQLite", "session on PostgreSQL", "connection on PostgreSQL"]


@pytest.mark.parametrize("kind", OPEN)
def test_a_second_block_in_one_transaction_that_is_rolled_back_leaves_no_record(
    client: Client, kind: str, database: Database
) -> None:
    """S-06a: a response in the same transaction is not committed and proves nothing; a retry runs."""

    def twice(opened: Open) -> None:
        order(opened, FIRST)
        order(opened, SECOND)

    with client.request() as attempt:
        with pytest.raises(AlreadyCommitted) as raised, BLOCKING[kind][1](database) as opened:
            twice(opened)
        assert b"not-committed" in (replayed(client, attempt, raised.value) or b"")
    assert database.orders() == 0
    with client.request():
        pass


@pytest.mark.parametrize("kind", OPEN)
def test_a_second_block_in_one_transaction_gets_the_response_of_the_first(
    client: Client, kind: str, database: Database
) -> None:
    """S-06a: one order, and its response."""
    with client.request() as attempt:
        with BLOCKING[kind][1](database) as opened:
            order(opened, FIRST)
            with pytest.raises(AlreadyCommitted) as raised:
                order(opened, SECOND)
        assert replayed(client, attempt, raised.value) == b"first"
    assert database.orders() == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_awaited_a_block_after_a_commit_does_not_run_again(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-06a."""

    async def once(response: Response) -> None:
        async with AWAITED[awaited_kind][1](awaited_database) as opened, idem.atomic(opened.tx) as block:
            await opened.execute(INSERT)
            block.respond(response)

    with client.request() as attempt:
        await once(FIRST)
        with pytest.raises(AlreadyCommitted) as raised:
            await once(SECOND)
        found = await client.engine.aio.run(abort(attempt, raised.value))
    assert isinstance(found, Response)
    assert found.body == b"first"
    assert await asyncio.to_thread(awaited_database.orders) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_awaited_a_block_after_a_rollback_runs_again(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-06a."""

    async def once(response: Response, fails: bool) -> None:
        async with AWAITED[awaited_kind][1](awaited_database) as opened:
            async with idem.atomic(opened.tx) as block:
                await opened.execute(INSERT)
                block.respond(response)
            if fails:
                raise ZeroDivisionError

    with client.request() as attempt:
        with pytest.raises(ZeroDivisionError):
            await once(FIRST, fails=True)
        await once(SECOND, fails=False)
        assert await client.engine.aio.run(finish(attempt, SECOND)) is Fate.KEPT
    assert await asyncio.to_thread(awaited_database.orders) == 1


# A COMMIT whose reply is lost


@contextmanager
def losing(owner: Any, name: str) -> Iterator[None]:
    """The next call of this method succeeds, and then raises."""
    kept = getattr(owner, name)

    def lost(*arguments: Any) -> None:
        setattr(owner, name, kept)
        kept(*arguments)
        raise LostError

    setattr(owner, name, lost)
    yield


@contextmanager
def session_that_loses(database: Database, response: Response) -> Iterator[Any]:
    """A SQLAlchemy session whose COMMIT loses its reply."""
    engine = sqlalchemy.create_engine(database.url.replace("postgresql:", "postgresql+psycopg:"))

    def place() -> None:
        with Session(engine) as session, session.begin():
            order(Open(session, lambda statement: session.execute(sqlalchemy.text(statement))), response)

    try:
        with losing(engine.dialect, "do_commit"):
            yield place
    finally:
        engine.dispose()


@contextmanager
def psycopg_that_loses(database: Database, response: Response) -> Iterator[Any]:
    """Two psycopg connections; the first one breaks at its COMMIT."""
    broken = []

    def place() -> None:
        with psycopg.connect(database.url) as connection:
            order(Open(connection, connection.execute), response)
            if not broken:
                broken.append(connection)
                connection.commit()
                raise LostError

    yield place


@contextmanager
def sqlite3_that_loses(database: Database, response: Response) -> Iterator[Any]:
    """Two ``sqlite3`` connections; the first one breaks at its COMMIT."""
    broken = []

    def place() -> None:
        connection = sqlite3.connect(database.path)
        try:
            order(Open(connection, connection.execute), response)
            connection.commit()
            if not broken:
                broken.append(connection)
                raise LostError
        finally:
            connection.close()

    yield place


@contextmanager
def django_that_loses(database: Database, response: Response) -> Iterator[Any]:
    """A Django alias whose COMMIT loses its reply."""
    from django.db import connections, transaction

    from tests.ledger.databases import django_alias

    with django_alias(database) as alias:

        def place() -> None:
            with transaction.atomic(alias), connections[alias].cursor() as cursor:
                order(Open(alias, cursor.execute), response)

        with losing(connections[alias], "_commit"):
            yield place


LOSING = [
    ("sqlite", session_that_loses), ("postgresql", session_that_loses), ("postgresql", psycopg_that_loses),
    ("sqlite", sqlite3_that_loses), ("sqlite", django_that_loses), ("postgresql", django_that_loses),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "opened"), LOSING)
def test_a_commit_whose_reply_was_lost_is_found_by_the_second_block(
    client: Client, dialect: str, opened: Any, new_database: Callable[[str], Database]
) -> None:
    """S-06a: for a view that tries again on ``OperationalError``."""
    database = new_database(dialect)
    database.make_tables()
    with opened(database, FIRST) as place, client.request() as attempt:
        with pytest.raises(LostError):
            place()
        with pytest.raises(AlreadyCommitted) as raised:
            place()
        assert replayed(client, attempt, raised.value) == b"first"
    assert database.orders() == 1


@pytest.mark.parametrize("policy", [{"on_failed": "reject"}, {"on_failed": "replay"}, {"max_attempts": 1}])
@pytest.mark.parametrize(("dialect", "opened"), LOSING)
def test_a_strict_policy_keeps_a_response_whose_commit_was_not_acknowledged(
    dialect: str, opened: Any, policy: Any, new_database: Callable[[str], Database]
) -> None:
    """S-06b: if the driver does not know the outcome, the database is asked before the attempt is failed."""
    database = new_database(dialect)
    database.make_tables()
    client = Client(**policy)
    with opened(database, FIRST) as place, client.request() as attempt:
        with pytest.raises(LostError) as raised:
            place()
        client.engine.sync.run(abort(attempt, raised.value))
    assert client.again().body == b"first"
    assert database.orders() == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("scheme", ["sqlite+aiosqlite", "postgresql+asyncpg"])
async def test_awaited_a_strict_policy_keeps_a_response_whose_commit_was_not_acknowledged(
    scheme: str, new_database: Callable[[str], Database]
) -> None:
    """S-06b."""
    database = new_database(scheme.partition("+")[0])
    database.make_tables()
    client = Client(on_failed="reject")
    engine = create_async_engine(f"{scheme}:{database.url.partition(':')[2]}")

    async def place() -> None:
        async with AsyncSession(engine) as session, session.begin(), idem.atomic(session) as block:
            await session.execute(sqlalchemy.text(INSERT))
            block.respond(FIRST)

    with client.request() as attempt:
        with losing(engine.sync_engine.dialect, "do_commit"), pytest.raises(LostError) as raised:
            await place()
        await client.engine.aio.run(abort(attempt, raised.value))
    await engine.dispose()
    assert client.again().body == b"first"


@pytest.mark.parametrize(("dialect", "opened"), LOSING)
def test_a_strict_policy_takes_no_rollback_for_a_commit(
    dialect: str, opened: Any, new_database: Callable[[str], Database]
) -> None:
    """S-06b: a rolled-back response is refused."""
    database = new_database(dialect)
    database.make_tables()
    client = Client(on_failed="reject")
    with opened(database, FIRST) as place, client.request() as attempt:
        with pytest.raises(LostError) as raised:
            place()
        database.query("UPDATE open_idempotency_ledger SET response = NULL")  # as if it had not been committed
        client.engine.sync.run(abort(attempt, raised.value))
    assert (client.again().status, b"outcome-unknown" in (client.again().body or b"")) == (409, True)
