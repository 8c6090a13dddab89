"""The sync and the async driver carry out the same steps; cleanup happens wherever the request is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import (
    AsyncDriver,
    Call,
    Claim,
    Complete,
    Driver,
    Fail,
    Get,
    Now,
    Release,
    Renew,
    SaveStage,
    Steps,
    Withdraw,
    ask,
)
from open_idempotency._core.models import (
    Busy,
    ClaimResult,
    Completed,
    Leased,
    Record,
    Response,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency._core.recording import save_stage
from open_idempotency._core.settlement import Fate, abort, finish
from open_idempotency._engine.engine import AsyncPerformer, Performer, new_owner
from open_idempotency.backend import AsyncBackend
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import PRINT, RECORD, body_of, lease_of, request_of

CLAIM = Claim(RECORD, PRINT, b"o" * 16, 30.0, 60.0)
SAVED = Stage("reserve", "", b"frame")


class Boom(Exception):
    """An error of a command."""


def fails() -> None:
    """A command that fails."""
    raise Boom("here")


def story() -> Steps[list[object]]:
    """Steps that handle an error where the failing command was yielded."""
    seen: list[object] = [(yield from ask(Call(lambda: 1)))]
    try:
        yield from ask(Call(fails))
    except Boom as error:
        seen.append(str(error))
    seen.append((yield from ask(Call(lambda: 3))))
    return seen


def unmet() -> Steps[None]:
    """Steps that do not handle the error of their command."""
    yield from ask(Call(fails))


def silent() -> Steps[str]:
    """Steps without commands."""
    return "done"
    yield from ask(Now())


async def call(command: Call[Any]) -> Any:
    """Carry out a ``Call`` whose function is awaited."""
    await anyio.sleep(0)
    return command.function()


class Shielded(AsyncDriver):
    """Notes which commands ran under a shield."""

    def __init__(self) -> None:
        super().__init__({Call: call})
        self.shielded: list[Any] = []

    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        self.shielded.append(call)
        return await call()


@pytest.mark.parametrize(("steps", "end"), [(story, [1, "here", 3]), (silent, "done")])
def test_steps_run_blocking_to_their_end(steps: Any, end: object) -> None:
    """Errors of a command are raised in the steps, where the command was yielded."""
    assert Driver({Call: lambda command: command.function()}).run(steps()) == end


@pytest.mark.anyio
@pytest.mark.parametrize(("steps", "end"), [(story, [1, "here", 3]), (silent, "done")])
async def test_the_same_steps_run_awaited_to_the_same_end(steps: Any, end: object) -> None:
    """One engine serves sync and async."""
    assert await AsyncDriver({Call: call}).run(steps()) == end


@pytest.mark.anyio
async def test_an_error_that_is_not_met_ends_both_drivers() -> None:
    with pytest.raises(Boom):
        Driver({Call: lambda command: command.function()}).run(unmet())
    with pytest.raises(Boom):
        await AsyncDriver({Call: call}).run(unmet())


@pytest.mark.anyio
async def test_every_command_is_shielded_where_the_request_is_being_cancelled_already() -> None:
    """L-04: ``guarded`` shields them."""
    driver = Shielded()
    await driver.run(story(), guarded=True)
    assert len(driver.shielded) == 3


@pytest.mark.anyio
async def test_no_command_is_shielded_before_anything_was_cancelled() -> None:
    """L-04: a shield costs a task, so an ordinary request has none; an ordinary error changes nothing."""
    driver = Shielded()
    assert await driver.run(story()) == [1, "here", 3]
    assert driver.shielded == []


@pytest.mark.anyio
async def test_both_performers_leave_the_same_record() -> None:
    """One engine, sync and async, on real backends."""
    response = Response(201, [(b"x", b"1")], b"made")
    blocking, awaited = MemoryBackend(clock=lambda: 5.0), MemoryBackend(clock=lambda: 5.0)
    performer, aio = Performer(blocking), AsyncPerformer(awaited.to_async())
    policy = IdempotencyPolicy()
    attempt = performer.run(admit(intake(b"o" * 16, lambda: None, lambda: body_of(b"{}")), policy))
    assert isinstance(attempt, Attempt)
    performer.run(save_stage(attempt, SAVED))
    assert performer.run(finish(attempt, response)) is Fate.KEPT

    async def identify() -> None:
        return None

    async def receive() -> Any:
        return body_of(b"{}")

    attempt = await aio.run(admit(intake(b"o" * 16, identify, receive), policy))
    assert isinstance(attempt, Attempt)
    await aio.run(save_stage(attempt, SAVED))
    assert await aio.run(finish(attempt, response)) is Fate.KEPT
    assert list(blocking.scan()) == list(awaited.scan())


def intake(owner: bytes, identify: Any, receive: Any) -> Intake:
    """A request with a key."""
    return Intake(request_of(), [(b"idempotency-key", b"0123456789abcdef")], owner, identify, receive)


class Halting(AsyncMemoryBackend):
    """The memory backend with an await before and after each verb's effect, where a cancellation can arrive.

    ``cancel_at``: the number of the await at which ``cancel`` is called.
    """

    def __init__(self, over: MemoryBackend) -> None:
        self._sync = over
        self.awaits = 0
        self.cancel_at = -1
        self.cancel: Callable[[], object] = lambda: None

    async def halt(self) -> None:
        """One await of the backend's client library."""
        self.awaits += 1
        if self.awaits == self.cancel_at:
            self.cancel()
        await anyio.sleep(0)

    async def _around(self, verb: Callable[[Any], Any], c: Any) -> Any:
        await self.halt()
        result = verb(c)
        await self.halt()
        return result

    async def claim(self, c: Claim, /) -> ClaimResult:
        result: ClaimResult = await self._around(self._sync.claim, c)
        return result

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        result: StageSaved = await self._around(self._sync.save_stage, c)
        return result

    async def complete(self, c: Complete, /) -> Completed:
        result: Completed = await self._around(self._sync.complete, c)
        return result

    async def fail(self, c: Fail, /) -> None:
        await self._around(self._sync.fail, c)

    async def release(self, c: Release, /) -> None:
        await self._around(self._sync.release, c)

    async def get(self, c: Get, /) -> Record | None:
        result: Record | None = await self._around(self._sync.get, c)
        return result


