"""The guarantees of ``Once``, on every backend, sync, on asyncio and on trio."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from open_idempotency import (
    NOT_DONE,
    Found,
    InProgress,
    KeyNested,
    KeyReused,
    Once,
    OutcomeUnknown,
    StageValueError,
    Status,
    TooManyKeys,
    idem,
)
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.events import ResultNotKept
from tests.once.conftest import MakeOnce
from tests.once.modes import Mode

PATIENCE = 30.0


class Declined(Exception):
    """An error that is a result: a card was declined."""


class Count:
    """A function that counts its calls."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results) or ["done"]
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        result = self.results[min(self.calls, len(self.results)) - 1]
        if isinstance(result, BaseException):
            raise result
        return result


@dataclass
class Invoice:
    number: int
    total: Decimal
    due: date


class Receipt(BaseModel):
    number: int
    paid: Decimal


# Once


def test_a_function_is_carried_out_once_and_each_call_gets_its_result(how: Mode, once: Once) -> None:
    """N-01: later calls with the key may have any function."""
    create, never = Count({"number": 7}), Count()

    results = [how.run(once, "order-1", how.function(f), payload=1) for f in (create, create, never)]

    assert results == [{"number": 7}] * 3
    assert (create.calls, never.calls) == (1, 0)


def test_two_keys_are_two_pieces_of_work(how: Mode, once: Once) -> None:
    """N-01."""
    create = Count(1, 2)
    assert how.run(once, "a", how.function(create), payload=1) == 1
    assert how.run(once, "b", how.function(create), payload=1) == 2


def test_one_key_in_two_scopes_is_two_pieces_of_work(how: Mode, make: MakeOnce, scope: str) -> None:
    """N-02."""
    invoices, mails, renamed = make(), make(scope=f"{scope}-mails"), make(application="billing")
    create = Count(1, 2, 3)
    results = [how.run(once, "order-1", how.function(create), payload=1) for once in (invoices, mails, renamed)]
    assert results == [1, 2, 3]


def test_another_worker_finds_the_result(how: Mode, make: MakeOnce) -> None:
    """N-01."""
    create = Count("made")
    assert how.run(make(), "order-1", how.function(create), payload=1) == "made"
    assert how.run(make(), "order-1", how.function(create), payload=1) == "made"
    assert create.calls == 1


def test_a_decorated_function_is_carried_out_once_for_each_key(how: Mode, once: Once) -> None:
    """N-03: its key is computed from its arguments, and it keeps its name."""
    calls: list[int] = []

    def create(order: dict[str, Any], copies: int = 1) -> int:
        calls.append(order["id"])
        return int(order["id"]) * copies

    decorated = once(key=lambda order, copies=1: f"order-{order['id']}")(how.function(create))

    assert [how.call(decorated, {"id": 7}) for _ in range(2)] == [7, 7]
    assert how.call(decorated, {"id": 8}) == 8
    assert calls == [7, 8]
    with pytest.raises(KeyReused):
        how.call(decorated, {"id": 8}, 2)


def test_a_decorator_compares_what_payload_says(how: Mode, once: Once) -> None:
    """N-03, N-06: also if an argument is not JSON."""
    create = Count("made")

    def work(connection: object, order: int) -> Any:
        return create()

    decorated = once(key=lambda connection, order: str(order), payload=lambda connection, order: order)(
        how.function(work)
    )

    assert [how.call(decorated, object(), 7) for _ in range(2)] == ["made"] * 2
    assert create.calls == 1


def test_a_block_asks_whether_it_is_done_and_hands_over_the_result(how: Mode, once: Once) -> None:
    """N-04."""
    create = Count({"number": 7})
    assert how.begin(once, "order-1", create) == (False, {"number": 7})
    assert how.begin(once, "order-1", create) == (True, {"number": 7})
    assert create.calls == 1


def test_a_block_that_raises_leaves_the_work_to_the_next_one(how: Mode, once: Once) -> None:
    """N-04, N-09."""
    create = Count(ZeroDivisionError(), "made")
    with pytest.raises(ZeroDivisionError):
        how.begin(once, "order-1", create)
    assert how.status(once, "order-1").status is Status.FAILED
    assert how.begin(once, "order-1", create) == (False, "made")


