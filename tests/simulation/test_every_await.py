"""One request with two stages, with a fault at each of its awaits in turn: cancelled, killed, frozen past its lease.

Also a request with work in threads, cancelled at each await; and one that is delayed for most of its lease at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from open_idempotency.backend import Lease
from tests.effort import times
from tests.simulation.environment import LEASE
from tests.simulation.history import History
from tests.simulation.loop import Task
from tests.simulation.plans import Plan
from tests.simulation.site import Order, Site

STAGES = 2
ORDER = Order("key-0-0123456789abcdef", "alice", b"mug")
#: each await of the request, up to its response; the test below counts them
AWAITS = range(1, 13)


@pytest.fixture(params=range(times(2)), ids=lambda number: f"seed{number}")
def history(request: pytest.FixtureRequest) -> Iterator[History]:
    """Two workers and no random faults; the seed decides how long each step takes."""
    made = History(Plan(seed=request.param, workers=2, stages=STAGES))
    with made.surroundings():
        yield made
    made.end()


@pytest.fixture(params=[True, False], ids=["held back", "at once"])
def threaded(request: pytest.FixtureRequest) -> Iterator[History]:
    """A history whose handler works in threads; cancellations can be delayed, or are raised at once."""
    made = History(Plan(seed=1, workers=2, stages=STAGES, threads=1.0, holds=request.param))
    with made.surroundings():
        yield made
    made.end()


class _Long(History):
    """A site whose handlers run for longer than a lease."""

    async def _work(self, effect: Callable[[Lease], None] = lambda _: None) -> None:
        await super()._work(effect)
        await self.loop.sleep(LEASE * 1.5)


@pytest.fixture
def long() -> Iterator[History]:
    """Two workers, one for the fault and one for the retry; handlers have no stages and take one and a half leases."""
    made = _Long(Plan(seed=1, workers=2, stages=0))
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


def _status_of_a_retry(history: History, seconds: float = 5.0) -> int:
    reply = history.workers[1].serve(ORDER).reply
    until = history.loop.now + 5.0
    history.loop.run(history.loop.now + seconds)
    while not reply.done and history.loop.now < until:
        history.loop.run(history.loop.now + seconds)
    assert reply.value is not None
    status: int = reply.value[0]
    return status


def _effects(history: History) -> list[str]:
    record_id = history.site.record_of[ORDER.key, ORDER.user]
    return [stage for stage, _ in history.site.oracle.story(record_id).effects]


def test_the_request_awaits_as_often_as_it_is_struck(history: History) -> None:
    """Otherwise the tests below would miss its end."""
    task = _begin(history)
    history.loop.run(5.0)
    assert task.ended.done
    assert task.awaits <= AWAITS[-1]


@pytest.mark.parametrize("times", [1, 10], ids=["once", "again and again"])
@pytest.mark.parametrize("number", AWAITS)
def test_cancelled_at_any_await_a_retry_goes_on_at_once(history: History, number: int, times: int) -> None:
    """L-04, O-08: the claim is released, no stage runs twice, and no lease has to end."""
    _strike(history, number, lambda task: task.cancel(times))
    assert _status_of_a_retry(history) == 201
    assert _effects(history) == ["stage-0", "stage-1"]


@pytest.mark.parametrize("number", AWAITS)
def test_killed_at_any_await_a_retry_goes_on_after_the_lease(history: History, number: int) -> None:
    """L-02, I2, I5: after the last recorded stage; a stage whose record was in flight may run again."""
    _strike(history, number, lambda task: history.kill(task.process))
    history.loop.run(2.0 + LEASE)
    assert _status_of_a_retry(history) == 201
    assert set(_effects(history)) == {"stage-0", "stage-1"}
    assert len(_effects(history)) <= STAGES + 1


@pytest.mark.parametrize("number", AWAITS)
def test_frozen_at_any_await_past_its_lease_it_is_superseded(history: History, number: int) -> None:
    """L-03, I3, I4: it wakes as a stale owner: its writes are refused, and its client gets the new response."""
    _strike(history, number, lambda task: history.freeze(task.process, 3 * LEASE))
    history.loop.run(2.0 + LEASE)
    assert _status_of_a_retry(history) == 201
    history.loop.run(5 * LEASE)
    assert not history.workers[0].exchanges
    assert _status_of_a_retry(history) == 201


@pytest.mark.parametrize("times", [1, 10], ids=["once", "again and again"])
@pytest.mark.parametrize("after", [0.0, 0.02])
@pytest.mark.parametrize("number", AWAITS)
def test_cancelled_at_any_await_no_retry_runs_beside_a_thread(
    threaded: History, number: int, after: float, times: int
) -> None:
    """L-09, I12: retries get 409 until the thread has ended; then one resumes at once."""
    task = _begin(threaded)
    # A thread that has not begun when it is cancelled never does.
    task.strike = (number, lambda: threaded.loop.after(after, lambda: task.cancel(times), task.process))
    statuses: list[int] = []
    while not task.ended.done and not threaded.site.record_of:  # its handler has not begun
        threaded.loop.run(threaded.loop.now + 0.01)
    while not task.ended.done or not statuses or statuses[-1] == 409:
        statuses.append(_status_of_a_retry(threaded, 0.05))
        assert threaded.loop.now < LEASE
    assert set(statuses) <= {409, 201}
    assert set(_effects(threaded)) == {"stage-0", "stage-1"}
    if threaded.plan.holds:
        assert _effects(threaded) == ["stage-0", "stage-1"]


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("number", range(1, 4))
def test_held_up_for_most_of_a_lease_it_is_renewed_in_time(long: History, number: int, share: float) -> None:
    """L-01: the lease counts from when the claim was sent, not from when its reply was read."""
    task = _begin(long)
    task.strike = (number, lambda: long.block(task.process, share * LEASE))
    long.loop.run(1.1 * LEASE)
    assert _status_of_a_retry(long) == 409
    long.loop.run(4 * LEASE)
    assert _status_of_a_retry(long) == 201


class _WithoutThreads(Site):
    def may_start_thread(self) -> None:
        """The first worker cannot start any."""
        assert self.loop.process is not None
        if self.loop.process.name == "worker-0":
            raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("times", [1, 10], ids=["once", "again and again"])
@pytest.mark.parametrize("number", range(1, 6))
def test_cancelled_while_an_unrenewable_claim_is_given_back_it_is_given_back(number: int, times: int) -> None:
    """L-04, L-11: the claim is released, whether or not the first release had arrived."""
    history = History(Plan(seed=1, workers=2, stages=STAGES), _WithoutThreads)
    with history.surroundings():
        _strike(history, number, lambda task: task.cancel(times))
        assert _status_of_a_retry(history) == 201
        history.end()