async def one_request(aio: AsyncPerformer, backend: Halting) -> None:
    """A request as an adapter carries it out: admission, a stage, an effect, completion, and cleanup."""

    async def identify() -> None:
        return None

    async def receive() -> Any:
        await backend.halt()
        return body_of(b"{}")

    attempt = await aio.run(admit(intake(new_owner(), identify, receive), IdempotencyPolicy()))
    assert isinstance(attempt, Attempt), attempt
    settled = False
    try:
        await aio.run(save_stage(attempt, SAVED))
        await backend.halt()
        settled = True
        await aio.run(finish(attempt, Response(201, [], b"made")))
    except BaseException as error:
        if not settled:
            await aio.run(abort(attempt, error), guarded=True)
        raise


AWAITS = 8


@pytest.mark.anyio
async def test_the_cancelled_request_below_awaits_as_often_as_is_tried() -> None:
    """The next test cancels at each of these awaits, and at no await that does not exist."""
    backend = Halting(MemoryBackend())
    await one_request(AsyncPerformer(backend), backend)
    assert backend.awaits == AWAITS


@pytest.mark.anyio
@pytest.mark.parametrize("at", range(1, AWAITS + 1))
async def test_a_request_cancelled_at_any_await_never_leaves_its_key_stuck(at: int) -> None:
    """L-04, I6: the next request runs at once, or replays the completed response."""
    memory = MemoryBackend(clock=lambda: 1_000.0)
    backend = Halting(memory)
    backend.cancel_at = at
    with anyio.fail_after(10):
        with anyio.CancelScope() as scope:
            backend.cancel = scope.cancel
            await one_request(AsyncPerformer(backend), backend)
        assert scope.cancelled_caught
    records = list(memory.scan())
    assert all(record.status is not Status.IN_PROGRESS for record in records)
    if at >= 7:
        assert [record.status for record in records] == [Status.COMPLETED]
    elif at >= 4:
        assert [(r.status, [s.name for s in r.stages]) for r in records] == [(Status.FAILED, ["reserve"])]
    else:
        assert records == []


@pytest.mark.parametrize("at", range(1, AWAITS + 1))
def test_a_task_cancelled_twice_never_leaves_its_key_stuck(at: int) -> None:
    """L-04: asyncio delivers each ``cancel()`` once; the second one arrives during the cleanup."""
    memory = MemoryBackend(clock=lambda: 1_000.0)
    backend = Halting(memory)

    async def main() -> None:
        task = asyncio.ensure_future(one_request(AsyncPerformer(backend), backend))
        loop = asyncio.get_running_loop()

        def cancel_twice() -> None:
            task.cancel()
            loop.call_soon(lambda: loop.call_soon(task.cancel))

        backend.cancel_at, backend.cancel = at, cancel_twice
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 10)
        assert task.cancelled()

    asyncio.run(main())
    assert all(record.status is not Status.IN_PROGRESS for record in memory.scan())


class Hanging(AsyncMemoryBackend):
    """A backend that breaks its contract: a failure takes for ever."""

    call_timeout = 0.0

    async def fail(self, c: Fail, /) -> None:
        await anyio.sleep_forever()


@pytest.mark.anyio
async def test_a_cleanup_that_hangs_is_given_up_as_if_the_backend_were_down() -> None:
    """L-04, I11: cleanup is bounded in time; the adapter raises the handler's error."""
    aio = AsyncPerformer(Hanging())
    attempt = Attempt.of(lease_of(), (), IdempotencyPolicy(), "/")
    with anyio.fail_after(10):
        assert await aio.run(abort(attempt, asyncio.CancelledError()), guarded=True) is Fate.NOT_KEPT


@pytest.mark.anyio
async def test_a_backends_error_passes_through_the_shield() -> None:
    """B-10: the shield does not change the error."""

    class Down(AsyncMemoryBackend):
        async def claim(self, c: Claim, /) -> ClaimResult:
            raise BackendUnavailable("down")

    def steps() -> Steps[ClaimResult]:
        return (yield from ask(CLAIM))

    with pytest.raises(BackendUnavailable, match="down"):
        await AsyncPerformer(Down()).run(steps(), guarded=True)


@pytest.mark.anyio
async def test_a_performer_knows_every_verb_of_the_backend() -> None:
    """Commands are dispatched by a dict."""
    memory = MemoryBackend()
    backend: AsyncBackend = memory.to_async()
    leased = memory.claim(CLAIM)
    assert isinstance(leased, Leased)

    def steps() -> Steps[object]:
        yield from ask(Renew([leased.lease]))
        yield from ask(SaveStage(leased.lease, SAVED))
        yield from ask(Fail(leased.lease))
        yield from ask(Release(leased.lease))
        yield from ask(Withdraw(replace(CLAIM, owner=b"somebody else")))
        record = yield from ask(Get(RECORD))
        return record.status if record else None

    assert Performer(memory).run(steps()) is Status.FAILED
    memory.delete(RECORD)
    again = memory.claim(CLAIM)
    assert isinstance(again, Leased)
    leased = again
    assert await AsyncPerformer(backend).run(steps()) is Status.FAILED
    assert not isinstance(memory.claim(CLAIM), Busy)