# Results


def test_a_result_comes_back_as_its_declared_type(how: Mode, once: Once) -> None:
    """N-05: the annotation declares it; the first call gets that type too."""
    create = Count(Invoice(7, Decimal("9.90"), date(2026, 12, 1)))

    def work() -> Invoice:
        invoice: Invoice = create()
        return invoice

    results = [how.run(once, "order-1", how.function(work)) for _ in range(2)]

    assert results == [Invoice(7, Decimal("9.90"), date(2026, 12, 1))] * 2
    assert create.calls == 1


def test_returns_declares_the_type_of_a_result(how: Mode, once: Once) -> None:
    """N-05: a pydantic model, in a call and in a block."""
    receipt = Receipt(number=1, paid=Decimal("2.50"))
    for _ in range(2):
        assert how.run(once, "run", how.function(Count(receipt)), payload=1, returns=Receipt) == receipt
        assert how.begin(once, "block", Count(receipt), returns=Receipt)[1] == receipt


def test_the_first_call_gets_the_result_as_later_ones_do(how: Mode, once: Once) -> None:
    """N-05: the result passes through JSON."""
    results = [how.run(once, "k", how.function(Count((1, [2]))), payload=1) for _ in range(2)]
    assert results == [[1, [2]]] * 2


@pytest.mark.parametrize(
    "result", [object(), "x" * 2_000, float("nan"), {1: "a"}], ids=["object", "long", "nan", "keys"]
)
def test_a_result_that_cannot_be_kept_is_never_made_again(how: Mode, make: MakeOnce, result: object) -> None:
    """N-07: the call that made it gets it, and the log and the listener say what to do."""
    seen: list[Any] = []
    once = make(max_response_bytes=1_000, on_event=seen.append)
    create = Count(result)

    assert how.run(once, "k", how.function(create), payload=1) is result
    with pytest.raises(OutcomeUnknown, match=r"could not be stored.*not run again") as unknown:
        how.run(once, "k", how.function(create), payload=1)

    assert create.calls == 1
    assert not unknown.value.retryable
    assert type(result).__name__ in str(unknown.value) or isinstance(result, dict)
    assert [type(event) for event in seen].count(ResultNotKept) == 1


def test_a_declared_type_that_cannot_be_kept_is_refused_before_the_effect(how: Mode, once: Once) -> None:
    """N-07."""
    create = Count()

    def work() -> threading.Thread:
        create()
        return threading.Thread()

    with pytest.raises(StageValueError, match="returns="):
        how.run(once, "k", how.function(work))
    assert create.calls == 0
    assert how.status(once, "k").status is Status.NONE


# The payload


def test_another_payload_under_the_key_is_refused(how: Mode, once: Once) -> None:
    """N-06: the arguments are the payload, unless ``payload=`` is given."""
    create = Count("made")

    def work(order: dict[str, Any]) -> Any:
        return create()

    how.run(once, "order-1", how.function(work), {"id": 1, "sku": "mug"})
    with pytest.raises(KeyReused, match="payload="):
        how.run(once, "order-1", how.function(work), {"id": 1, "sku": "cup"})

    assert how.run(once, "order-1", how.function(work), {"sku": "mug", "id": 1}) == "made"
    assert how.run(once, "order-1", how.function(work), order={"id": 1, "sku": "mug"}) == "made"
    assert create.calls == 1


def test_payload_none_compares_the_key_alone(how: Mode, once: Once) -> None:
    """N-06."""
    create = Count("made")
    assert how.run(once, "k", how.function(create), object(), payload=None) == "made"
    assert how.run(once, "k", how.function(create), object(), payload=None) == "made"
    assert create.calls == 1


# Concurrent calls


