"""Where ``idem`` can be used: inside of requests, sync or async, in which threads; and the errors elsewhere."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import pytest

from open_idempotency import idem
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency.exceptions import (
    AlreadyCompleted,
    LeaseLost,
    NotStarted,
    StageConflict,
    SyncAsyncMismatch,
)
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.stages.stage_client import Client, Counted


@pytest.fixture
def client() -> Client:
    """A client with its own backend."""
    return Client()


BLOCKING = [
    lambda: idem.save_stage("a"),
    lambda: idem.run("a", Counted()),
    lambda: idem.stage("a").__enter__(),
    lambda: idem.stage("a")(Counted().__call__)(),
]
FACTS = [
    lambda: idem.stages,
    lambda: idem.load("a"),
    lambda: idem.attempt,
    lambda: idem.resumed,
    lambda: idem.key_for("a"),
]
WISHES = [idem.keep, idem.discard]


@pytest.mark.parametrize("use", [*BLOCKING, *FACTS, *WISHES])
def test_outside_of_a_request_it_is_not_started(use: Any) -> None:
    """S-03: ERR_NOT_STARTED."""
    with pytest.raises(NotStarted) as caught:
        use()
    assert caught.value.code == "ERR_NOT_STARTED"


@pytest.mark.anyio
async def test_outside_of_a_request_the_awaited_verbs_are_not_started() -> None:
    """S-03."""
    for use in (lambda: idem.asave_stage("a"), lambda: idem.arun("a", Counted())):
        with pytest.raises(NotStarted):
            await use()


def test_outside_of_a_request_it_is_not_active() -> None:
    """``active`` is the one fact that never raises."""
    assert idem.active is False


@pytest.mark.parametrize("use", [*BLOCKING, *WISHES])
def test_after_the_response_it_is_already_completed(client: Client, use: Any) -> None:
    """S-03: ERR_COMPLETED."""
    with client.request() as attempt:
        attempt.phase = Phase.ENDED
        assert idem.active is False
        with pytest.raises(AlreadyCompleted) as caught:
            use()
    assert caught.value.code == "ERR_COMPLETED"


@pytest.mark.parametrize("use", BLOCKING)
def test_every_stage_notices_a_lost_lease_before_its_effect(client: Client, use: Any) -> None:
    """S-07, L-03."""
    with client.request() as attempt:
        attempt.lost = True
        with pytest.raises(LeaseLost):
            use()


def test_a_stage_whose_lease_was_lost_meanwhile_is_refused(client: Client) -> None:
    """L-03, B-03: the backend refuses it, and the attempt remembers the loss."""
    with client.request() as attempt:
        assert attempt.lease is not None
        attempt.lease.token -= 1
        with pytest.raises(LeaseLost):
            idem.save_stage("a")
        assert attempt.lost


def test_without_a_key_stages_run_plainly(client: Client) -> None:
    """S-03: nothing is stored."""
    charge = Counted(1)
    for _ in range(2):
        with client.request(b""):
            assert (idem.run("a", charge), idem.active, idem.attempt) == (1, False, 1)
            assert idem.stages == ()
    assert charge.calls == 2
    assert list(client.engine.backend.scan()) == []


@pytest.mark.parametrize("use", BLOCKING)
def test_without_a_key_strict_stages_are_not_started(use: Any) -> None:
    """S-03."""
    with Client(strict_stages=True).request(b""), pytest.raises(NotStarted):
        use()


# Sync and async


@pytest.mark.anyio
@pytest.mark.parametrize("use", BLOCKING[:3])
async def test_a_blocking_verb_on_an_event_loop_is_a_clear_error(client: Client, use: Any) -> None:
    """S-08."""
    with client.request(), pytest.raises(SyncAsyncMismatch, match="event loop"):
        use()


@pytest.mark.parametrize("use", [lambda: idem.arun("a", Counted()), lambda: idem.asave_stage("a")])
def test_an_awaited_verb_outside_of_an_event_loop_is_a_clear_error(client: Client, use: Any) -> None:
    """S-08: the call raises, since its coroutine may never be awaited."""
    with client.request(), pytest.raises(SyncAsyncMismatch, match="without the 'a'"):
        use()


def test_a_coroutine_function_in_a_blocking_verb_is_a_clear_error(client: Client) -> None:
    """S-08: no coroutine is left unawaited."""
    charge = Counted()
    with client.request():
        for function in (charge.awaited, functools.partial(charge.awaited), lambda: charge.awaited()):
            with pytest.raises(SyncAsyncMismatch, match=r"idem\.arun"):
                idem.run("a", function)
    assert charge.calls == 0


@pytest.mark.anyio
async def test_a_blocking_endpoint_in_a_thread_of_an_asynchronous_app_just_works(client: Client) -> None:
    """S-08: the context is copied to the thread."""
    charge = Counted(1)
    for _ in range(2):
        with client.request():
            assert await anyio.to_thread.run_sync(lambda: idem.run("a", charge)) == 1
    assert charge.calls == 1


def test_to_thread_carries_the_request(client: Client) -> None:
    """S-08."""

    async def main() -> int:
        with client.request():
            return await asyncio.to_thread(lambda: (idem.run("a", lambda: 1), idem.attempt)[1])

    assert asyncio.run(main()) == 1


def test_a_thread_without_the_context_is_not_started_and_with_it_works(client: Client) -> None:
    """S-03: ``idem`` works in threads that inherit the context."""
    with client.request(), ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        assert pool.submit(context.run, idem.run, "a", lambda: 1).result(10) == 1
        with pytest.raises(NotStarted):
            pool.submit(idem.run, "b", lambda: 1).result(10)


def test_threads_of_one_request_record_their_stages_side_by_side(client: Client) -> None:
    """S-01: no stage is lost."""
    together = threading.Barrier(8)

    def work(number: int) -> int:
        together.wait(10)
        for turn in range(20):
            idem.save_stage("part", number, key=f"{number}-{turn}")
        return number

    with client.request(), ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(contextvars.copy_context().run, work, number) for number in range(8)]
        assert [job.result(30) for job in jobs] == list(range(8))
        assert len(idem.stages) == 160


def test_tasks_of_one_request_record_their_stages_side_by_side(client: Client) -> None:
    """S-01: no stage is lost."""

    async def work(number: int) -> None:
        await idem.arun("part", lambda: number, key=number)

    async def main() -> int:
        with client.request():
            await asyncio.gather(*(work(number) for number in range(20)))
            return len(idem.stages)

    assert asyncio.run(main()) == 20


def test_two_requests_in_two_contexts_do_not_see_each_other(client: Client) -> None:
    """I10: each context has its own request."""

    def one(key: bytes) -> list[str]:
        with client.request(key):
            idem.save_stage(key.decode())
            return [stage.name for stage in idem.stages]

    names = [contextvars.copy_context().run(one, key) for key in (b"first-key-of-16-", b"other-key-of-16-")]
    assert names == [["first-key-of-16-"], ["other-key-of-16-"]]


def test_an_attempt_of_the_default_policy_shares_nothing_with_another() -> None:
    """The state of a request belongs to that request."""
    one, other = Attempt(IdempotencyPolicy()), Attempt(IdempotencyPolicy())
    one.enter(("a", ""))
    other.enter(("a", ""))
    with pytest.raises(StageConflict):
        one.enter(("a", ""))
