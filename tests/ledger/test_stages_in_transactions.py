"""Stages that commit with the application's own rows (S-05), for each kind of ``tx=``, sync and async."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from open_idempotency import LeaseLost, StageValueError, SyncAsyncMismatch, idem
from open_idempotency.exceptions import KeyReused, LedgerMissing
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

SOON = 20.0


class Crashed(Exception):
    """Raised in place of a crash."""


def crash(_: object) -> None:
    """Raise ``Crashed``."""
    raise Crashed


def place_order(opened: Open, value: Any = "placed") -> Any:
    """Insert an order in the caller's transaction, in one stage."""
    with idem.stage("order", tx=opened.tx) as stage:
        if not stage.done:
            opened.execute(INSERT)
            stage.save(value)
    return stage.value


async def place_order_awaited(opened: Open) -> Any:
    """Insert an order in the caller's async transaction, in one stage."""
    async with idem.stage("order", tx=opened.tx) as stage:
        if not stage.done:
            await opened.execute(INSERT)
            stage.save("placed")
    return stage.value


def test_what_was_committed_is_not_done_again(client: Client, kind: str, database: Database) -> None:
    """S-05: the next attempt gets the committed stage's value."""
    for number in range(3):
        with client.request(), BLOCKING[kind][1](database) as opened:
            assert place_order(opened, {"number": number}) == {"number": 0}
    assert database.orders() == 1


def test_a_rollback_takes_the_stage_away(client: Client, kind: str, database: Database) -> None:
    """S-05: a rollback removes row and stage, so the next attempt makes both."""
    with pytest.raises(Crashed), client.request(), BLOCKING[kind][1](database) as opened:
        crash(place_order(opened))
    assert database.orders() == 0
    with client.request(), BLOCKING[kind][1](database) as opened:
        place_order(opened)
    assert database.orders() == 1


def test_it_works_although_the_record_is_lost(client: Client, kind: str, database: Database) -> None:
    """S-05: the record is deleted between commit and completion; the ledger still has the stage."""
    with client.request() as attempt, BLOCKING[kind][1](database) as opened:
        place_order(opened)
    assert attempt.lease is not None
    client.engine.backend.delete(attempt.lease.record_id)
    with client.request() as again, BLOCKING[kind][1](database) as opened:
        assert again.lease is not None
        assert again.lease.attempt == 1
        assert place_order(opened, "anew") == "placed"
    assert database.orders() == 1


def test_a_worker_that_was_superseded_cannot_commit(client: Client, kind: str, database: Database) -> None:
    """S-05, I3, I9: the token is compared in the transaction, before the effect."""
    with client.request() as stale:
        pass
    with client.request(), BLOCKING[kind][1](database) as opened:
        place_order(opened)
    with client.bound(stale), pytest.raises(LeaseLost), BLOCKING[kind][1](database) as opened:
        place_order(opened)
    assert stale.lost
    assert database.orders() == 1


def test_a_superseded_worker_cannot_overtake_one_that_has_not_come_to_its_stage(
    client: Client, kind: str, database: Database
) -> None:
    """S-05: the new owner finds what the stale one commits first; nothing is done twice."""
    with client.request() as stale:
        pass
    with client.request():
        with client.bound(stale), BLOCKING[kind][1](database) as opened:
            assert place_order(opened, "by the stale one") == "by the stale one"
        with BLOCKING[kind][1](database) as opened:
            assert place_order(opened, "anew") == "by the stale one"
    assert database.orders() == 1


def test_a_takeover_waits_for_the_transaction_before_it_and_sees_the_result(
    client: Client, kind: str, database: Database
) -> None:
    """S-05: the row is locked from the fence to the commit."""
    with client.request() as slow:
        pass
    entered, may_commit, values = threading.Event(), threading.Event(), list[Any]()

    def first() -> None:
        with client.bound(slow), BLOCKING[kind][1](database) as opened:
            place_order(opened, "by the slow one")
            entered.set()
            assert may_commit.wait(SOON)

    def second() -> None:
        with client.request(), BLOCKING[kind][1](database) as opened:
            values.append(place_order(opened, "by the second"))

    slow_one, other = threading.Thread(target=first), threading.Thread(target=second)
    slow_one.start()
    assert entered.wait(SOON)
    other.start()
    other.join(0.2)
    assert other.is_alive()
    may_commit.set()
    slow_one.join(SOON)
    other.join(SOON)
    assert values == ["by the slow one"]
    assert database.orders() == 1


def test_without_a_key_the_stage_runs_plainly(client: Client, kind: str, database: Database) -> None:
    """S-03: nothing is written to the ledger."""
    for _ in range(2):
        with client.request(key=b""), BLOCKING[kind][1](database) as opened:
            place_order(opened)
    assert database.orders() == 2
    assert database.query("SELECT count(*) FROM open_idempotency_ledger")[0][0] == 0


def test_a_key_that_the_ledger_knows_from_another_request_runs_nothing(
    client: Client, kind: str, database: Database
) -> None:
    """S-06, I7: the record is lost, and the key is used again with another body."""
    with client.request(body=b"one") as attempt, BLOCKING[kind][1](database) as opened:
        place_order(opened)
    assert attempt.lease is not None
    client.engine.backend.delete(attempt.lease.record_id)
    with client.request(body=b"other"), pytest.raises(KeyReused), BLOCKING[kind][1](database) as opened:
        place_order(opened)
    assert database.orders() == 1


def test_what_has_expired_is_forgotten(client: Client, kind: str, database: Database) -> None:
    """S-05: ledger rows have the same retention as records."""
    with client.request(), BLOCKING[kind][1](database) as opened:
        place_order(opened)
    database.query("UPDATE open_idempotency_ledger SET expires_at = 1")
    with client.request(), BLOCKING[kind][1](database) as opened:
        assert place_order(opened, "anew") == "anew"
    assert database.orders() == 2


