"""The contract of claims that come late: after their withdrawal, or after a wait for somebody else's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import pytest

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    ClaimAnswer,
    Complete,
    Fail,
    Get,
    Leased,
    Refusal,
    Refused,
    Release,
    SaveStage,
    Withdraw,
)
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

#: seconds within which what is held up goes on
PATIENCE = 30.0


class Holding:
    """What holds a record's claims up in the store, until its block is left."""

    def now(self) -> float:
        """The time in seconds on the store's clock."""
        raise NotImplementedError

    def wait_for_a_claim(self) -> None:
        """Return once a claim is held up, or at once where the store does not show that."""


@dataclass
class Held:
    """A backend on its store's own clock; ``hold(record_id)`` has every claim of the record wait in the store."""

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


async def _is_given_back(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    lease = await lease_of(verbs, record_id)
    await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
    await verbs.release(Release(lease))


async def _is_completed(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await verbs.complete(Complete(await lease_of(verbs, record_id), b"response"))


ANOTHER: dict[str, Ends] = {
    "runs": _still_runs,
    "is-abandoned": _is_abandoned,
    "has-failed": _has_failed,
    "is-given-back": _is_given_back,
    "is-completed": _is_completed,
}


class LateClaimContract:
    """B-08c, and B-02 where claims wait."""

    async def test_a_withdrawn_claim_is_given_back(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08c: as if it had not been made; the next one is attempt 1 with a larger token."""
        c = claim_of(record_id)
        first = await leased(verbs, c)
        await verbs.withdraw(Withdraw(c))
        assert await verbs.get(Get(record_id)) is None
        clock.advance(1)
        second = await lease_of(verbs, record_id)
        assert second.attempt == 1
        assert second.token > first.lease.token

    @pytest.mark.parametrize("arrived", ["never", "before", "twice"])
    async def test_a_claim_that_comes_after_its_withdrawal_is_refused(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, arrived: str
    ) -> None:
        """B-08c: it leaves the key free, whether or not the network brought the claim once before."""
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

    @pytest.mark.parametrize("another", ANOTHER)
    async def test_it_is_refused_whatever_others_have_made_of_the_record(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, another: str
    ) -> None:
        """B-08c: it takes nothing over, and changes nothing."""
        c = claim_of(record_id)
        await verbs.withdraw(Withdraw(c))
        await ANOTHER[another](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        assert not isinstance(await verbs.claim(c), Leased)
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("another", ANOTHER)
    async def test_what_is_somebody_elses_is_not_withdrawn(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, another: str
    ) -> None:
        """B-08c, I3: a duplicate that was told to wait gives back nothing, and gets nothing later either."""
        await ANOTHER[another](verbs, clock, record_id)
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
        """B-08c, L-06: the attempt does not count."""
        first = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(first, stage_of("reserve")))
        await verbs.fail(Fail(first))
        c = claim_of(record_id)
        await leased(verbs, c)
        await verbs.withdraw(Withdraw(c))
        assert await verbs.claim(c) == Refused(Refusal.WITHDRAWN, 1)
        again = await leased(verbs, claim_of(record_id))
        assert (again.lease.attempt, again.stages) == (2, (stage_of("reserve"),))

    async def test_withdrawing_again_and_withdrawing_others_changes_nothing_of_it(
        self, verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-08, B-08c: each owner is known by itself."""
        claims = [claim_of(record_id) for _ in range(4)]
        for c in [*claims, *claims]:
            await verbs.withdraw(Withdraw(c))
        assert [await verbs.claim(c) for c in claims] == [Refused(Refusal.WITHDRAWN, 0)] * 4
        other = claim_of(record_id + b"another record", owner=claims[0].owner)
        await leased(verbs, other)

    async def test_a_withdrawal_is_forgotten_after_an_hour(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08c: nothing is kept for ever."""
        c = claim_of(record_id)
        await verbs.withdraw(Withdraw(c))
        clock.advance(WITHDRAWN_FOR)
        await leased(verbs, c)

    async def test_a_claim_and_its_withdrawal_at_once_leave_the_key_free(
        self, verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-08c: whichever comes first, the other one sees it."""
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

    async def test_a_claim_that_was_held_up_has_a_token_of_later(self, held: Held, record_id: bytes) -> None:
        """B-02: the clock is read once the record is locked or inserted, so whoever had it meanwhile has a smaller one.

        Anybody may have claimed the record and given it back while this claim was held up, with a token of that time.
        """
        verbs = AsyncVerbs(held.backend)
        with anyio.fail_after(2 * PATIENCE):
            answer, held_until = await _claimed_while_held(verbs, held, record_id)
            lease = answer.lease if isinstance(answer, Leased) else pytest.fail(f"{answer}")
            record = await existing(verbs, record_id)
            await verbs.close()
        assert lease.token == record.token
        assert lease.token > held_until * 1_000_000 - 1
        assert record.lease_end >= held_until + LEASE - 0.001


async def _claimed_while_held(verbs: AsyncVerbs, held: Held, record_id: bytes) -> tuple[ClaimAnswer, float]:
    """The answer to a claim that was held up, and the time until which it was."""
    answers: list[ClaimAnswer] = []
    until = 0.0

    async def claim() -> None:
        c = claim_of(record_id)
        if isinstance(verbs.backend, Backend):
            answers.append(await anyio.to_thread.run_sync(verbs.backend.claim, c))
        else:
            answers.append(await verbs.claim(c))

    async with anyio.create_task_group() as group:
        holding = held.hold(record_id)
        found = await anyio.to_thread.run_sync(holding.__enter__)
        try:
            group.start_soon(claim)
            await anyio.to_thread.run_sync(found.wait_for_a_claim)
            until = await anyio.to_thread.run_sync(found.now)
        finally:
            await anyio.to_thread.run_sync(partial(holding.__exit__, None, None, None))
    return answers[0], until
