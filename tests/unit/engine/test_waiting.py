"""How a duplicate waits, below admission: slots, signals, the backends' default, and the cost of waiting."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from open_idempotency._core.admission import admit
from open_idempotency._core.commands import Claim, Command, TakeSlot, Wait
from open_idempotency._core.models import Busy, Finished, Response
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.engine import AsyncPerformer, Performer, Slots
from open_idempotency._runtime import loops
from open_idempotency.backend import AsyncBackend, Backend, ClaimResult, Complete
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.backends.threaded import ThreadedBackend
from tests.unit.builders import RECORD, body_of, eventually
from tests.unit.core.admissions import FRAME, Admission

LONG = 20.0


class Counting(MemoryBackend):
    """The memory backend, which counts claims and signals when a duplicate waits."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = 0
        self.waits = 0

    def claim(self, c: Claim, /) -> ClaimResult:
        self.claims += 1
        return super().claim(c)

    def wait(self, c: Wait, /) -> None:
        self.waits += 1
        super().wait(c)


class AsyncCounting(AsyncMemoryBackend):
    """Its async front, whose own waits are counted too."""

    def __init__(self, over: Counting) -> None:
        super().__init__(over=over)
        self._counting = over

    async def wait(self, c: Wait, /) -> None:
        self._counting.waits += 1
        await super().wait(c)


def wait_of(seconds: float = LONG, pause: float = LONG) -> Wait:
    """A wait for ``RECORD``."""
    return Wait(RECORD, seconds, pause)


def take(slots: Slots, number: int | None = None) -> Callable[[], None] | None:
    """Take one of these slots."""
    return slots.take(TakeSlot(number))


# Slots


def test_a_place_that_is_given_back_can_be_taken_again() -> None:
    slots = Slots(1)
    leave = take(slots)
    assert leave is not None
    assert take(slots) is None
    leave()
    assert take(slots) is not None


def test_a_policy_says_how_many_places_there_are() -> None:
    """More or fewer slots than the performer's default; none at 0."""
    assert take(Slots(None), 0) is None
    slots = Slots(1)
    assert [take(slots, 2) is not None for _ in range(3)] == [True, True, False]


def test_without_a_limit_everybody_may_wait() -> None:
    """O-04: a waiting task costs next to nothing."""
    slots = Slots(None)
    assert all(take(slots) is not None for _ in range(1000))


def test_threads_that_take_places_at_once_get_no_more_than_there_are() -> None:
    """I11: slots are taken atomically."""
    slots, together = Slots(3), threading.Barrier(8, timeout=10)

    def one(_: int) -> bool:
        together.wait()
        return take(slots) is not None

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(one, range(8))) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
def test_a_child_has_places_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """B-11: the waiting requests of a parent process do not wait in its child."""
    slots = Slots(1)
    assert take(slots) is not None
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert take(slots) is not None


def test_an_engine_that_is_thrown_away_gives_its_place_back() -> None:
    """I11: it frees its slot although it can send no more commands."""
    admission = Admission(Busy(1, 9), wait=5)
    steps = admit(admission.intake, admission.policy)
    command: Command[object] = next(steps)
    while not isinstance(command, Wait):
        command = steps.send(admission.script._result(command))
    assert admission.script.slots == 0
    steps.close()
    assert admission.script.slots == 1


def test_a_duplicate_without_a_notification_polls_less_and_less_often() -> None:
    """O-04: a missed message costs a second, and a long wait few calls."""
    admission = Admission(*[Busy(1, 900)] * 1000, wait=60)
    admission.run()
    looks = [command.seconds for command in admission.script.asked if isinstance(command, Wait)]
    assert looks[:3] == [1.0, 1.5, 2.25]
    assert max(looks) == 5.0


# Signals


@pytest.mark.anyio
async def test_a_signal_of_another_thread_wakes_a_task() -> None:
    """O-04: on asyncio and on trio."""
    signal = loops.signal()
    thread = threading.Thread(target=signal.set)
    thread.start()
    with anyio.fail_after(10):
        assert await signal.wait(LONG)
    thread.join(10)


@pytest.mark.anyio
async def test_a_signal_that_does_not_come_ends_by_itself() -> None:
    """I11: the wait has a timeout."""
    with anyio.fail_after(10):
        assert not await loops.signal().wait(0.01)