def test_a_stage_may_be_tried_again_in_another_transaction_of_the_same_attempt(
    client: Client, kind: str, database: Database
) -> None:
    """S-05: after a serialization failure, for example."""
    with client.request():
        with pytest.raises(Crashed), BLOCKING[kind][1](database) as opened:
            crash(place_order(opened))
        for _ in range(2):
            with BLOCKING[kind][1](database) as opened:
                place_order(opened)
    assert database.orders() == 1


def test_a_call_is_the_same_as_a_block(client: Client, kind: str, database: Database) -> None:
    """S-05: ``idem.run(name, fn, tx=...)``."""

    def place(opened: Open, number: int) -> int:
        opened.execute(INSERT)
        return number

    for number in range(2):
        with client.request(), BLOCKING[kind][1](database) as opened:
            assert idem.run("order", place, opened, number, tx=opened.tx, key="k") == 0
    assert database.orders() == 1


def test_an_exception_in_the_stage_saves_nothing(client: Client, kind: str, database: Database) -> None:
    """S-05: even if the caller catches it and commits."""
    with client.request(), BLOCKING[kind][1](database) as opened:
        stage = idem.stage("order", tx=opened.tx)
        with pytest.raises(Crashed), stage:
            raise Crashed
    with client.request(), BLOCKING[kind][1](database) as opened:
        assert place_order(opened) == "placed"


def test_tables_that_are_missing_are_reported_before_any_effect(client: Client, kind: str, new_database: Any) -> None:
    """Bad input: the message says how to create them."""
    database: Database = new_database(BLOCKING[kind][0])
    database.make_tables(ledger=False)
    reported = pytest.raises(LedgerMissing, match="open-idempotency ledger")
    with client.request(), reported, BLOCKING[kind][1](database) as opened:
        place_order(opened)
    assert database.orders() == 0


def test_a_blocking_transaction_does_not_fit_an_awaited_block(client: Client, kind: str, database: Database) -> None:
    """S-08: raised before anything is written."""
    import asyncio

    async def use(opened: Open) -> None:
        async with idem.stage("order", tx=opened.tx):
            raise AssertionError("not reached")

    with client.request(), BLOCKING[kind][1](database) as opened, pytest.raises(SyncAsyncMismatch, match="with"):
        asyncio.run(use(opened))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_what_was_committed_is_not_done_again(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-05."""
    for _ in range(2):
        with client.request():
            async with AWAITED[awaited_kind][1](awaited_database) as opened:
                assert await place_order_awaited(opened) == "placed"
    assert awaited_database.orders() == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_a_rollback_takes_the_stage_away(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-05."""
    with client.request(), pytest.raises(Crashed):
        async with AWAITED[awaited_kind][1](awaited_database) as opened:
            crash(await place_order_awaited(opened))
    with client.request():
        async with AWAITED[awaited_kind][1](awaited_database) as opened:
            await place_order_awaited(opened)
    assert awaited_database.orders() == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_a_worker_that_was_superseded_cannot_commit(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-05, I3."""
    with client.request() as stale:
        pass
    with client.request():
        async with AWAITED[awaited_kind][1](awaited_database) as opened:
            await place_order_awaited(opened)
    with client.bound(stale), pytest.raises(LeaseLost):
        async with AWAITED[awaited_kind][1](awaited_database) as opened:
            await place_order_awaited(opened)
    assert awaited_database.orders() == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_transactions_do_not_fit_a_blocking_block(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-08: raised in a worker thread too, where sync blocks are otherwise right."""
    import anyio.to_thread

    def use(opened: Open) -> None:
        with idem.stage("order", tx=opened.tx):
            raise AssertionError("not reached")

    with client.request():
        async with AWAITED[awaited_kind][1](awaited_database) as opened:
            with pytest.raises(SyncAsyncMismatch, match="async with"):
                await anyio.to_thread.run_sync(use, opened)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_tables_that_are_missing_are_reported(
    client: Client, awaited_kind: str, new_database: Any
) -> None:
    """Bad input."""
    database: Database = new_database(AWAITED[awaited_kind][0])
    database.make_tables(ledger=False)
    with client.request(), pytest.raises(LedgerMissing):
        async with AWAITED[awaited_kind][1](database) as opened:
            await place_order_awaited(opened)


@pytest.mark.parametrize("value", [object(), "x" * 70_000, SecretStr("4111")], ids=["object", "too long", "secret"])
def test_a_value_that_cannot_be_kept_rolls_back(client: Client, kind: str, database: Database, value: Any) -> None:
    """S-02a, S-09: the rollback removes the effect too, so the next attempt does both."""
    for _ in range(2):
        with client.request():
            with pytest.raises(StageValueError, match="stage 'order'"), BLOCKING[kind][1](database) as opened:
                place_order(opened, value)
            assert idem.stages == ()
        assert database.orders() == 0
    with client.request(), BLOCKING[kind][1](database) as opened:
        assert place_order(opened, "ord_1") == "ord_1"
    assert database.orders() == 1


def test_a_value_of_a_declared_type_comes_back_from_the_ledger(client: Client, kind: str, database: Database) -> None:
    """S-02, S-05: with the same type as from the record."""
    for number in range(2):
        with client.request(), BLOCKING[kind][1](database) as opened:
            made = idem.run("order", lambda: Decimal(number), returns=Decimal, tx=opened.tx)  # noqa: B023 (called at once)
            assert (type(made), made) == (Decimal, 0)
