"""The contract of claims that arrive late: after their withdrawal, behind another claim's lock, or after ``wait``."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Busy,
    ClaimResult,
    Complete,
    Fail,
    Finished,
    Get,
    Leased,
    Refusal,
    Refused,
    Release,
    SaveStage,
    Wait,
    Withdraw,
)
from open_idempotency.conformance.owners import OWNER_VERBS
from open_idempotency.conformance.support import (
    LEASE,
    AsyncVerbs,
    ManualClock,
    claim_of,
    existing,
    lease_of,
    leased,
    stage_of,
)
from open_idempotency.decisions import WITHDRAWN_FOR

#: seconds within which a claim that is held up has to return once it may go on
PATIENCE = 30.0
#: seconds: the longest wait that a test asks for, the bound within which every test has to end, and the shortest wait
_LONG, _SOON, _PAUSE = 30.0, 15.0, 0.05
_MANY = 8


class Holding:
    """Holds up every claim of a record in the server; the ``with`` block of ``Held.hold`` yields it."""

    def now(self) -> float:
        """The time in seconds on the backend's clock."""
        raise NotImplementedError

    def wait_for_a_claim(self) -> None:
        """Return once a claim is held up, or at once if the backend does not show that."""


@dataclass
class Held:
    """A backend on its server's own clock, whose claims can be held up.

    ``hold(record_id)``: a context manager. Every claim of the record waits in the server until its block is left.
    """

    backend: Backend | AsyncBackend
    hold: Callable[[bytes], AbstractContextManager[Holding]]


Ends = Callable[[AsyncVerbs, ManualClock, bytes], Awaitable[None]]


