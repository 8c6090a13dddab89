"""The ledger works with any settings of the application's connections, and its errors disclose no values."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.orm import Session

from open_idempotency import ConfigurationError, LeaseLost, LedgerMissing, events, idem
from open_idempotency._core.models import Response
from open_idempotency._stages.stages import stage_id
from open_idempotency.ledger.dialects import POSTGRESQL, explain
from tests.ledger.databases import BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

SECRET = "4111 1111 1111 1111"


def place(tx: Any, value: Any = "placed") -> Any:
    """Run one stage without any work; its recorded value."""
    with idem.stage("order", tx=tx) as stage:
        stage.save(value)
    return stage.value


def place_another(opened: Open) -> None:
    """Run another stage in the attempt that took over."""
    with idem.stage("another", tx=opened.tx) as stage:
        stage.save("done")


def refuse(database: Database, message: str) -> None:
    """Make a SQLite ledger reject every stage."""
    database.query(
        "CREATE TRIGGER refuse BEFORE INSERT ON open_idempotency_ledger_stages "
        f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


def as_dictionary(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    """The row factory of the ``sqlite3`` manual."""
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.mark.parametrize("factory", [as_dictionary, sqlite3.Row])
def test_a_sqlite3_connection_whose_rows_are_something_else(
    client: Client, new_database: Callable[[str], Database], factory: Any
) -> None:
    """S-05: with any row factory."""
    database = new_database("sqlite")
    database.make_tables()
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        connection.row_factory = factory
        for value in ("first", "second"):
            with client.request(), connection:
                assert place(connection, value) == "first"


@pytest.mark.parametrize("factory", [psycopg.ClientCursor, psycopg.RawCursor])
def test_a_psycopg_connection_whose_cursors_are_something_else(
    client: Client, new_database: Callable[[str], Database], factory: Any
) -> None:
    """S-05: raw cursors have other placeholders, client cursors no binary results."""
    database = new_database("postgresql")
    database.make_tables()
    with psycopg.connect(database.url, cursor_factory=factory, row_factory=dict_row) as connection:
        for value in ("first", "second"):
            with client.request():
                assert place(connection, value) == "first"


def test_a_psycopg_connection_in_pipeline_mode_is_refused(
    client: Client, new_database: Callable[[str], Database]
) -> None:
    """Bad input: S-05; the fence has to see its result before the effect."""
    database = new_database("postgresql")
    refused = pytest.raises(ConfigurationError, match="pipeline")
    with psycopg.connect(database.url) as connection, connection.pipeline(), client.request(), refused:
        place(connection)


@pytest.mark.parametrize("kind", ["session on SQLite"])
def test_an_error_of_sqlalchemys_has_no_value_in_it(client: Client, kind: str, database: Database) -> None:
    """Errors contain no bodies: the cause is the driver's error, not SQLAlchemy's."""
    refuse(database, "full")
    engine = sqlalchemy.create_engine(database.url)
    with Session(engine) as session, client.request(), pytest.raises(sqlalchemy.exc.IntegrityError) as raised:
        place(session, SECRET)
    engine.dispose()
    assert "full" in str(raised.value)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is raised.value.orig


@pytest.mark.parametrize("kind", ["session on SQLite"])
def test_only_a_missing_table_is_called_missing(client: Client, kind: str, database: Database) -> None:
    """S-05: every SQLAlchemy error repeats the statement, and so contains the table's name."""
    refuse(database, "the auditor does not exist")
    with client.request(), pytest.raises(sqlalchemy.exc.IntegrityError), BLOCKING[kind][1](database) as opened:
        place(opened.tx)


def test_missing_tables_are_known_in_any_language() -> None:
    """S-05: the check does not depend on the server's ``lc_messages``."""
    error = psycopg.errors.UndefinedTable("FEHLER: Relation »open_idempotency_ledger« existiert nicht")
    with pytest.raises(LedgerMissing, match="open-idempotency ledger postgresql"):
        explain(error, error, POSTGRESQL)


def rolled_back(opened: Open) -> None:
    """Roll back, as a view does that catches a database error."""
    opened.tx.rollback()
    opened.execute(INSERT)


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg", "session on SQLite", "session on PostgreSQL"])
def test_a_rollback_within_a_stage_is_reported(client: Client, kind: str, database: Database) -> None:
    """S-05: the fence is gone; later statements would commit without the stage."""

    def roll_back(opened: Open) -> None:
        with idem.stage("order", tx=opened.tx):
            rolled_back(opened)

    ended = pytest.raises(ConfigurationError, match="rolled back")
    with client.request(), ended, BLOCKING[kind][1](database) as opened:
        roll_back(opened)
    assert database.orders() == 0


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg", "session on SQLite", "session on PostgreSQL"])
def test_a_rollback_within_an_atomic_block_is_reported(client: Client, kind: str, database: Database) -> None:
    """S-06: the rows would commit without their response."""

    def roll_back(opened: Open) -> None:
        with idem.atomic(opened.tx) as block:
            rolled_back(opened)
            block.respond(Response(201, [], b"placed"))

    ended = pytest.raises(ConfigurationError, match="rolled back")
    with client.request(), ended, BLOCKING[kind][1](database) as opened:
        roll_back(opened)
    assert database.orders() == 0


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_a_stale_worker_that_commits_within_a_stage_does_not_record_it(
    client: Client, kind: str, database: Database
) -> None:
    """S-05, I3: the commit releases the fence's lock, so the token is compared once more."""
    with client.request() as stale:
        pass

    def commit_in_the_middle(opened: Open) -> None:
        with idem.stage("order", tx=opened.tx):
            opened.tx.commit()
            with client.request(), BLOCKING[kind][1](database) as other:
                place_another(other)
            opened.execute(INSERT)

    with client.bound(stale), pytest.raises(LeaseLost), BLOCKING[kind][1](database) as opened:
        commit_in_the_middle(opened)
    assert database.orders() == 0
    assert stage_id("order", None) not in stale.stages


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_a_worker_that_the_ledger_refuses_is_reported_once(kind: str, database: Database) -> None:
    """S-05, L-03: an operator sees the same event as for every lost lease."""
    reported = list[events.Event]()
    client = Client(on_event=reported.append)
    with client.request() as stale:
        pass
    with client.request(), BLOCKING[kind][1](database) as opened:
        place(opened.tx)
    for _ in range(2):
        with client.bound(stale), pytest.raises(LeaseLost), BLOCKING[kind][1](database) as opened:
            place(opened.tx)
    assert [type(event) for event in reported].count(events.OwnershipLost) == 1


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_a_stage_that_the_record_has_is_not_run_again_for_its_new_tx(
    client: Client, kind: str, database: Database
) -> None:
    """S-01, B-06: an earlier release recorded the stage without ``tx=``; it does not run again."""
    with client.request():
        idem.save_stage("order", "by the release before")
    with client.request(), BLOCKING[kind][1](database) as opened:
        assert place(opened.tx) == "by the release before"
