"""``tx=`` of a decorated function: a callable that finds the transaction of each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from open_idempotency import ConfigurationError, idem
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

current: ContextVar[Any] = ContextVar("current")


@idem.stage("order", tx=lambda opened, number: opened.tx, key=lambda opened, number: "k")
def place(opened: Open, number: int) -> int:
    """Insert an order in the given transaction."""
    opened.execute(INSERT)
    return number


@idem.stage("order", tx=lambda opened, number: opened.tx)
async def place_awaited(opened: Open, number: int) -> int:
    """Insert an order in the given async transaction."""
    await opened.execute(INSERT)
    return number


@idem.stage("order", tx=lambda *_: current.get())
def place_here(execute: Callable[[str], Any]) -> None:
    """Insert an order in the transaction of the context."""
    execute(INSERT)


def test_each_call_has_its_own_transaction(client: Client, kind: str, database: Database) -> None:
    """S-05: ``tx=`` is a function of the call's arguments, as ``key=`` is."""
    for number in range(2):
        with client.request(), BLOCKING[kind][1](database) as opened:
            assert place(opened, number) == 0
    assert database.orders() == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_each_call_has_its_own_transaction(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-05."""
    for number in range(2):
        with client.request():
            async with AWAITED[awaited_kind][1](awaited_database) as opened:
                assert await place_awaited(opened, number) == 0
    assert awaited_database.orders() == 1


@pytest.mark.parametrize("kind", ["session on SQLite"])
def test_a_transaction_of_the_context(client: Client, kind: str, database: Database) -> None:
    """S-05: the callable may ignore its arguments."""
    for _ in range(2):
        with client.request(), BLOCKING[kind][1](database) as opened:
            current.set(opened.tx)
            place_here(opened.execute)
    assert database.orders() == 1


@pytest.fixture
def sessions(new_database: Callable[[str], Database]) -> Iterator[tuple[Database, scoped_session[Session]]]:
    """A ``scoped_session``, which is a transaction and a callable."""
    database = new_database("sqlite")
    database.make_tables()
    engine = sqlalchemy.create_engine(database.url)
    made = scoped_session(sessionmaker(engine))
    yield database, made
    made.remove()
    engine.dispose()


def test_a_registry_is_a_transaction_and_not_called(
    client: Client, sessions: tuple[Database, scoped_session[Session]]
) -> None:
    """S-05: a ``scoped_session`` stands for the session of this thread."""
    database, registry = sessions

    @idem.stage("order", tx=registry)
    def insert(sku: str) -> str:
        registry.execute(sqlalchemy.text(INSERT))
        return sku

    for sku in ("tea", "coffee"):
        with client.request():
            assert insert(sku) == "tea"
            registry.commit()
    assert database.orders() == 1


def test_a_callable_that_returns_none_is_reported(client: Client) -> None:
    """Bad input: ``tx=None`` means a stage outside of the transaction, so None is not accepted silently."""

    @idem.stage("order", tx=lambda: None)
    def insert() -> None:
        raise AssertionError("not reached")

    with client.request(), pytest.raises(ConfigurationError, match="returned None instead of a transaction"):
        insert()


def test_a_callable_is_for_decorators(client: Client) -> None:
    """Bad input: a block takes the transaction itself."""
    refused = pytest.raises(ConfigurationError, match="in a decorator also a callable")
    with client.request(), refused, idem.stage("order", tx=lambda: None):
        raise AssertionError("not reached")


def test_a_decorator_refuses_what_does_not_go_with_a_transaction() -> None:
    """Bad input: raised at import, not at the first request."""
    with pytest.raises(TypeError, match="tx="):
        idem.stage("order", tx=lambda: None, external=True)
