"""The contract of the owner's verbs: what a lease allows, and that a stale one allows nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from open_idempotency.backend import (
    Complete,
    Fail,
    Finished,
    Get,
    Lease,
    Release,
    Renew,
    Renewal,
    SaveStage,
    Status,
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
from open_idempotency.exceptions import LeaseLost

Use = Callable[[AsyncVerbs, Lease], Awaitable[object]]

OWNER_VERBS: dict[str, Use] = {
    "save_stage": lambda verbs, lease: verbs.save_stage(SaveStage(lease, stage_of("late"))),
    "complete": lambda verbs, lease: verbs.complete(Complete(lease, b"late")),
    "fail": lambda verbs, lease: verbs.fail(Fail(lease)),
    "release": lambda verbs, lease: verbs.release(Release(lease)),
}


async def _taken_over(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> tuple[Lease, Lease]:
    """A lease that was lost, and the one that followed it."""
    stale = await lease_of(verbs, record_id)
    clock.advance(LEASE)
    return stale, await lease_of(verbs, record_id)


class OwnerContract:
    """B-03, B-04, B-08 and B-08a."""

    @pytest.mark.parametrize("verb", OWNER_VERBS)
    @pytest.mark.parametrize("state", ["running", "completed", "failed", "final"])
    async def test_a_stale_owner_changes_nothing(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, verb: str, state: str
    ) -> None:
        """B-03, I3: whatever the new owner has made of the record."""
        stale, owner = await _taken_over(verbs, clock, record_id)
        if state == "completed":
            await verbs.complete(Complete(owner, b"response"))
        elif state != "running":
            await verbs.fail(Fail(owner, final=state == "final"))
        before = await existing(verbs, record_id)
        clock.advance(1)
        with pytest.raises(LeaseLost):
            await OWNER_VERBS[verb](verbs, stale)
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("verb", OWNER_VERBS)
    @pytest.mark.parametrize("part", ["owner", "token"])
    async def test_owner_and_token_are_both_compared(
        self, verbs: AsyncVerbs, record_id: bytes, verb: str, part: str
    ) -> None:
        """B-03: one of them alone is not the lease."""
        lease = await lease_of(verbs, record_id)
        forged = replace(lease, owner=b"x" * 16) if part == "owner" else replace(lease, token=lease.token - 1)
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await OWNER_VERBS[verb](verbs, forged)
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("verb", OWNER_VERBS)
    async def test_an_owner_whose_lease_ended_may_still_write(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, verb: str
    ) -> None:
        """B-03: only a takeover makes an owner stale."""
        lease = await lease_of(verbs, record_id)
        clock.advance(LEASE + 1)
        await OWNER_VERBS[verb](verbs, lease)

    async def test_a_completion_is_kept(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-01: the record holds the response and is final."""
        lease = await lease_of(verbs, record_id)
        clock.advance(1)
        assert not (await verbs.complete(Complete(lease, b"response"))).recreated
        record = await existing(verbs, record_id)
        assert (record.status, record.response) == (Status.COMPLETED, b"response")

    async def test_a_completion_sent_again_keeps_the_first(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08: it succeeds and changes nothing, the expiry included."""
        lease = await lease_of(verbs, record_id)
        await verbs.complete(Complete(lease, b"first"))
        before = await existing(verbs, record_id)
        clock.advance(1)
        assert not (await verbs.complete(Complete(lease, b"second"))).recreated
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("final", [False, True])
    async def test_a_failure_sent_again_keeps_the_first(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, final: bool
    ) -> None:
        """B-08: it succeeds and changes nothing."""
        lease = await lease_of(verbs, record_id)
        await verbs.fail(Fail(lease, final=final, response=b"first"))
        before = await existing(verbs, record_id)
        assert (before.status, before.final, before.response) == (Status.FAILED, final, b"first")
        clock.advance(1)
        await verbs.fail(Fail(lease, final=not final, response=b"second"))
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("first", ["complete", "fail"])
    @pytest.mark.parametrize("second", ["complete", "fail", "release"])
    async def test_an_attempt_ends_once(self, verbs: AsyncVerbs, record_id: bytes, first: str, second: str) -> None:
        """B-03: a completed attempt does not fail any more, nor the reverse."""
        lease = await lease_of(verbs, record_id)
        await OWNER_VERBS[first](verbs, lease)
        before = await existing(verbs, record_id)
        # A failed attempt has given its claim back already.
        if second not in (first, "release") or (first, second) == ("complete", "release"):
            with pytest.raises(LeaseLost):
                await OWNER_VERBS[second](verbs, lease)
        else:
            await OWNER_VERBS[second](verbs, lease)
        assert await existing(verbs, record_id) == before

    async def test_a_completion_recreates_a_record_that_vanished(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08a: evicted or flushed under its owner, the outcome is kept all the same, and it says so."""
        lease = await lease_of(verbs, record_id)
        await verbs.delete(record_id)
        assert (await verbs.complete(Complete(lease, b"response"))).recreated
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        record = await existing(verbs, record_id)
        assert (record.token, record.attempt, record.ttl) == (lease.token, lease.attempt, lease.ttl)

    async def test_a_stage_recreates_a_record_that_vanished(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08a: the record runs again, with this stage alone, and its owner goes on."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("lost")))
        await verbs.delete(record_id)
        assert (await verbs.save_stage(SaveStage(lease, stage_of("kept")))).recreated
        record = await existing(verbs, record_id)
        assert (record.status, record.token, record.stages) == (
            Status.IN_PROGRESS,
            lease.token,
            (stage_of("kept"),),
        )
        assert not (await verbs.save_stage(SaveStage(lease, stage_of("next")))).recreated

    async def test_an_expired_record_is_recreated_without_its_stages(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05, B-08a: expired is absent, whether or not it was deleted yet."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("lost")))
        clock.advance(lease.duration + lease.ttl)
        assert (await verbs.complete(Complete(lease, b"response"))).recreated
        assert (await existing(verbs, record_id)).stages == ()

    async def test_an_expired_record_is_recreated_without_its_earlier_values(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05, B-08a: by a stage as well, and the old values are forgotten one and all."""
        lease = await lease_of(verbs, record_id)
        for name in ("one", "two"):
            await verbs.save_stage(SaveStage(lease, stage_of(name, frame=b"old")))
        clock.advance(lease.duration + lease.ttl)
        assert (await verbs.save_stage(SaveStage(lease, stage_of("two", frame=b"new")))).recreated
        assert (await verbs.save_stage(SaveStage(lease, stage_of("one", frame=b"new")))).frame == b"new"
        names = [(stage.name, stage.frame) for stage in (await existing(verbs, record_id)).stages]
        assert names == [("two", b"new"), ("one", b"new")]

    async def test_a_final_failure_is_not_given_back(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-03: it admits no further attempt, so a release would be a lie."""
        lease = await lease_of(verbs, record_id)
        await verbs.fail(Fail(lease, final=True))
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await verbs.release(Release(lease))
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("verb", OWNER_VERBS)
    async def test_somebody_elses_record_is_not_recreated_over(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, verb: str
    ) -> None:
        """B-08a: unless somebody else has claimed it."""
        stale = await lease_of(verbs, record_id)
        await verbs.delete(record_id)
        clock.advance(1)
        await lease_of(verbs, record_id)
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await OWNER_VERBS[verb](verbs, stale)
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("verb", ["fail", "release"])
    async def test_a_vanished_record_needs_no_ending(self, verbs: AsyncVerbs, record_id: bytes, verb: str) -> None:
        """B-08a: there is nothing to keep, so nothing comes back."""
        lease = await lease_of(verbs, record_id)
        await verbs.delete(record_id)
        await OWNER_VERBS[verb](verbs, lease)
        assert await verbs.get(Get(record_id)) is None

    async def test_a_release_forgets_a_first_attempt_without_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """L-06: nothing is left, and sent again it succeeds."""
        lease = await lease_of(verbs, record_id)
        await verbs.release(Release(lease))
        await verbs.release(Release(lease))
        assert await verbs.get(Get(record_id)) is None

    async def test_a_release_keeps_stages_and_does_not_count(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """L-06: the next claim is attempt 1 again, and finds the stages."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        await verbs.release(Release(lease))
        before = await existing(verbs, record_id)
        await verbs.release(Release(lease))
        assert await existing(verbs, record_id) == before
        again = await leased(verbs, claim_of(record_id, max_attempts=1, resume_failed=False))
        assert (again.lease.attempt, again.stages) == (1, (stage_of("reserve"),))
        assert again.lease.token > lease.token

    async def test_a_release_keeps_earlier_attempts(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """L-06: attempt 2 given back, the next one is attempt 2."""
        await verbs.fail(Fail(await lease_of(verbs, record_id)))
        await verbs.release(Release(await lease_of(verbs, record_id)))
        assert (await lease_of(verbs, record_id)).attempt == 2

    async def test_renewing_extends_the_lease_from_now(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-04, B-05: and the expiry with it, so a live owner's record does not expire."""
        lease = await lease_of(verbs, record_id)
        clock.advance(20)
        assert list(await verbs.renew(Renew([lease]))) == [Renewal.OWNED]
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + LEASE, abs=0.001)
        assert record.expires_at == pytest.approx(clock() + LEASE + lease.ttl, abs=0.001)

    async def test_many_leases_are_renewed_in_order(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-04: owned, lost, vanished, completed, failed and lapsed ones in one call."""
        lapsed = await lease_of(verbs, record_id + b"lapsed")
        stale, owned = await _taken_over(verbs, clock, record_id)
        vanished = await lease_of(verbs, record_id + b"vanished")
        await verbs.delete(record_id + b"vanished")
        completed = await lease_of(verbs, record_id + b"completed")
        await verbs.complete(Complete(completed, b""))
        failed = await lease_of(verbs, record_id + b"failed")
        await verbs.fail(Fail(failed))
        answers = await verbs.renew(Renew([owned, stale, vanished, completed, failed, lapsed]))
        assert list(answers) == [
            Renewal.OWNED,
            Renewal.LOST,
            Renewal.VANISHED,
            Renewal.OWNED,
            Renewal.LOST,
            Renewal.OWNED,
        ]

    async def test_a_stale_lease_is_not_renewed(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-03: neither is a record without an owner."""
        stale, owner = await _taken_over(verbs, clock, record_id)
        before = await existing(verbs, record_id)
        clock.advance(1)
        await verbs.renew(Renew([stale]))
        assert await existing(verbs, record_id) == before
        await verbs.complete(Complete(owner, b""))
        before = await existing(verbs, record_id)
        clock.advance(1)
        await verbs.renew(Renew([owner]))
        assert await existing(verbs, record_id) == before

    async def test_more_leases_than_fit_one_batch_are_renewed(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-04: a heartbeat of a busy process."""
        lease = await lease_of(verbs, record_id)
        others = [replace(lease, record_id=b"%d %b" % (number, record_id)) for number in range(1200)]
        answers = await verbs.renew(Renew([*others, lease]))
        assert list(answers) == [Renewal.VANISHED] * 1200 + [Renewal.OWNED]

    async def test_renewing_nothing_is_nothing(self, verbs: AsyncVerbs) -> None:
        """B-04: an idle heartbeat."""
        assert list(await verbs.renew(Renew([]))) == []
