"""Coalescing: calls that arrive while a batch is in flight form the next batch, and each gets its own result."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from open_idempotency.backends._shared.coalescing import NOT_ALONE, Limits, LoopCoalescer, ThreadCoalescer
from open_idempotency.exceptions import BackendUnavailable

_SECONDS = 20.0
LIMITS = Limits(_SECONDS)


class Gate:
    """Replies to batches of numbers with their doubles; holds each batch until ``open`` is called for it."""

    def __init__(self, *, holds: int = 1) -> None:
        self.batches: list[list[int]] = []
        self.errors: dict[int, Exception] = {}
        self._holds = holds
        self._opened = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def carry_out(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        if len(self.batches) <= self._holds:
            self.entered.release()
            assert self._opened.acquire(timeout=_SECONDS)
        if 13 in numbers:
            raise BackendUnavailable("away")
        return [self.errors.get(number, 2 * number) for number in numbers]

    async def acarry_out(self, numbers: Sequence[int]) -> list[int | Exception]:
        return await asyncio.to_thread(self.carry_out, numbers)

    def open(self) -> None:
        self._opened.release()


def on_a_loop(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 2 * _SECONDS))


async def ask_all(coalescer: LoopCoalescer[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """Start one task for each number, in this order, and wait until each has queued its call."""
    tasks = [asyncio.create_task(coalescer.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


def test_tasks_ask_together_what_came_while_the_last_batch_was_away() -> None:
    """LIMITS: there is no timer; the first call goes alone and at once, the rest as one batch, in order."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, LIMITS)
        tasks = await ask_all(coalescer, 1, 2, 3, 4)
        gate.open()
        assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
        assert gate.batches == [[1], [2, 3, 4]]

    on_a_loop(test())


def test_a_task_that_finds_nothing_on_its_way_asks_itself() -> None:
    """With no batch in flight, the calling task carries its call out itself, in its own context; no task is created."""

    async def test() -> None:
        seen: list[Any] = []

        async def carry_out(numbers: Sequence[int]) -> Sequence[int]:
            seen.append(asyncio.current_task())
            return numbers

        coalescer = LoopCoalescer(carry_out, LIMITS)
        assert await coalescer.ask(1) == 1
        assert await coalescer.ask(2) == 2
        assert seen == [asyncio.current_task()] * 2

    on_a_loop(test())


def test_tasks_that_call_again_after_a_result_share_the_next_batch() -> None:
    """Batches stay full under load: they do not split into one call and the rest."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, LIMITS)

        async def pair(number: int) -> None:
            assert await coalescer.ask(number) == 2 * number
            assert await coalescer.ask(number + 100) == 2 * number + 200

        first, *tasks = [asyncio.create_task(pair(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(first, *tasks)
        assert gate.batches[0] == [1]
        assert sorted(map(len, gate.batches)) in ([1, 2, 3], [1, 1, 2, 2])

    on_a_loop(test())


def test_a_result_before_the_end_of_the_batch_is_returned_then() -> None:
    """B-11b: a read in a batch does not wait for the writes; a result that was returned early is not returned again at
    the end.
    """

    async def test() -> None:
        reported, ended = asyncio.Event(), asyncio.Event()

        async def carry_out(numbers: Sequence[int]) -> Sequence[int | Exception]:
            if 1 in numbers:
                await asyncio.sleep(0)
                return [2]
            coalescer.report([4, None, LookupError("4")])
            reported.set()
            await ended.wait()
            return [-1, 6, -1]

        coalescer: LoopCoalescer[int, int] = LoopCoalescer(carry_out, LIMITS)
        _, two, three, four = await ask_all(coalescer, 1, 2, 3, 4)
        await reported.wait()
        assert coalescer.on_its_way
        assert await two == 4
        with pytest.raises(LookupError):
            await four
        assert not three.done()
        ended.set()
        assert await three == 6
        assert not coalescer.on_its_way

    on_a_loop(test())


def test_each_task_gets_its_own_error() -> None:
    """A call that is refused does not affect other calls of the batch."""

    async def test() -> None:
        gate = Gate()
        gate.errors[3] = LookupError("3")
        coalescer = LoopCoalescer(gate.acarry_out, LIMITS)
        tasks = await ask_all(coalescer, 1, 2, 3, 4)
        gate.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:2] + results[3:] == [2, 4, 8]
        assert isinstance(results[2], LookupError)

    on_a_loop(test())


def test_a_batch_that_fails_fails_for_all_its_tasks_and_the_next_goes_on() -> None:
    """I6: each task gets an error object of its own, and the queue continues."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, Limits(_SECONDS, most=2))
        tasks = await ask_all(coalescer, 1, 2, 13, 4, 5)
        gate.open()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == 2
        assert results[3:] == [8, 10]
        assert all(isinstance(error, BackendUnavailable) for error in results[1:3])
        assert results[1] is not results[2]

    on_a_loop(test())


