"""One request with two stages, struck at each of its awaits in turn: cancelled, killed, frozen past its lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.simulation.environment import LEASE
from tests.simulation.history import History
from tests.simulation.loop import Task
from tests.simulation.plans import Plan
from tests.simulation.site import Order

STAGES = 2
ORDER = Order("key-0-0123456789abcdef", "alice", b"mug")
#: each await of the request, up to its answer; the test below counts them
AWAITS = range(1, 13)


@pytest.fixture(params=range(8), ids=lambda number: f"seed{number}")
def history(request: pytest.FixtureRequest) -> Iterator[History]:
    """Two workers and nothing that goes wrong by itself; seeds differ in how long each thing takes."""
    made = History(Plan(seed=request.param, workers=2, stages=STAGES))
    with made.surroundings():
        yield made
    made.end()


def _begin(history: History) -> Task:
    history.workers[0].serve(ORDER)
    (task,) = history.workers[0].exchanges
    return task


def _strike(history: History, number: int, blow: Callable[[Task], None]) -> None:
    task = _begin(history)
    task.strike = (number, lambda: blow(task))
    history.loop.run(2.0)


def _status_of_a_retry(history: History) -> int:
    reply = history.workers[1].serve(ORDER).reply
    history.loop.run(history.loop.now + 5.0)
    assert reply.value is not None
    status: int = reply.value[0]
    return status


def _effects(history: History) -> list[str]:
    record_id = history.site.record_of[ORDER.key, ORDER.user]
    return [stage for stage, _ in history.site.oracle.story(record_id).effects]


def test_the_request_awaits_as_often_as_it_is_struck(history: History) -> None:
    """Otherwise the strikes below would miss its end."""
    task = _begin(history)
    history.loop.run(5.0)
    assert task.ended.done
    assert task.awaits <= AWAITS[-1]


@pytest.mark.parametrize("times", [1, 10], ids=["once", "again and again"])
@pytest.mark.parametrize("number", AWAITS)
def test_cancelled_at_any_await_a_retry_goes_on_at_once(history: History, number: int, times: int) -> None:
    """L-04, O-08: the claim is let go, no stage is done twice, and no lease has to end."""
    _strike(history, number, lambda task: task.cancel(times))
    assert _status_of_a_retry(history) == 201
    assert _effects(history) == ["stage-0", "stage-1"]


@pytest.mark.parametrize("number", AWAITS)
def test_killed_at_any_await_a_retry_goes_on_after_the_lease(history: History, number: int) -> None:
    """L-02, I2, I5: from the last stage on record; one whose record was still on its way may be done again."""
    _strike(history, number, lambda task: history.kill(task.process))
    history.loop.run(2.0 + LEASE)
    assert _status_of_a_retry(history) == 201
    assert set(_effects(history)) == {"stage-0", "stage-1"}
    assert len(_effects(history)) <= STAGES + 1


@pytest.mark.parametrize("number", AWAITS)
def test_frozen_at_any_await_past_its_lease_it_is_superseded(history: History, number: int) -> None:
    """L-03, I3, I4: it wakes as a stale owner, whose writes are refused and whose client gets nothing else."""
    _strike(history, number, lambda task: history.freeze(task.process, 3 * LEASE))
    history.loop.run(2.0 + LEASE)
    assert _status_of_a_retry(history) == 201
    history.loop.run(5 * LEASE)
    assert not history.workers[0].exchanges
    assert _status_of_a_retry(history) == 201