class Held:
    """A function that runs until the test lets it go."""

    def __init__(self, result: Any = "made") -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.result = result
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        self.begun.set()
        assert self.may_end.wait(PATIENCE)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_a_call_while_another_one_runs_says_when_to_come_back(how: Mode, once: Once) -> None:
    """N-08: the error has a time to retry after."""
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(how.run, once, "k", how.function(held))
        try:
            assert held.begun.wait(PATIENCE)
            with pytest.raises(InProgress) as busy:
                how.run(once, "k", how.function(held))
            assert how.status(once, "k").alive
        finally:
            held.may_end.set()
        assert first.result(PATIENCE) == "made"
    assert 1.0 <= busy.value.retry_after <= 31.0
    assert held.calls == 1


def test_a_call_that_waits_gets_the_result_of_the_other_one(how: Mode, once: Once) -> None:
    """N-08: several calls may wait."""
    held = Held()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(how.run, once, "k", how.function(held))
        try:
            assert held.begun.wait(PATIENCE)
            others = [pool.submit(how.run, once, "k", how.function(held), wait=PATIENCE) for _ in range(3)]
        finally:
            held.may_end.set()
        assert [each.result(PATIENCE) for each in (first, *others)] == ["made"] * 4
    assert held.calls == 1


def test_a_call_that_waits_takes_over_where_the_other_one_fails(how: Mode, make: MakeOnce) -> None:
    """N-08: ``wait`` is a field of the ``Once``."""
    once = make(wait=PATIENCE)
    held, second = Held(ZeroDivisionError()), Count("made")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(how.run, once, "k", how.function(held), payload=1)
        try:
            assert held.begun.wait(PATIENCE)
            other = pool.submit(how.run, once, "k", how.function(second), payload=1)
        finally:
            held.may_end.set()
        with pytest.raises(ZeroDivisionError):
            first.result(PATIENCE)
        assert other.result(PATIENCE) == "made"


def test_waiting_ends_when_its_time_is_up(how: Mode, once: Once) -> None:
    """N-08."""
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(how.run, once, "k", how.function(held))
        try:
            assert held.begun.wait(PATIENCE)
            began = time.monotonic()
            with pytest.raises(InProgress):
                how.run(once, "k", how.function(held), wait=0.2)
            assert time.monotonic() - began >= 0.2
        finally:
            held.may_end.set()
        first.result(PATIENCE)


# Failures


def test_an_attempt_that_raised_is_resumed_behind_its_stages(how: Mode, once: Once) -> None:
    """N-09."""
    reserve, charge, end = Count(1), Count(2), Count(ZeroDivisionError(), "made")
    work = how.staged([("reserve", reserve), ("charge", charge)], end)

    with pytest.raises(ZeroDivisionError):
        how.run(once, "k", work)
    failed = how.status(once, "k")
    assert how.run(once, "k", work) == "made"

    assert (reserve.calls, charge.calls, end.calls) == (1, 1, 2)
    assert (failed.status, failed.attempt, [stage.name for stage in failed.stages]) == (
        Status.FAILED,
        1,
        ["reserve", "charge"],
    )


def test_an_error_that_is_a_result_is_raised_again_and_not_made_again(how: Mode, once: Once) -> None:
    """N-10: in a call and in a block."""
    pay = Count(Declined("no funds", 51))
    for _ in range(2):
        with pytest.raises(Declined) as declined:
            how.run(once, "k", how.function(pay), payload=1, memo_errors=(Declined,))
        assert declined.value.args == ("no funds", 51)
    assert pay.calls == 1

    block = Count(Declined("no"))
    for _ in range(2):
        with pytest.raises(Declined):
            how.begin(once, "block", block, memo_errors=(Declined,))
    assert block.calls == 1
    assert how.status(once, "block").status is Status.COMPLETED


def test_an_error_on_record_that_is_not_named_any_more_is_reported(how: Mode, once: Once) -> None:
    """N-10."""
    pay = Count(Declined("no"))
    with pytest.raises(Declined):
        how.run(once, "k", how.function(pay), payload=1, memo_errors=(Declined,))
    with pytest.raises(StageValueError, match="memo_errors="):
        how.run(once, "k", how.function(pay), payload=1)