async def _still_runs(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await lease_of(verbs, record_id)


async def _is_abandoned(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await lease_of(verbs, record_id)
    clock.advance(LEASE)


async def _has_failed(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await verbs.fail(Fail(await lease_of(verbs, record_id)))


async def _is_released(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    lease = await lease_of(verbs, record_id)
    await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
    await verbs.release(Release(lease))


async def _is_completed(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await verbs.complete(Complete(await lease_of(verbs, record_id), b"response"))


OTHER_ATTEMPTS: dict[str, Ends] = {
    "runs": _still_runs,
    "is-abandoned": _is_abandoned,
    "has-failed": _has_failed,
    "is-released": _is_released,
    "is-completed": _is_completed,
}


class LateClaimContract:
    """B-08c: withdrawals; and B-02: the token of a claim that was held up."""

    async def test_a_withdrawn_claim_is_released(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-08c: the record is gone; the next claim is attempt 1 with a larger token."""
        c = claim_of(record_id)
        first = await leased(verbs, c)
        await verbs.withdraw(Withdraw(c))
        assert await verbs.get(Get(record_id)) is None
        clock.advance(1)
        second = await lease_of(verbs, record_id)
        assert second.attempt == 1
        assert second.token > first.lease.token

    @pytest.mark.parametrize("arrived", ["never", "before", "twice"])
    async def test_a_claim_that_arrives_after_its_withdrawal_is_refused(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, arrived: str
    ) -> None:
        """B-08c: the late claim leaves the key free, whether or not a copy of it arrived before the withdrawal."""
        c = claim_of(record_id)
        for _ in range(["never", "before", "twice"].index(arrived)):
            await leased(verbs, c)
        await verbs.withdraw(Withdraw(c))
        for seconds in (0, LEASE, WITHDRAWN_FOR - LEASE - 1):
            clock.advance(seconds)
            await verbs.purge()
            assert await verbs.claim(c) == Refused(Refusal.WITHDRAWN, 0)
            assert await verbs.get(Get(record_id)) is None
        assert (await lease_of(verbs, record_id)).attempt == 1

    @pytest.mark.parametrize("other", OTHER_ATTEMPTS)
    async def test_a_withdrawn_claim_takes_over_no_other_attempt(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, other: str
    ) -> None:
        """B-08c: the late claim is refused and changes nothing, whatever state the other attempt is in."""
        c = claim_of(record_id)
        await verbs.withdraw(Withdraw(c))
        await OTHER_ATTEMPTS[other](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        assert not isinstance(await verbs.claim(c), Leased)
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("other", OTHER_ATTEMPTS)
    async def test_withdrawing_a_refused_claim_changes_no_other_attempt(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, other: str
    ) -> None:
        """B-08c, I3: a duplicate that withdraws releases nothing, and its late claim gets no lease either."""
        await OTHER_ATTEMPTS[other](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        c = claim_of(record_id)
        await verbs.withdraw(Withdraw(c))
        assert await existing(verbs, record_id) == before
        await verbs.delete(record_id)
        clock.advance(1)
        assert await verbs.claim(c) == Refused(Refusal.WITHDRAWN, 0)

    async def test_a_withdrawn_takeover_leaves_the_stages_and_the_count(
        self, verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-08c, L-06: the withdrawn attempt does not count, and the earlier stages stay."""
        first = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(first, stage_of("reserve")))
        await verbs.fail(Fail(first))
        c = claim_of(record_id)
        await leased(verbs, c)
        await verbs.withdraw(Withdraw(c))
        assert await verbs.claim(c) == Refused(Refusal.WITHDRAWN, 1)
        again = await leased(verbs, claim_of(record_id))
        assert (again.lease.attempt, again.stages) == (2, (stage_of("reserve"),))

    async def test_withdrawals_are_repeatable_and_independent(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08, B-08c: each withdrawn owner is remembered separately, for its own record only."""
        claims = [claim_of(record_id) for _ in range(4)]
        for c in [*claims, *claims]:
            await verbs.withdraw(Withdraw(c))
        assert [await verbs.claim(c) for c in claims] == [Refused(Refusal.WITHDRAWN, 0)] * 4
        await leased(verbs, claim_of(record_id + b"another record", owner=claims[0].owner))

    async def test_a_withdrawal_is_forgotten_after_an_hour(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08c: an hour later the same claim gets a lease again."""
        c = claim_of(record_id)
        await verbs.withdraw(Withdraw(c))
        clock.advance(WITHDRAWN_FOR)
        await leased(verbs, c)

    async def test_a_claim_and_its_withdrawal_at_once_leave_the_key_free(
        self, verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-08c: in either order, the key is free afterwards."""
        claims = [claim_of(record_id + bytes([number])) for number in range(16)]

        async def call(verb: str, command: object) -> None:
            if isinstance(verbs.backend, Backend):
                await anyio.to_thread.run_sync(getattr(verbs.backend, verb), command)
            else:
                await getattr(verbs.backend, verb)(command)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for c in claims:
                    group.start_soon(call, "claim", c)
                    group.start_soon(call, "withdraw", Withdraw(c))
        for c in claims:
            assert (await lease_of(verbs, c.record_id)).attempt == 1

    async def test_a_claim_that_was_held_up_has_a_later_token(self, held: Held, record_id: bytes) -> None:
        """B-02: the clock is read after the record is locked or inserted.

        Another owner may have claimed and released the record while this claim waited. That owner's token has to be
        smaller.
        """
        verbs = AsyncVerbs(held.backend)
        with anyio.fail_after(2 * PATIENCE):
            outcome, held_until = await _claimed_while_held(verbs, held, record_id)
            lease = outcome.lease if isinstance(outcome, Leased) else pytest.fail(f"{outcome}")
            record = await existing(verbs, record_id)
            await verbs.close()
        assert lease.token == record.token
        assert lease.token > held_until * 1_000_000 - 1
        assert record.lease_end >= held_until + LEASE - 0.001


async def _claimed_while_held(verbs: AsyncVerbs, held: Held, record_id: bytes) -> tuple[ClaimResult, float]:
    """The outcome of a claim that was held up, and the time at which it could go on."""
    outcomes: list[ClaimResult] = []
    until = 0.0

    async def claim() -> None:
        c = claim_of(record_id)
        if isinstance(verbs.backend, Backend):
            outcomes.append(await anyio.to_thread.run_sync(verbs.backend.claim, c))
        else:
            outcomes.append(await verbs.claim(c))

    async with anyio.create_task_group() as group:
        holding = held.hold(record_id)
        held_claims = await anyio.to_thread.run_sync(holding.__enter__)
        try:
            group.start_soon(claim)
            await anyio.to_thread.run_sync(held_claims.wait_for_a_claim)
            until = await anyio.to_thread.run_sync(held_claims.now)
        finally:
            await anyio.to_thread.run_sync(partial(holding.__exit__, None, None, None))
    return outcomes[0], until


async def _claim_when_free(verbs: AsyncVerbs, record_id: bytes) -> ClaimResult:
    """Claim, wait while another attempt runs, and claim again, as a waiting duplicate does."""
    claim = claim_of(record_id)
    while isinstance(outcome := await verbs.claim(claim), Busy):
        await verbs.wait(Wait(record_id, _LONG, _PAUSE))
    return outcome


class WaitingContract:
    """O-04: ``wait`` ends soon after the attempt does, whether or not the backend can notify."""

    @pytest.mark.parametrize("verb", ["complete", "fail", "release"])
    async def test_waiting_ends_soon_after_the_attempt_does(
        self, verbs: AsyncVerbs, record_id: bytes, verb: str
    ) -> None:
        """O-04: ``wait`` returns well before its timeout, and the next claim gets a lease or the response."""
        lease = await lease_of(verbs, record_id)
        outcomes: list[ClaimResult] = []

        async def duplicate() -> None:
            outcomes.append(await _claim_when_free(verbs, record_id))

        with anyio.fail_after(_SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(duplicate)
                await anyio.lowlevel.checkpoint()
                await OWNER_VERBS[verb](verbs, lease)
        expected = Finished if verb == "complete" else Leased
        assert [type(outcome) for outcome in outcomes] == [expected]

    async def test_waiting_ends_after_its_timeout(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04, I11: ``wait`` returns after its timeout, and not at once, since callers would spin."""
        await lease_of(verbs, record_id)
        started = time.monotonic()
        with anyio.fail_after(_SOON):
            await verbs.wait(Wait(record_id, 0.1, 0.1))
        assert time.monotonic() - started > 0.05

    async def test_waiting_for_an_absent_record_ends(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04: the record may be gone before ``wait`` is called."""
        with anyio.fail_after(_SOON):
            await verbs.wait(Wait(record_id, _PAUSE, _PAUSE))

    async def test_waiting_for_an_ended_attempt_returns_soon(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04: the notification was sent before ``wait`` was called, and there is no second one."""
        await verbs.release(Release(await lease_of(verbs, record_id)))
        with anyio.fail_after(_SOON):
            await verbs.wait(Wait(record_id, _LONG, _PAUSE))

    async def test_many_may_wait_for_one_record(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04: all waiting duplicates get the same response."""
        lease = await lease_of(verbs, record_id)
        outcomes: list[ClaimResult] = []

        async def duplicate() -> None:
            outcomes.append(await _claim_when_free(verbs, record_id))

        with anyio.fail_after(_SOON):
            async with anyio.create_task_group() as group:
                for _ in range(_MANY):
                    group.start_soon(duplicate)
                await anyio.lowlevel.checkpoint()
                await OWNER_VERBS["complete"](verbs, lease)
        assert outcomes == [Finished(b"late")] * _MANY
