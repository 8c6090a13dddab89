"""Row 20: what is stored under a key is corrupt, foreign, or of a later version of this package."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

import pytest

from tests.faults.effects import Effects
from tests.faults.handlers import plain
from tests.faults.records import RECORDS, OnFile, OnServer, everywhere
from tests.faults.site import PATIENCE, Order, Worker

Records = OnServer | OnFile


def _on_server(change: Callable[[OnServer, bytes], object]) -> Callable[[OnServer], None]:
    def damage(records: OnServer) -> None:
        (key,) = records.keys()
        change(records, key)

    return damage


DAMAGE: dict[str, dict[str, Callable[..., object]]] = {
    "corrupt": {
        "sqlite": lambda records: records.change(f"UPDATE {RECORDS} SET status = 7"),
        "server": _on_server(lambda records, key: records.plain.hset(key, "s", "9")),
    },
    "foreign": {
        "sqlite": lambda records: records.change(f"UPDATE {RECORDS} SET owner = 'text', token = 'x'"),
        "server": _on_server(lambda records, key: records.plain.delete(key) and records.plain.set(key, b"theirs")),
    },
    "newer": {
        "sqlite": lambda records: records.change(f"UPDATE {RECORDS} SET record_version = 99"),
        "server": _on_server(lambda records, key: records.plain.hset(key, "v", "99")),
    },
}


def _snapshot(records: Records) -> object:
    if isinstance(records, OnServer):
        plain, keys = records.plain, records.keys()
        # Not DUMP, whose order of fields may change by reading them.
        return [plain.hgetall(key) if plain.type(key) == b"hash" else plain.get(key) for key in keys]
    connection = sqlite3.connect(records.path, timeout=10)
    try:
        return connection.execute(f"SELECT * FROM {RECORDS}").fetchall()
    finally:
        connection.close()


def _damage(records: Records, how: str) -> object:
    DAMAGE[how]["server" if isinstance(records, OnServer) else "sqlite"](records)
    return _snapshot(records)


@everywhere
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.fault("record unreadable", row=20, invariants=("I2", "I8"))
def test_a_record_that_cannot_be_read_runs_nothing_and_stays(
    records: Records, effects: Effects, colour: str, how: str
) -> None:
    """B-08b: 503 with a problem of its own, and not a byte of it is changed."""
    with Worker(colour, records.at()) as worker:
        order = Order(plain(effects))
        worker.post(order)
        before = _damage(records, how)
        refused = worker.post(order)
        assert refused.status == 503
        assert json.loads(refused.body)["type"].startswith("urn:problem-type:open-idempotency:")
        assert _snapshot(records) == before
    assert effects.all() == ["run 1"]


@everywhere
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.fault("record of a running request becomes unreadable", row=20, invariants=("I2", "I8", "I11"))
def test_a_record_that_becomes_unreadable_is_not_overwritten_by_its_owner(
    records: Records, effects: Effects, colour: str, how: str
) -> None:
    """B-08b, L-08: the answer goes out marked, and what lies there stays."""
    with Worker(colour, records.at()) as worker:
        order = Order(plain(effects, hold=True))
        owner = worker.start(order)
        order.until_arrived()
        before = _damage(records, how)
        order.script.release.set()
        first = owner.result(PATIENCE)
        # A heartbeat may have found it before: then the owner has been told to stop, and nothing is claimed.
        assert (first.status, first.unrecorded) in [(201, True), (503, False)]
        assert worker.post(order).status == 503
        assert _snapshot(records) == before
    assert effects.all() == ["run 1"]
