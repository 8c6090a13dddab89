"""A request that is cancelled before it runs: its key counts towards no quota, unless there is a record of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.commands import Get, Reserve, Unreserve
from open_idempotency._core.models import OverQuota, Record, Reserved, Status
from open_idempotency.backend import Claim, ClaimResult
from open_idempotency.backends.memory import AsyncMemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from tests.unit.builders import RECORD, body_of, engine_of, request_of
from tests.unit.core.admissions import KEY, Admission

SOON = 10.0
FOUND = Record(RECORD, b"", Status.COMPLETED, b"", 1, 1, 0.0, 0.0, 1.0, 1.0)
CANCELLED = asyncio.CancelledError()


def cancelled(*claims: Any, reserves: Any = (), gets: Any = (), unreserves: Any = (None,)) -> Admission:
    """An admission in which one of these calls raises the cancellation."""
    admission = Admission(*claims, max_live_keys=5, releases=(None,))
    admission.script.results.update({Reserve: list(reserves), Get: list(gets), Unreserve: list(unreserves)})
    with pytest.raises(asyncio.CancelledError) as caught:
        admission.run()
    assert caught.value is CANCELLED
    return admission


def test_a_cancelled_reservation_is_taken_back() -> None:
    """L-04: it may have been made, and no record will follow."""
    script = cancelled(reserves=[CANCELLED], gets=[None]).script
    assert script.names()[2:] == ["Reserve", "Get", "Unreserve"]
    asked: Any = script.asked
    assert asked[4] == Unreserve(asked[2].scope_id, asked[2].record_id)


def test_a_cancelled_claim_gives_back_the_reservation_before_it() -> None:
    """B-08: the claim may have been made; it is withdrawn first, and leaves no record."""
    admission = cancelled(CANCELLED, reserves=[Reserved()], gets=[None])
    assert admission.script.names()[2:] == ["Reserve", "Claim", "Withdraw", "Get", "Unreserve"]


def test_a_key_that_has_a_record_goes_on_counting() -> None:
    """The record is another attempt's, or has stages that stay when the claim is released."""
    assert "Unreserve" not in cancelled(CANCELLED, reserves=[Reserved()], gets=[FOUND]).script.names()


def test_a_look_at_the_record_that_is_cancelled_is_looked_at_again() -> None:
    """Over the quota nothing was reserved; freeing nothing is harmless."""
    script = cancelled(reserves=[OverQuota(1.0)], gets=[CANCELLED, None]).script
    assert script.names()[2:] == ["Reserve", "Get", "Get", "Unreserve"]


@pytest.mark.parametrize(
    "down", [{"gets": [BackendUnavailable("")]}, {"gets": [None], "unreserves": [BackendUnavailable("")]}]
)
def test_an_effect_that_cannot_be_rolled_back_is_reported(down: Any) -> None:
    """L-04: the cancellation continues; the key counts until its reservation expires."""
    admission = cancelled(reserves=[CANCELLED], **down)
    assert [(type(event), event.verb) for event in admission.listener.seen] == [(events.BackendFailed, "unreserve")]


def test_an_engine_that_is_thrown_away_asks_nothing_more() -> None:
    """A loop that is torn down closes its coroutines; commands cannot be carried out there."""
    admission = Admission(max_live_keys=5)
    steps = admit(admission.intake, admission.policy)
    command: Any = next(steps)
    while not isinstance(command, Reserve):
        command = steps.send(command.function())
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


class Held(AsyncMemoryBackend):
    """A backend that carries out a claim, and returns its result only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed, self.may_return = asyncio.Event(), asyncio.Event()

    async def claim(self, c: Claim, /) -> ClaimResult:
        """Make the claim, and wait while the caller is cancelled."""
        result = await super().claim(c)
        self.claimed.set()
        await self.may_return.wait()
        return result


def test_a_caller_whose_requests_are_cancelled_has_its_keys_left() -> None:
    """L-04: with a quota of one, a client that left during its claim may use another key."""

    async def scenario() -> list[bool]:
        backend = Held()
        engine = engine_of(backend, max_live_keys=1)

        async def request(key: bytes) -> Any:
            intake = Intake(request_of(), [(KEY[0], key)], key, lambda: _nobody(), lambda: _body())
            return await engine.aio.run(admit(intake, engine.policy))

        task = asyncio.create_task(request(b"first-of-the-keys"))
        await asyncio.wait_for(backend.claimed.wait(), SOON)
        backend.may_return.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [hasattr(await request(key), "lease") for key in (b"second-of-the-keys", b"third-of-the-keys")]

    assert asyncio.run(asyncio.wait_for(scenario(), SOON)) == [True, False]


async def _nobody() -> None:
    return None


async def _body() -> Any:
    return body_of(b"{}")