def test_a_cancelled_task_takes_its_waiting_question_back() -> None:
    """A queued call whose task is cancelled is never sent."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, LIMITS)
        tasks = await ask_all(coalescer, 1, 2, 3)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        gate.open()
        assert await tasks[2] == 6
        assert gate.batches == [[1], [3]]

    on_a_loop(test())


def test_a_task_cancelled_while_its_batch_is_away_does_not_disturb_the_others() -> None:
    """The result of the cancelled task is dropped, and the other tasks get theirs."""

    async def test() -> None:
        gate = Gate(holds=2)
        coalescer = LoopCoalescer(gate.acarry_out, LIMITS)
        tasks = await ask_all(coalescer, 1, 2, 3)
        gate.open()
        await tasks[0]
        await asyncio.to_thread(gate.entered.acquire)
        await asyncio.to_thread(gate.entered.acquire)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        gate.open()
        assert await tasks[2] == 6
        assert await coalescer.ask(4) == 8

    on_a_loop(test())


def test_the_end_of_the_loop_ends_those_that_wait() -> None:
    """A loop that ends cancels the worker; no waiting task is left behind for ever."""

    async def test() -> None:
        coalescer: LoopCoalescer[int, int] = LoopCoalescer(_never, LIMITS)
        first, second = await ask_all(coalescer, 1, 2)
        first.cancel()
        await asyncio.wait([first])
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), first, second}:
            if task.get_coro().__qualname__.endswith("_work"):
                task.cancel()
        await asyncio.wait([second])
        assert isinstance(second.exception(), BackendUnavailable)
        assert not coalescer.busy

    on_a_loop(test())


def test_a_worker_that_is_cancelled_before_its_first_step_leaves_nobody_behind() -> None:
    """L-04: cleanup code that runs while everything is cancelled can still make a call."""

    async def test() -> None:
        gate = asyncio.Event()

        async def carry_out(questions: Sequence[int]) -> list[int]:
            await gate.wait()
            return [2 * question for question in questions]

        def cancelled_at_once(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
            task = asyncio.Task(coroutine, loop=loop, **more)
            task.cancel()
            return task

        coalescer: LoopCoalescer[int, int] = LoopCoalescer(carry_out, LIMITS)
        first, second = await ask_all(coalescer, 1, 2)
        asyncio.get_running_loop().set_task_factory(cancelled_at_once)  # the worker is the next task
        gate.set()
        await asyncio.wait([first, second])
        asyncio.get_running_loop().set_task_factory(None)
        assert isinstance(second.exception(), BackendUnavailable)
        assert await coalescer.ask(3) == 6

    on_a_loop(test())


async def _never(numbers: Sequence[int]) -> Sequence[int]:
    await asyncio.Event().wait()
    return numbers


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        (Limits(_SECONDS, most=2), [[1], [2, 3], [4]]),
        (Limits(_SECONDS, size=25), [[1], [2, 3], [4]]),
        (Limits(_SECONDS, size=5), [[1], [2], [3], [4]]),
    ],
)
def test_a_batch_is_bounded_in_number_and_bytes(limits: Limits, batches: list[list[int]]) -> None:
    """I11: a call that exceeds the size by itself is sent alone."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, limits)
        tasks = [asyncio.create_task(coalescer.ask(number, 10)) for number in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(*tasks)
        assert gate.batches == batches

    on_a_loop(test())


def test_too_many_that_wait_are_refused() -> None:
    """I11: fail closed; calls that wait already are carried out."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, Limits(_SECONDS, waiting=2))
        tasks = await ask_all(coalescer, 1, 2, 3)
        with pytest.raises(BackendUnavailable, match="too many calls wait for the backend: 2"):
            await coalescer.ask(4)
        gate.open()
        assert await asyncio.gather(*tasks) == [2, 4, 6]

    on_a_loop(test())


def test_a_task_whose_time_is_over_is_not_sent() -> None:
    """The timeout of a call includes its time in the queue."""

    async def test() -> None:
        gate = Gate()
        coalescer = LoopCoalescer(gate.acarry_out, Limits(-1.0))
        tasks = await ask_all(coalescer, 1, 2)
        gate.open()
        with pytest.raises(BackendUnavailable, match="no further calls"):
            await tasks[1]
        assert gate.batches == [[1]]

    on_a_loop(test())


class Threads:
    """Threads that call one after another; each is known to wait before the next one calls."""

    def __init__(self, pool: ThreadPoolExecutor, gate: Gate, limits: Limits = LIMITS) -> None:
        self._pool = pool
        self._gate = gate
        self.coalescer: ThreadCoalescer[int, int] = ThreadCoalescer(gate.carry_out, limits)
        self._asked = 0

    def ask(self, *numbers: int) -> list[Future[int]]:
        return [self._ask(lambda number=number: self.coalescer.ask(number)) for number in numbers]

    def _ask(self, call: Callable[[], int]) -> Future[int]:
        future = self._pool.submit(call)
        if self._asked == 0:
            assert self._gate.entered.acquire(timeout=_SECONDS)
        else:
            _until(lambda: self.waiting == self._asked)
        self._asked += 1
        return future

    @property
    def waiting(self) -> int:
        return self.coalescer._queue._count


def _until(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(int(_SECONDS * 1000)):
        if condition():
            return
        event.wait(0.001)
    raise AssertionError("it did not come")


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_threads_ask_together_what_came_while_the_last_batch_was_away(pool: ThreadPoolExecutor) -> None:
    """For threads: one of the waiting threads carries out the batch."""
    gate = Gate()
    asked = Threads(pool, gate).ask(1, 2, 3, 4)
    gate.open()
    assert [future.result(_SECONDS) for future in asked] == [2, 4, 6, 8]
    assert gate.batches == [[1], [2, 3, 4]]


def test_a_call_in_the_place_of_a_batch_is_made_where_none_is_on_its_way(pool: ThreadPoolExecutor) -> None:
    """A call outside of a batch holds up the others as a batch does, and hands over as a batch does."""
    gate = Gate(holds=0)
    coalescer = ThreadCoalescer(gate.carry_out, LIMITS)

    def call(word: str) -> str:
        asked.append(pool.submit(coalescer.ask, 1))
        _until(lambda: coalescer._queue._count == 1)
        assert coalescer.alone(call, "another") is NOT_ALONE
        assert not gate.batches
        return word

    asked: list[Future[int]] = []
    assert coalescer.alone(call, "result") == "result"
    assert [future.result(_SECONDS) for future in asked] == [2]
    with pytest.raises(LookupError):
        coalescer.alone({}.__getitem__, "missing")
    assert coalescer.alone(str, 1) == "1"


def test_a_thread_carries_out_one_batch_and_hands_over(pool: ThreadPoolExecutor) -> None:
    """Fairness: no thread works for the others for long."""
    leaders: list[int] = []
    gate = Gate(holds=1)

    def carry_out(numbers: Sequence[int]) -> Sequence[int | Exception]:
        leaders.append(threading.get_ident())
        return gate.carry_out(numbers)

    threads = Threads(pool, gate, Limits(_SECONDS, most=1))
    threads.coalescer._carry_out = carry_out
    asked = threads.ask(1, 2, 3)
    gate.open()
    for future in asked:
        future.result(_SECONDS)
    assert gate.batches == [[1], [2], [3]]
    assert len(set(leaders)) == 3


def test_several_questions_of_one_call_stay_together(pool: ThreadPoolExecutor) -> None:
    """The calls of one event loop's batch share one transaction with those of other threads, and get their results in
    order.
    """
    gate = Gate()
    gate.errors[3] = LookupError("3")
    threads = Threads(pool, gate, Limits(_SECONDS, most=3))
    first = threads.ask(1)[0]
    several = pool.submit(threads.coalescer.ask_all, [(2, 0), (3, 0)])
    _until(lambda: threads.waiting == 2)
    alone = pool.submit(threads.coalescer.ask_all, [(4, 0), (5, 0)])
    _until(lambda: threads.waiting == 4)
    gate.open()
    assert first.result(_SECONDS) == 2
    result, error = several.result(_SECONDS)
    assert result == 4
    assert isinstance(error, LookupError)
    assert alone.result(_SECONDS) == [8, 10]
    assert gate.batches == [[1], [2, 3], [4, 5]]


def test_a_batch_that_fails_fails_for_all_its_threads_and_the_next_goes_on(pool: ThreadPoolExecutor) -> None:
    """I6: the same as for tasks: each thread gets an error of its own, and the queue continues."""
    gate = Gate()
    asked = Threads(pool, gate, Limits(_SECONDS, most=2)).ask(1, 2, 13, 4)
    gate.open()
    errors = [future.exception(_SECONDS) for future in asked]
    assert [type(error) for error in errors] == [type(None), BackendUnavailable, BackendUnavailable, type(None)]
    assert errors[1] is not errors[2]


def test_a_thread_that_is_ended_in_its_batch_leaves_the_others_with_results(pool: ThreadPoolExecutor) -> None:
    """SystemExit by gunicorn's timeout in the leading thread: the others get an error, and another thread leads."""
    gate = Gate()

    def carry_out(numbers: Sequence[int]) -> Sequence[int | Exception]:
        if 2 in numbers:
            raise SystemExit(1)
        return gate.carry_out(numbers)

    threads = Threads(pool, gate, Limits(_SECONDS, most=2))
    threads.coalescer._carry_out = carry_out
    asked = threads.ask(1, 2, 3, 4)
    gate.open()
    errors = [future.exception(_SECONDS) for future in asked]
    assert [type(error) for error in errors] == [type(None), SystemExit, BackendUnavailable, type(None)]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timers that signal")
def test_a_signal_that_raises_anywhere_in_a_call_leaves_nobody_stuck() -> None:
    """I6: a handler that raises, such as a timeout by alarm, must not leave the queue without a leading thread."""
    coalescer: ThreadCoalescer[int, int] = ThreadCoalescer(list, Limits(0.02))
    ended = 0

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        for delay in range(1, 400):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay * 5e-7)
                for _ in range(200):
                    coalescer.ask(1)
                    coalescer.ask_all(((1, 0), (2, 0)))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeoutError:
                ended += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert coalescer.ask(3) == 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended > 100