def test_rejected_work_is_not_run_again_after_a_failure(how: Mode, make: MakeOnce) -> None:
    """N-11: ``on_failed``."""
    once, work = make(on_failed="reject"), Count(ZeroDivisionError(), "made")
    with pytest.raises(ZeroDivisionError):
        how.run(once, "k", how.function(work), payload=1)
    with pytest.raises(OutcomeUnknown, match="on_failed"):
        how.run(once, "k", how.function(work), payload=1)
    assert work.calls == 1
    assert how.status(once, "k").final


def test_work_is_attempted_max_attempts_times(how: Mode, make: MakeOnce) -> None:
    """N-11."""
    once, work = make(max_attempts=2), Count(ZeroDivisionError())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            how.run(once, "k", how.function(work), payload=1)
    with pytest.raises(OutcomeUnknown, match="max_attempts"):
        how.run(once, "k", how.function(work), payload=1)
    assert work.calls == 2


# idem inside of a call


def test_a_key_for_another_service_is_the_same_in_each_attempt(how: Mode, once: Once) -> None:
    """N-12."""
    keys: list[str] = []
    results = iter([ZeroDivisionError(), None])

    def end() -> None:
        keys.append(idem.key_for("charge"))
        if error := next(results):
            raise error

    with pytest.raises(ZeroDivisionError):
        how.run(once, "k", how.staged([], end))
    how.run(once, "k", how.staged([], end))

    assert keys[0] == keys[1]


def test_an_external_stage_in_doubt_is_not_run_again(how: Mode, once: Once) -> None:
    """N-12."""
    pay = Count(ZeroDivisionError())
    work = how.staged([("pay", pay)], external=True)
    with pytest.raises(ZeroDivisionError):
        how.run(once, "k", work)
    with pytest.raises(OutcomeUnknown):
        how.run(once, "k", work)
    assert pay.calls == 1
    assert how.status(once, "k").status is Status.FAILED


def test_reconcile_asks_the_other_side(how: Mode, once: Once) -> None:
    """N-12."""
    pay, findings = Count(ZeroDivisionError(), ZeroDivisionError()), iter([NOT_DONE, Found("paid")])
    work = how.staged([("pay", pay)], reconcile=lambda: next(findings))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            how.run(once, "k", work)
    assert how.run(once, "k", work) == "done"
    assert pay.calls == 2


def test_idem_is_that_of_the_call_and_nothing_behind_it(how: Mode, once: Once) -> None:
    """N-12: after the call ``idem`` is inactive."""
    seen: list[bool] = []
    how.run(once, "k", how.staged([], lambda: seen.append(idem.active)))
    assert (seen, idem.active) == ([True], False)


def test_discard_keeps_no_result(how: Mode, once: Once) -> None:
    """N-12."""
    ends = Count("not yet", "made")

    def end() -> Any:
        result = ends()
        if result == "not yet":
            idem.discard()
        return result

    assert [how.run(once, "k", how.staged([], end)) for _ in range(3)] == ["not yet", "made", "made"]


# Nested calls


def test_calls_of_other_keys_nest(how: Mode, once: Once) -> None:
    """N-14: each call has its own stages and its own end."""
    inner = Count("inner")
    if how.name == "sync":

        def outer() -> Any:
            with pytest.raises(ZeroDivisionError):
                once.run("failing", Count(ZeroDivisionError()), payload=1)
            idem.save_stage("mine", 1)
            return [once.run("inner", inner, payload=1), [stage.name for stage in idem.stages]]
    else:

        async def outer() -> Any:  # type: ignore[misc]  # the other kind
            with pytest.raises(ZeroDivisionError):
                await once.arun("failing", Count(ZeroDivisionError()), payload=1)
            await idem.asave_stage("mine", 1)
            return [await once.arun("inner", inner, payload=1), [stage.name for stage in idem.stages]]

    assert how.run(once, "outer", outer) == ["inner", ["mine"]]
    assert how.run(once, "inner", how.function(inner), payload=1) == "inner"
    assert inner.calls == 1


