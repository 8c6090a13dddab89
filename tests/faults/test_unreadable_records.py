"""Row 20: the data under a key are corrupt, foreign, or of a later version of this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.effects import Effects
from tests.faults.handlers import plain
from tests.faults.records import POSTGRES, RECORDS, OnRedis, Records, everywhere
from tests.faults.site import PATIENCE, Order, Worker

_ROWS = "open_idempotency.records"


def _on_redis(change: Callable[[OnRedis, bytes], object]) -> Callable[[OnRedis], None]:
    def damage(records: OnRedis) -> None:
        (key,) = records.keys()
        change(records, key)

    return damage


def _spliced(records: OnRedis, key: bytes, place: int, byte: bytes) -> object:
    packed: Any = records.plain.hget(key, "m")
    return records.plain.hset(key, "m", packed[:place] + byte + packed[place + 1 :])


DAMAGE: dict[str, dict[str, Callable[..., object]]] = {
    "corrupt": {
        "sqlite": lambda records: records.change(f"UPDATE {RECORDS} SET status = 7"),
        "postgres": lambda records: records.change(f"UPDATE {_ROWS} SET status = 7"),
        "redis": _on_redis(lambda records, key: _spliced(records, key, 1, b"\x09")),
    },
    "foreign": {
        "sqlite": lambda records: records.change(f"UPDATE {RECORDS} SET owner = 'text', token = 'x'"),
        # Its columns have types, so even foreign data are a valid row.
        "postgres": lambda records: records.change(f"UPDATE {_ROWS} SET record_version = 0, status = 0, owner = ''"),
        "redis": _on_redis(lambda records, key: records.plain.delete(key) and records.plain.set(key, b"theirs")),
    },
    "newer": {
        "sqlite": lambda records: records.change(f"UPDATE {RECORDS} SET record_version = 99"),
        "postgres": lambda records: records.change(f"UPDATE {_ROWS} SET record_version = 99"),
        "redis": _on_redis(lambda records, key: _spliced(records, key, 0, b"\x63")),
    },
}


@pytest.fixture
def damage(records: Records, backend_kind: str) -> Callable[[str], object]:
    """``damage(how)``: overwrite what is stored; the new content."""
    language = "postgres" if backend_kind in POSTGRES else "sqlite" if backend_kind == "sqlite" else "redis"

    def happen(how: str) -> object:
        DAMAGE[how][language](records)
        return records.snapshot()

    return happen


@everywhere
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.fault("record unreadable", row=20, invariants=("I2", "I8"))
def test_a_record_that_cannot_be_read_runs_nothing_and_stays(
    records: Records, effects: Effects, interface: str, damage: Callable[[str], object], how: str
) -> None:
    """B-08b: 503 with its own problem type; not a byte of the record changes."""
    with Worker(interface, records.at()) as worker:
        order = Order(plain(effects))
        worker.post(order)
        before = damage(how)
        refused = worker.post(order)
        assert refused.status == 503
        assert json.loads(refused.body)["type"].startswith("urn:problem-type:open-idempotency:")
        assert records.snapshot() == before
    assert effects.all() == ["run 1"]


@everywhere
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.fault("record of a running request becomes unreadable", row=20, invariants=("I2", "I8", "I11"))
def test_a_record_that_becomes_unreadable_is_not_overwritten_by_its_owner(
    records: Records, effects: Effects, interface: str, damage: Callable[[str], object], how: str
) -> None:
    """B-08b, L-08: the response is marked as unrecorded, and the record stays as it is."""
    with Worker(interface, records.at()) as worker:
        order = Order(plain(effects, hold=True))
        owner = worker.start(order)
        order.until_arrived()
        before = damage(how)
        order.script.release.set()
        first = owner.result(PATIENCE)
        # A heartbeat may have found it before: then the owner has stopped before its stage, and nothing is claimed.
        assert (first.status, first.unrecorded) in [(201, True), (503, False)]
        assert worker.post(order).status == 503
        assert records.snapshot() == before
    assert effects.all() == ["run 1"]
