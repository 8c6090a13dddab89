"""The ledger purges itself as entries are added; which rows a purge reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from open_idempotency import idem, ledger
from open_idempotency.ledger import steps
from open_idempotency.ledger.dialects import MYSQL, POSTGRESQL
from tests.ledger.databases import AWAITED, BLOCKING, Database
from tests.postgres_server import PostgresServer
from tests.unit.stages.stage_client import Client

COUNT = "SELECT count(*) FROM open_idempotency_ledger"
EXPIRE = "UPDATE open_idempotency_ledger SET expires_at = 1"


@pytest.fixture(autouse=True)
def _purging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every entry purge, rather than one in sixteen."""
    monkeypatch.setattr(steps, "_PURGED_EVERY", 1)


def _key(number: int) -> bytes:
    return b"0123456789abcde%d" % number


def test_a_ledger_that_nothing_purges_stays_bounded(client: Client, kind: str, database: Database) -> None:
    """B-23: an entry deletes expired ones in its own transaction; not on MySQL."""
    for number in range(3):
        with client.request(key=_key(number)), BLOCKING[kind][1](database) as opened:
            idem.run("charge", lambda: "done", tx=opened.tx)
    database.query(EXPIRE)
    with client.request(key=_key(3)), BLOCKING[kind][1](database) as opened:
        idem.run("charge", lambda: "done", tx=opened.tx)
    left = 4 if database.dialect is MYSQL else 1
    assert database.query(COUNT)[0][0] == left
    assert database.query("SELECT count(*) FROM open_idempotency_ledger_stages")[0][0] == left


def test_a_rollback_takes_the_purge_back(client: Client, kind: str, database: Database) -> None:
    """B-23, S-05: a rollback undoes the purge of its transaction too."""
    with client.request(key=_key(0)), BLOCKING[kind][1](database) as opened:
        idem.run("charge", lambda: "done", tx=opened.tx)
    database.query(EXPIRE)

    def rolled_back() -> None:
        with client.request(key=_key(1)), BLOCKING[kind][1](database) as opened:
            idem.run("charge", lambda: "done", tx=opened.tx)
            raise RuntimeError("rolled back")

    with pytest.raises(RuntimeError, match="rolled back"):
        rolled_back()
    assert database.query(COUNT)[0][0] == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_transactions_purge_in_passing(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """B-23: also for async callers."""
    for number in range(2):
        with client.request(key=_key(number)):
            async with AWAITED[awaited_kind][1](awaited_database) as opened:
                await idem.arun("charge", _done, tx=opened.tx)
        if number == 0:
            awaited_database.query(EXPIRE)
    assert awaited_database.query(COUNT)[0][0] == (2 if awaited_database.dialect is MYSQL else 1)


async def _done() -> str:
    return "done"


def test_a_transaction_that_could_not_be_serialized_with_others_purges_nothing(
    client: Client, new_database: Callable[[str], Database]
) -> None:
    """B-23: under REPEATABLE READ, concurrent purges of the same entries would conflict and fail the work."""
    database = new_database("postgresql")
    database.make_tables()
    for number in range(2):
        with client.request(key=_key(number)), psycopg.connect(database.url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            idem.run("charge", lambda: "done", tx=connection)
        if number == 0:
            database.query(EXPIRE)
    assert database.query(COUNT)[0][0] == 2


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


def test_a_purge_reads_no_entry_that_lives(new_database: Callable[[str], Database]) -> None:
    """B-22: the index is read up to the present time, not to its end."""
    database = new_database("postgresql")
    database.make_tables()
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO open_idempotency_ledger SELECT sha256(n::text::bytea), n, '', NULL, "
            "extract(epoch FROM clock_timestamp()) + 1000 * (n - 10) FROM generate_series(1, 5000) n"
        )
        connection.execute("ANALYZE open_idempotency_ledger")
        explained = connection.execute(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + POSTGRESQL.expired.replace(":limit", "1000")
        ).fetchone()
        assert explained is not None
        scans = [node for node in _nodes(explained[0][0]["Plan"]) if "Scan" in node["Node Type"]]
        (read,) = [node for node in scans if node.get("Relation Name") == "open_idempotency_ledger"]
        assert "Index Cond" in read, json.dumps(read)
        assert (read["Actual Rows"], read.get("Rows Removed by Filter", 0)) == (10, 0)
        with connection.transaction():
            assert ledger.purge(connection) == 10
    assert database.query(COUNT)[0][0] == 4990


def test_a_purge_deletes_nothing_that_lives_where_floats_have_few_digits(
    postgres18: PostgresServer, client: Client
) -> None:
    """B-20: the deadline of a purge is not rounded to few digits."""
    database = Database(postgres18.create_database("ledger_low_digits"))
    name = make_url(database.url).database
    database.query(f"ALTER DATABASE {name} SET extra_float_digits = -15")
    database.make_tables()
    for number in range(2):
        with client.request(key=_key(number)), psycopg.connect(database.url) as connection:
            idem.run("charge", lambda: "done", tx=connection)
        if number == 0:
            database.query("UPDATE open_idempotency_ledger SET expires_at = extract(epoch FROM clock_timestamp()) - 1")
    assert database.query(COUNT)[0][0] == 1
    with psycopg.connect(database.url) as connection:
        assert ledger.purge(connection) == 0