def test_a_key_inside_its_own_call_raises_at_once(how: Mode, make: MakeOnce) -> None:
    """N-14: also if it would wait, and also through another ``Once`` and another key in between."""
    one, other = make(wait=PATIENCE), make(wait=PATIENCE)
    if how.name == "sync":

        def outer() -> Any:
            return one.run("between", lambda: other.run("k", Count(), payload=1), payload=1)
    else:

        async def outer() -> Any:  # type: ignore[misc]  # the other kind
            async def between() -> Any:
                return await other.arun("k", Count(), payload=1)

            return await one.arun("between", between, payload=1)

    began = time.monotonic()
    with pytest.raises(KeyNested, match="wait for itself"):
        how.run(one, "k", outer, payload=1)
    assert time.monotonic() - began < PATIENCE / 2
    assert how.run(one, "k", how.function(Count("after")), payload=1) == "after"


# Status and forgetting


def test_the_status_says_how_far_the_work_is(how: Mode, once: Once) -> None:
    """N-16."""
    seen: list[Any] = []

    def end() -> str:
        if how.name == "sync":  # on a loop the call would wait for itself
            seen.append(once.status("k"))
        return "made"

    before = how.status(once, "k")
    how.run(once, "k", how.staged([("reserve", Count(5))], end))
    after = how.status(once, "k")

    assert (before.status, before.attempt, before.stages) == (Status.NONE, 0, ())
    assert (after.status, after.attempt, after.alive, after.abandoned) == (Status.COMPLETED, 1, False, False)
    assert [(stage.name, stage.value) for stage in after.stages] == [("reserve", 5)]
    for running in seen:
        assert (running.status, running.alive, running.abandoned) == (Status.IN_PROGRESS, True, False)


def test_a_forgotten_key_is_carried_out_anew(how: Mode, once: Once) -> None:
    """N-17."""
    create = Count(1, 2)
    how.run(once, "k", how.function(create), payload=1)
    assert [how.forget(once, "k"), how.forget(once, "k")] == [True, False]
    assert how.run(once, "k", how.function(create), payload="another") == 2


def test_a_key_that_an_attempt_holds_is_not_forgotten(how: Mode, once: Once) -> None:
    """N-17."""
    held = Held()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(how.run, once, "k", how.function(held))
        try:
            assert held.begun.wait(PATIENCE)
            with pytest.raises(InProgress):
                how.forget(once, "k")
        finally:
            held.may_end.set()
        assert first.result(PATIENCE) == "made"
    assert how.forget(once, "k")


# Fields of the policy


def test_encrypted_results_and_stages_come_back(how: Mode, make: MakeOnce) -> None:
    """N-21: the record contains no plain value."""
    once = make(encryption=EncryptionKeys({"a": b"k" * 32}))
    work = how.staged([("reserve", Count("a secret stage"))], lambda: "a secret result")
    assert [how.run(once, "k", work) for _ in range(2)] == ["a secret result"] * 2
    assert [stage.value for stage in how.status(once, "k").stages] == ["a secret stage"]
    for record in once._engine.backend.scan():
        assert b"a secret" not in (record.response or b"") + b"".join(stage.frame for stage in record.stages)


def test_a_scope_has_max_live_keys(how: Mode, make: MakeOnce) -> None:
    """N-22: a further key is refused before the function runs; a forgotten key frees its slot."""
    once, never = make(max_live_keys=2), Count()
    for key in ("a", "b"):
        how.run(once, key, how.function(Count()), payload=1)
    with pytest.raises(TooManyKeys) as refused:
        how.run(once, "c", how.function(never), payload=1)
    assert refused.value.retry_after >= 1
    assert never.calls == 0
    assert how.run(once, "a", how.function(never), payload=1) == "done"
    how.forget(once, "a")
    assert how.run(once, "c", how.function(Count("c")), payload=1) == "c"


def test_switched_off_it_calls_the_function_and_keeps_nothing(how: Mode, make: MakeOnce) -> None:
    """N-20: ``enabled=False``, for tests."""
    once, create = make(enabled=False), Count(1, 2)
    assert [how.run(once, "k", how.function(create), payload=1) for _ in range(2)] == [1, 2]
    assert how.status(once, "k").status is Status.NONE
