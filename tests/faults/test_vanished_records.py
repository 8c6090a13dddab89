"""Row 10: the record of a running request is deleted: by an operator, an eviction, or a restored copy."""

from __future__ import annotations

import pytest

from open_idempotency.events import Recreated
from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.records import OnPostgres, Records, everywhere, on_postgres, on_redis, wsgi_and_asgi
from tests.faults.site import BRISK, PATIENCE, Order, Worker
from tests.servers import Server


@everywhere
@wsgi_and_asgi
@pytest.mark.fault("record deleted, then completed", row=10, invariants=("I2", "I4"))
def test_a_completion_makes_the_record_anew(records: Records, effects: Effects, interface: str) -> None:
    """B-08a: with an event; a duplicate gets a response from it."""
    with Worker(interface, records.at()) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        records.forget()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.saw(Recreated)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


@everywhere
@wsgi_and_asgi
@pytest.mark.fault("record deleted, then a stage saved", row=10, invariants=("I1", "I2", "I9"))
def test_a_stage_makes_the_record_anew(records: Records, effects: Effects, interface: str) -> None:
    """B-08a: afterwards duplicates are refused again."""
    with Worker(interface, records.at()) as worker:
        order = Order(charging(effects, hold="charge"))
        later = order.again(plain(effects))
        owner = worker.start(order)
        order.until_arrived()
        records.forget()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert worker.saw(Recreated)
        assert worker.post(later).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


@everywhere
@wsgi_and_asgi
@pytest.mark.fault("record deleted, then claimed by another", row=10, invariants=("I3",))
@pytest.mark.fault(
    "record deleted, duplicate before its owner ends", row=10, invariants=("I1", "I2"), kind="documented"
)
def test_whoever_claims_a_deleted_record_owns_it(records: Records, effects: Effects, interface: str) -> None:
    """B-08a, L-03: it looks like a new request, so it runs again; the first owner changes nothing."""
    with Worker(interface, records.at()) as worker, Worker(interface, records.at()) as other:
        order = Order(plain(effects, hold=True))
        owner = worker.start(order)
        order.until_arrived()
        records.forget()
        second = other.post(order.again(plain(effects)))
        assert (second.status, second.replayed) == (201, False)
        order.script.release.set()
        assert owner.result(PATIENCE).body == second.body
        assert other.post(order).body == second.body
    assert effects.all() == ["run 1", "run 1"]


@on_redis
@pytest.mark.fault("FLUSHALL and SCRIPT FLUSH, then completed", row=10, invariants=("I2", "I4", "I6"))
def test_a_server_that_was_emptied_gets_record_and_script_again(
    backend_kind: str, effects: Effects, interface: str
) -> None:
    """B-08a, B-10."""
    server = Server(backend_kind).start()
    try:
        with Worker(interface, f"{server.url}?{BRISK}") as worker, server.connect() as operator:
            order = Order(charging(effects, hold="response"))
            owner = worker.start(order)
            order.until_arrived()
            operator.flushall()
            operator.script_flush()
            order.script.release.set()
            first = owner.result(PATIENCE)
            assert (first.status, first.unrecorded) == (201, False)
            assert worker.post(order).body == first.body
    finally:
        server.stop()
    assert effects.all() == ["reserve 1", "charge 1"]


@on_postgres
@pytest.mark.fault("schema dropped and made anew, then completed", row=10, invariants=("I2", "I4", "I6", "I8"))
def test_a_database_that_was_emptied_refuses_until_it_is_migrated(
    records: OnPostgres, effects: Effects, interface: str
) -> None:
    """B-08a, B-10: without its functions it counts as failed; then the owner recreates its record."""
    with Worker(interface, records.at()) as worker:
        order, new = Order(charging(effects, hold="response")), Order(plain(effects))
        owner = worker.start(order)
        order.until_arrived()
        records.ask("DROP SCHEMA open_idempotency CASCADE")
        try:
            refused = worker.post(new)
            assert (refused.status, new.runs) == (503, 0)
        finally:
            worker.backend.migrate()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]
