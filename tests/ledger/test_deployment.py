"""How a deployment creates and purges the ledger's tables."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy

from open_idempotency import ConfigurationError, SyncAsyncMismatch, idem, ledger
from open_idempotency.cli import main
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

TABLES = ["open_idempotency_ledger", "open_idempotency_ledger_stages"]


def place(opened: Open) -> None:
    """Insert one order in one stage."""
    with idem.stage("order", tx=opened.tx):
        opened.execute(INSERT)


def shape(url: str) -> dict[str, list[tuple[str, str, bool]]]:
    """The columns of both tables: name, type and nullability; and the primary key."""
    engine = sqlalchemy.create_engine(url)
    try:
        looked = sqlalchemy.inspect(engine)
        return {
            table: [
                *((c["name"], str(c["type"]), bool(c["nullable"])) for c in looked.get_columns(table)),
                ("primary key", ", ".join(looked.get_pk_constraint(table)["constrained_columns"]), False),
                ("indexes", str(sorted(i["column_names"] for i in looked.get_indexes(table))), False),
            ]
            for table in TABLES
        }
    finally:
        engine.dispose()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_metadata_makes_the_tables_that_the_script_makes(
    dialect: str, new_database: Callable[[str], Database]
) -> None:
    """S-05: SQLAlchemy metadata (for Alembic) and the ``.sql`` script create the same tables."""
    database = new_database(dialect)
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    database.make_tables()
    by_script = shape(url)
    for table in TABLES:
        database.query(f"DROP TABLE {table}")
    engine = sqlalchemy.create_engine(url)
    ledger.metadata().create_all(engine)
    engine.dispose()
    assert shape(url) == by_script


def test_the_metadata_may_be_the_applications_own() -> None:
    """S-05: the tables are added to the application's metadata, once."""
    own = sqlalchemy.MetaData()
    sqlalchemy.Table("orders", own)
    assert ledger.metadata(own) is own
    assert sorted(ledger.metadata(own).tables) == [*TABLES, "orders"]


def test_the_metadata_does_not_go_into_a_schema_of_the_applications() -> None:
    """S-05: the ledger's statements name no schema, so its tables are in the default one."""
    own = sqlalchemy.MetaData(schema="shop")
    sqlalchemy.Table("orders", own)
    assert ledger.metadata(ledger.metadata(own)) is own
    assert sorted(own.tables) == [*TABLES, "shop.orders"]


@pytest.mark.parametrize("dialect", ["mysql", "mariadb"])
def test_the_metadata_makes_tables_that_roll_back(dialect: str) -> None:
    """S-05: on any default engine and character set of the server."""
    speaks = sqlalchemy.create_mock_engine(f"{dialect}+pymysql://", lambda *_: None).dialect
    for table in ledger.metadata().tables.values():
        script = str(sqlalchemy.schema.CreateTable(table).compile(dialect=speaks))
        assert "ENGINE=InnoDB" in script
        assert script.count("CHARACTER SET utf8mb4") == script.count("VARCHAR(200)")


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``open-idempotency ledger sqlite``: what it prints makes the tables."""
    assert main(["ledger", "sqlite"]) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.executescript(capsys.readouterr().out)
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    assert names == [(name,) for name in TABLES]


def test_the_command_refuses_a_dialect_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input: the message lists the supported dialects."""
    with pytest.raises(SystemExit):
        main(["ledger", "oracle"])
    assert "postgresql" in capsys.readouterr().err


def test_what_has_expired_is_purged_in_batches(client: Client, kind: str, database: Database) -> None:
    """S-05: expired responses are deleted with their stages; others remain."""
    for number in range(5):
        with client.request(key=b"0123456789abcde%d" % number), BLOCKING[kind][1](database) as opened:
            place(opened)
        if number < 4:
            database.query(f"UPDATE open_idempotency_ledger SET expires_at = {number} WHERE expires_at > 1000")
    purged = []
    for _ in range(3):
        with BLOCKING[kind][1](database) as opened:
            purged.append(ledger.purge(opened.tx, limit=3))
    assert purged == [3, 1, 0]
    assert [database.query(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES] == [1, 1]


def test_no_stage_outlives_its_record_in_a_purge(client: Client, kind: str, database: Database) -> None:
    """S-05, I7: a purged key that is used again finds nothing of the earlier request."""
    keys = [b"0123456789abcde%d" % number for number in range(4)]
    for key in keys:
        with client.request(key=key), BLOCKING[kind][1](database) as opened:
            for number in range(3):
                idem.run("item", lambda: "of the first life", key=number, tx=opened.tx)
    database.query("UPDATE open_idempotency_ledger SET expires_at = 1")
    purged = 1
    while purged:
        with BLOCKING[kind][1](database) as opened:
            purged = ledger.purge(opened.tx, limit=2)
    afresh = Client()
    for key in keys:
        with afresh.request(key=key, body=b"another"), BLOCKING[kind][1](database) as opened:
            assert idem.run("item", lambda: "of the second life", key=0, tx=opened.tx) == "of the second life"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_purges(awaited_kind: str, awaited_database: Database) -> None:
    """S-05."""
    async with AWAITED[awaited_kind][1](awaited_database) as opened:
        assert await ledger.apurge(opened.tx) == 0
        with pytest.raises(SyncAsyncMismatch, match="apurge"):
            ledger.purge(opened.tx)


def test_a_blocking_transaction_is_not_awaited(kind: str, database: Database) -> None:
    """S-08."""
    with BLOCKING[kind][1](database) as opened, pytest.raises(SyncAsyncMismatch):
        asyncio.run(ledger.apurge(opened.tx))


def test_an_unknown_dialect_has_no_schema() -> None:
    """Bad input."""
    with pytest.raises(ConfigurationError, match="mysql"):
        ledger.schema("oracle")
