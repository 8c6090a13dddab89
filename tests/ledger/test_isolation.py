"""Two attempts at one stage under each isolation level of PostgreSQL: one order, and errors that may be retried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from open_idempotency import idem
from tests.ledger.databases import INSERT, Database
from tests.unit.stages.stage_client import Client

SOON = 20.0


@contextmanager
def transaction(database: Database, level: psycopg.IsolationLevel) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that is committed at its end."""
    with psycopg.connect(database.url) as connection:
        connection.isolation_level = level
        yield connection


def place(connection: psycopg.Connection[Any]) -> bool:
    """Insert one order in one stage; whether the stage was found."""
    with idem.stage("order", tx=connection) as stage:
        if not stage.done:
            connection.execute(INSERT)
        return stage.done


def meeting(client: Client, database: Database, level: psycopg.IsolationLevel) -> list[object]:
    """The results of an attempt that runs before an earlier one has committed, and of the attempt after that."""
    with client.request() as slow:
        pass
    entered, may_commit, ends = threading.Event(), threading.Event(), list[object]()

    def first() -> None:
        with client.bound(slow), transaction(database, level) as connection:
            place(connection)
            entered.set()
            assert may_commit.wait(SOON)

    def second() -> None:
        for _ in range(2):
            try:
                with client.request(), transaction(database, level) as connection:
                    ends.append(place(connection))
            except psycopg.errors.SerializationFailure as error:
                ends.append(type(error))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(SOON)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    may_commit.set()
    for thread in threads:
        thread.join(SOON)
    return ends


@pytest.mark.parametrize("level", psycopg.IsolationLevel)
def test_an_attempt_that_meets_another_never_places_a_second_order(
    client: Client, new_database: Callable[[str], Database], level: psycopg.IsolationLevel
) -> None:
    """S-05: it sees the result, or fails with a serialization error and sees it when retried."""
    database = new_database("postgresql")
    database.make_tables()
    waits = level <= psycopg.IsolationLevel.READ_COMMITTED
    assert meeting(client, database, level) == [True if waits else psycopg.errors.SerializationFailure, True]
    assert database.orders() == 1
