"""The longest names and keys of stages, on each database; longer ones are refused before any effect."""

from __future__ import annotations

import pytest

from open_idempotency import StageValueError, idem
from tests.ledger.databases import BLOCKING, INSERT, Database
from tests.unit.stages.stage_client import Client

#: a character of four bytes
WIDE = "\N{TEACUP WITHOUT HANDLE}"


def test_the_longest_name_and_key_are_kept(client: Client, kind: str, database: Database) -> None:
    """S-01: 200 characters of any width; names that differ in the last character are different stages."""
    keys = [WIDE * 199 + last for last in "ab"]
    for attempt in range(2):
        with client.request(), BLOCKING[kind][1](database) as opened:
            for number, key in enumerate(keys):
                with idem.stage(WIDE * 200, key=key, tx=opened.tx) as stage:
                    assert stage.done is bool(attempt)
                    stage.save(number)
                assert stage.value == number
    names = database.query("SELECT name, stage_key FROM open_idempotency_ledger_stages ORDER BY stage_key")
    assert [tuple(row) for row in names] == [(WIDE * 200, key) for key in keys]


@pytest.mark.parametrize(
    ("name", "key"),
    [("a" * 201, None), ("order", "a" * 201), ("or\0der", None), ("order", "a\0"), ("or\ud800der", None), ("", None)],
    ids=["long name", "long key", "NUL in the name", "NUL in the key", "half a character", "no name"],
)
def test_what_no_database_would_take_is_refused_before_any_effect(
    client: Client, kind: str, database: Database, name: str, key: str | None
) -> None:
    """S-01, S-02: the limits are those of stages without ``tx``; the error states them."""
    refused = pytest.raises(StageValueError, match="name")
    with client.request(), refused, BLOCKING[kind][1](database) as opened, idem.stage(name, key=key, tx=opened.tx):
        opened.execute(INSERT)
    assert database.orders() == 0
    assert database.query("SELECT count(*) FROM open_idempotency_ledger")[0][0] == 0


def test_an_endless_number_is_no_key(client: Client) -> None:
    """S-02: Python refuses to format an integer of so many digits."""
    with client.request(), pytest.raises(StageValueError, match="200"), idem.stage("order", key=10**5000):
        raise AssertionError("not reached")