@pytest.mark.anyio
async def test_a_signal_may_come_twice_and_late() -> None:
    """O-04: a signal for a wait that was given up is harmless."""
    signal = loops.signal()
    assert not await signal.wait(0.001)
    signal.set()
    signal.set()
    await anyio.sleep(0)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_signal_to_a_loop_that_has_ended_is_no_error(library: str) -> None:
    """B-11: the signalling thread must continue."""

    async def main() -> loops.Signal:
        return loops.signal()

    anyio.run(main, backend=library).set()


# What a backend does by default


class Polling(MemoryBackend):
    """A backend without notifications."""

    wait = Backend.wait


class AsyncPolling(ThreadedBackend):
    """An async backend without notifications."""


def test_a_backend_that_cannot_be_notified_pauses() -> None:
    """O-04: SQLite and others poll."""
    started = time.monotonic()
    Polling().wait(wait_of(LONG, 0.01))
    Polling().wait(wait_of(0.01, LONG))
    assert 0.015 < time.monotonic() - started < LONG / 2


@pytest.mark.anyio
async def test_tasks_that_wait_hold_no_threads() -> None:
    """A hundred tasks that wait together take no longer than one."""
    backend: AsyncBackend = AsyncPolling(Polling())
    before = threading.active_count()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(backend.wait, wait_of(LONG, 0.05))
            await anyio.sleep(0)
            assert threading.active_count() <= before


# What waiting costs


def _duplicate(wait: float = LONG) -> Admission:
    admission = Admission(wait=wait)
    admission.intake.owner = os.urandom(16)
    return admission


def _first_runs(backend: MemoryBackend) -> Complete:
    """Claim for the first request; return the completion that it will send."""
    first = _duplicate()
    attempt = Performer(backend).run(admit(first.intake, first.policy))
    return Complete(attempt.lease, FRAME)


def test_a_duplicate_that_is_notified_claims_twice() -> None:
    """O-04: once before it waits and once after, however long the first request runs."""
    backend = Counting()
    completion = _first_runs(backend)
    duplicate = _duplicate()
    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(Performer(backend).run, admit(duplicate.intake, duplicate.policy))
        eventually(lambda: backend.waits == 1)
        backend.complete(completion)
        assert isinstance(outcome.result(10), Response)
    assert backend.claims == 1 + 2


@pytest.mark.anyio
async def test_a_task_that_is_notified_claims_twice() -> None:
    """O-04: the async form."""
    backend = Counting()
    aio = AsyncPerformer(AsyncCounting(backend))
    completion = _first_runs(backend)
    results: list[object] = []

    async def nobody() -> None:
        return None

    async def body() -> RequestBody:
        return body_of(b"{}")

    async def one() -> None:
        duplicate = _duplicate()
        duplicate.intake.identify, duplicate.intake.receive = nobody, body
        results.append(await aio.run(admit(duplicate.intake, duplicate.policy)))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(one)
            while backend.waits < 10:
                await anyio.sleep(0.001)
            backend.complete(completion)
    assert [type(result) for result in results] == [Response] * 10
    assert backend.claims == 1 + 2 * 10


def test_of_many_threads_that_wait_two_may() -> None:
    """The others get their 409 at once, and keep no thread from other requests."""
    backend = Counting()
    performer = Performer(backend)
    completion = _first_runs(backend)

    def one(_: int) -> int:
        duplicate = _duplicate()
        response = performer.run(admit(duplicate.intake, duplicate.policy))
        assert isinstance(response, Response)
        return response.status

    with ThreadPoolExecutor(8) as threads:
        statuses = [threads.submit(one, number) for number in range(8)]
        eventually(lambda: sum(status.done() for status in statuses) == 6)
        assert {status.result() for status in statuses if status.done()} == {409}
        backend.complete(completion)
        assert sorted(status.result(10) for status in statuses) == [201] * 2 + [409] * 6


@pytest.mark.anyio
async def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    """O-04, I11: the wait of a client that left is cancelled."""
    memory = MemoryBackend()
    _first_runs(memory)
    (record,) = memory.scan()
    with anyio.move_on_after(0.01):
        await memory.to_async().wait(Wait(record.record_id, LONG, LONG))
    assert not memory._table._here.get().waiters


def test_a_wait_for_a_record_that_completed_does_not_wait() -> None:
    """O-04: the notification was sent before."""
    memory = MemoryBackend()
    memory.complete(_first_runs(memory))
    (record,) = memory.scan()
    memory.wait(Wait(record.record_id, 100.0, 100.0))
    result = memory.claim(Claim(record.record_id, record.fingerprint, b"x" * 16, 30, 60))
    assert result == Finished(FRAME)
