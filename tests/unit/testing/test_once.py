"""``Once`` under the kit, also a ``Once`` that a module has made long before a test."""

from __future__ import annotations

from typing import Any

import pytest

from open_idempotency import BackendUnavailable, InProgress, Once, idem
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.testing import Kit, KitError

BACKEND = MemoryBackend()
#: made when its module is imported, as in an application
ONCE = Once(BACKEND, scope="invoices", lease=30)


def _work(calls: list[int]) -> str:
    idem.run("charge", calls.append, 1)
    return "made"


async def _awaited(calls: list[int]) -> str:
    async def charge() -> None:
        calls.append(1)

    await idem.arun("charge", charge)
    return "made"


@pytest.fixture
def calls() -> list[int]:
    return []


def test_a_once_of_a_module_has_the_records_of_the_test(idempotency: Kit, calls: list[int]) -> None:
    """T-01: the sync form; the same work is not carried out again."""
    assert [ONCE.run("k", _work, calls, payload=None) for _ in range(2)] == ["made"] * 2
    assert len(calls) == 1
    assert len(idempotency.records) == 1
    assert list(BACKEND.scan()) == []


@pytest.mark.anyio
async def test_an_awaited_once_of_a_module_has_the_records_of_the_test(idempotency: Kit, calls: list[int]) -> None:
    """T-01: the async form."""
    assert [await ONCE.arun("k", _awaited, calls, payload=None) for _ in range(2)] == ["made"] * 2
    assert len(calls) == 1
    assert len(idempotency.records) == 1
    assert list(BACKEND.scan()) == []


def test_coroutines_in_a_sync_call_have_the_records_of_the_test(idempotency: Kit, calls: list[int]) -> None:
    """T-01: their stages are saved by other performers than those of the call."""
    import asyncio

    def work() -> str:
        return asyncio.run(_awaited(calls))

    assert ONCE.run("k", work) == "made"
    (record,) = idempotency.records
    assert [stage.name for stage in record.stages if stage.name == "charge"]
    assert list(BACKEND.scan()) == []


def test_after_the_test_a_once_has_its_own_backend_again(calls: list[int]) -> None:
    """T-01: the kit restores it."""
    with Kit():
        ONCE.run("after", _work, calls, payload=None)
    assert ONCE._engine.backend is BACKEND
    assert ONCE._engine.sync.backend is BACKEND
    try:
        assert ONCE.run("after", _work, calls, payload=None) == "made"
        assert len(list(BACKEND.scan())) == 1
    finally:
        assert ONCE.forget("after")
    assert len(calls) == 2


def test_a_worker_that_is_killed_in_a_call_is_resumed_behind_its_stages(idempotency: Kit, calls: list[int]) -> None:
    """T-09: nothing more is recorded of the killed call, whose lease continues until the clock has passed it."""
    with idempotency.crash_at("charge"):
        ONCE.run("k", _work, calls, payload=None)
    assert ONCE.status("k").alive
    with pytest.raises(InProgress):
        ONCE.run("k", _work, calls, payload=None)
    with pytest.raises(InProgress):
        ONCE.forget("k")
    idempotency.end_leases()
    assert ONCE.status("k").abandoned
    assert ONCE.run("k", _work, calls, payload=None) == "made"
    assert len(calls) == 1


def test_a_call_whose_worker_is_killed_at_its_end_is_resumed(idempotency: Kit, calls: list[int]) -> None:
    """T-09: its stages are recorded, and its result is not."""
    with idempotency.crash_at_end():
        ONCE.run("k", _work, calls, payload=None)
    assert ONCE.status("k").alive
    idempotency.end_leases()
    assert ONCE.run("k", _work, calls, payload=None) == "made"
    assert len(calls) == 1


def test_a_result_that_is_recorded_and_lost_on_its_way_is_on_record(idempotency: Kit, calls: list[int]) -> None:
    """T-10."""
    with idempotency.lost_reply():
        ONCE.run("k", _work, calls, payload=None)
    assert ONCE.run("k", _work, calls, payload=None) == "made"
    assert len(calls) == 1


def test_a_call_is_refused_while_the_backend_is_down(idempotency: Kit, calls: list[int]) -> None:
    """T-14."""
    with idempotency.backend_down("claim"), pytest.raises(BackendUnavailable):
        ONCE.run("k", _work, calls, payload=None)
    assert calls == []


def test_a_crash_where_no_call_comes_is_an_error(idempotency: Kit, calls: list[int]) -> None:
    """T-09: the error names the stages that ran."""

    def block() -> Any:
        with idempotency.crash_at("no such stage"):
            ONCE.run("k", _work, calls, payload=None)

    with pytest.raises(KitError, match="'charge'"):
        block()