def test_too_many_threads_that_wait_are_refused(pool: ThreadPoolExecutor) -> None:
    """I11: for threads: fail closed."""
    gate = Gate()
    threads = Threads(pool, gate, Limits(_SECONDS, waiting=1))
    asked = threads.ask(1, 2)
    with pytest.raises(BackendUnavailable, match="too many calls wait for the backend: 1"):
        threads.coalescer.ask(3)
    gate.open()
    assert [future.result(_SECONDS) for future in asked] == [2, 4]


def test_a_thread_whose_time_is_over_takes_its_question_back(pool: ThreadPoolExecutor) -> None:
    """For threads: a call whose timeout ends in the queue does not wait for the batch in flight."""
    gate = Gate()
    coalescer: ThreadCoalescer[int, int] = ThreadCoalescer(gate.carry_out, Limits(0.0))
    first = pool.submit(coalescer.ask, 1)
    assert gate.entered.acquire(timeout=_SECONDS)
    with pytest.raises(BackendUnavailable, match="no further calls"):
        coalescer.ask(2)
    gate.open()
    assert first.result(_SECONDS) == 2
    assert gate.batches == [[1]]


def test_a_thread_in_flight_waits_for_its_result_after_its_time_is_over(pool: ThreadPoolExecutor) -> None:
    """A call that was sent may have had its effect, so its result is waited for."""
    gate = Gate(holds=2)
    threads = Threads(pool, gate, Limits(2.0))
    first, second, third = threads.ask(1, 2, 3)
    gate.open()
    first.result(_SECONDS)
    assert gate.entered.acquire(timeout=_SECONDS)
    # Both are in the second batch now; let their time pass.
    threading.Event().wait(2.1)
    gate.open()
    assert (second.result(_SECONDS), third.result(_SECONDS)) == (4, 6)


@pytest.mark.parametrize("most", [1, 7, 256])
def test_a_crowd_of_threads_gets_every_result(pool: ThreadPoolExecutor, most: int) -> None:
    """No call is lost and no thread gets the result of another, whatever the order in which threads wake."""
    gate = Gate(holds=0)
    coalescer: ThreadCoalescer[int, int] = ThreadCoalescer(gate.carry_out, Limits(_SECONDS, most=most))

    def ask_many(start: int) -> bool:
        return all(coalescer.ask(number) == 2 * number for number in range(start, start + 300))

    assert all(pool.map(ask_many, range(1000, 9000, 1000)))
    assert sum(map(len, gate.batches)) == 2400
