"""The contract of an owner's verbs: what a lease permits, what a stale lease does not, and how stages are saved."""

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
    Stage,
    Status,
)
from open_idempotency.conformance.support import (
    LEASE,
    TTL,
    AsyncVerbs,
    ManualClock,
    claim_of,
    existing,
    lease_of,
    leased,
    stage_of,
)
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost

Use = Callable[[AsyncVerbs, Lease], Awaitable[object]]

OWNER_VERBS: dict[str, Use] = {
    "save_stage": lambda verbs, lease: verbs.save_stage(SaveStage(lease, stage_of("late"))),
    "complete": lambda verbs, lease: verbs.complete(Complete(lease, b"late")),
    "fail": lambda verbs, lease: verbs.fail(Fail(lease)),
    "release": lambda verbs, lease: verbs.release(Release(lease)),
}

# Pairs that collide if name and key are joined without a length prefix.
LOOKALIKES = [("a", ""), ("a", "b"), ("ab", ""), ("", "ab"), ("a:b", ""), ("a", ":b"), ("", "")]


async def _taken_over(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> tuple[Lease, Lease]:
    """The lease of a stale owner, and the lease of the owner that took over."""
    stale = await lease_of(verbs, record_id)
    clock.advance(LEASE)
    return stale, await lease_of(verbs, record_id)


class OwnerContract:
    """B-03, B-04, B-08 and B-08a: what an owner may do with its lease."""

    @pytest.mark.parametrize("verb", OWNER_VERBS)
    @pytest.mark.parametrize("state", ["running", "completed", "failed", "final"])
    async def test_a_stale_owner_changes_nothing(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, verb: str, state: str
    ) -> None:
        """B-03, I3: every write of a stale owner is refused, whatever state the record is in by now."""
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
        """B-03: neither the owner alone nor the token alone is enough."""
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
        """B-03: only a takeover makes an owner stale; the end of its lease does not."""
        lease = await lease_of(verbs, record_id)
        clock.advance(LEASE + 1)
        await OWNER_VERBS[verb](verbs, lease)

    async def test_a_completion_is_stored(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-01: the record is completed and holds the response."""
        lease = await lease_of(verbs, record_id)
        clock.advance(1)
        assert not (await verbs.complete(Complete(lease, b"response"))).recreated
        record = await existing(verbs, record_id)
        assert (record.status, record.response) == (Status.COMPLETED, b"response")

    async def test_a_completion_sent_again_keeps_the_first(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08: repeating ``complete`` succeeds and changes nothing, not even the expiry."""
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
        """B-08: repeating ``fail`` succeeds and changes nothing."""
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
        """B-03: a completed attempt cannot fail, and a failed attempt cannot complete."""
        lease = await lease_of(verbs, record_id)
        await OWNER_VERBS[first](verbs, lease)
        before = await existing(verbs, record_id)
        # A failed attempt no longer holds a claim, so releasing it has no effect.
        if second not in (first, "release") or (first, second) == ("complete", "release"):
            with pytest.raises(LeaseLost):
                await OWNER_VERBS[second](verbs, lease)
        else:
            await OWNER_VERBS[second](verbs, lease)
        assert await existing(verbs, record_id) == before

    async def test_a_completion_recreates_a_record_that_vanished(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08a: if the record was evicted or flushed meanwhile, ``complete`` stores the response and reports that."""
        lease = await lease_of(verbs, record_id)
        await verbs.delete(record_id)
        assert (await verbs.complete(Complete(lease, b"response"))).recreated
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        record = await existing(verbs, record_id)
        assert (record.token, record.attempt, record.ttl) == (lease.token, lease.attempt, lease.ttl)

    async def test_a_stage_recreates_a_record_that_vanished(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08a: the recreated record is in progress and has this stage only; its owner may go on."""
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
        """B-05, B-08a: an expired record counts as absent even before it is deleted."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("lost")))
        clock.advance(lease.duration + lease.ttl)
        assert (await verbs.complete(Complete(lease, b"response"))).recreated
        assert (await existing(verbs, record_id)).stages == ()

    async def test_an_expired_record_is_recreated_without_its_earlier_values(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05, B-08a: a stage recreates it as well, and no old value comes back."""
        lease = await lease_of(verbs, record_id)
        for name in ("one", "two"):
            await verbs.save_stage(SaveStage(lease, stage_of(name, frame=b"old")))
        clock.advance(lease.duration + lease.ttl)
        assert (await verbs.save_stage(SaveStage(lease, stage_of("two", frame=b"new")))).recreated
        assert (await verbs.save_stage(SaveStage(lease, stage_of("one", frame=b"new")))).frame == b"new"
        names = [(stage.name, stage.frame) for stage in (await existing(verbs, record_id)).stages]
        assert names == [("two", b"new"), ("one", b"new")]

    async def test_a_final_failure_is_not_released(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-03: a final failure admits no further attempt, so ``release`` raises ``LeaseLost``."""
        lease = await lease_of(verbs, record_id)
        await verbs.fail(Fail(lease, final=True))
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await verbs.release(Release(lease))
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("verb", OWNER_VERBS)
    async def test_a_record_of_a_new_owner_is_not_overwritten(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, verb: str
    ) -> None:
        """B-08a: a record that vanished is not recreated if another owner has claimed it since."""
        stale = await lease_of(verbs, record_id)
        await verbs.delete(record_id)
        clock.advance(1)
        await lease_of(verbs, record_id)
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await OWNER_VERBS[verb](verbs, stale)
        assert await existing(verbs, record_id) == before

    @pytest.mark.parametrize("verb", ["fail", "release"])
    async def test_failing_or_releasing_a_vanished_record_has_no_effect(
        self, verbs: AsyncVerbs, record_id: bytes, verb: str
    ) -> None:
        """B-08a: ``fail`` and ``release`` store nothing, so they do not recreate the record."""
        lease = await lease_of(verbs, record_id)
        await verbs.delete(record_id)
        await OWNER_VERBS[verb](verbs, lease)
        assert await verbs.get(Get(record_id)) is None

    async def test_a_release_deletes_a_first_attempt_without_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """L-06: nothing is left of the record, and repeating ``release`` succeeds."""
        lease = await lease_of(verbs, record_id)
        await verbs.release(Release(lease))
        await verbs.release(Release(lease))
        assert await verbs.get(Get(record_id)) is None

    async def test_a_release_keeps_stages_and_does_not_count(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """L-06: the next claim is attempt 1 again and gets the stages."""
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
        """L-06: after attempt 2 is released, the next claim is attempt 2 again."""
        await verbs.fail(Fail(await lease_of(verbs, record_id)))
        await verbs.release(Release(await lease_of(verbs, record_id)))
        assert (await lease_of(verbs, record_id)).attempt == 2

    async def test_renewing_extends_the_lease_from_now(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-04, B-05: renewing also moves the expiry, so the record of a live owner does not expire."""
        lease = await lease_of(verbs, record_id)
        clock.advance(20)
        assert list(await verbs.renew(Renew([lease]))) == [Renewal.OWNED]
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + LEASE, abs=0.001)
        assert record.expires_at == pytest.approx(clock() + LEASE + lease.ttl, abs=0.001)

    async def test_many_leases_are_renewed_in_order(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-04: one call takes owned, lost, vanished, completed, failed and lapsed leases and reports each."""
        lapsed = await lease_of(verbs, record_id + b"lapsed")
        stale, owned = await _taken_over(verbs, clock, record_id)
        vanished = await lease_of(verbs, record_id + b"vanished")
        await verbs.delete(record_id + b"vanished")
        completed = await lease_of(verbs, record_id + b"completed")
        await verbs.complete(Complete(completed, b""))
        failed = await lease_of(verbs, record_id + b"failed")
        await verbs.fail(Fail(failed))
        renewals = await verbs.renew(Renew([owned, stale, vanished, completed, failed, lapsed]))
        assert list(renewals) == [
            Renewal.OWNED,
            Renewal.LOST,
            Renewal.VANISHED,
            Renewal.OWNED,
            Renewal.LOST,
            Renewal.OWNED,
        ]

    async def test_a_stale_lease_is_not_renewed(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-03: renewing changes neither a record of a new owner nor a completed one."""
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
        """B-04: a heartbeat may renew more leases than one batch of the backend holds."""
        lease = await lease_of(verbs, record_id)
        others = [replace(lease, record_id=b"%d %b" % (number, record_id)) for number in range(1200)]
        renewals = await verbs.renew(Renew([*others, lease]))
        assert list(renewals) == [Renewal.VANISHED] * 1200 + [Renewal.OWNED]

    async def test_renewing_no_leases_returns_nothing(self, verbs: AsyncVerbs) -> None:
        """B-04: a heartbeat without leases is valid."""
        assert list(await verbs.renew(Renew([]))) == []


class StageContract:
    """B-06, B-07, B-08, S-01 and S-03: the stages of a record are an ordered list to which values are only added."""

    async def test_a_new_stage_is_saved(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: ``save_stage`` returns the value that is on record."""
        lease = await lease_of(verbs, record_id)
        saved = await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        assert (saved.frame, saved.recreated) == (stage_of("reserve").frame, False)
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)

    async def test_the_first_value_wins(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-06, B-08: saving a stage again succeeds, returns the first value and changes nothing."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve", frame=b"first")))
        before = await existing(verbs, record_id)
        clock.advance(1)
        saved = await verbs.save_stage(SaveStage(lease, stage_of("reserve", frame=b"second")))
        assert saved.frame == b"first"
        assert await existing(verbs, record_id) == before

    async def test_a_later_attempt_cannot_change_a_value(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: a later attempt gets the first value, and its new stages come after it."""
        first = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(first, stage_of("reserve", frame=b"first")))
        await verbs.fail(Fail(first))
        second = await lease_of(verbs, record_id)
        saved = await verbs.save_stage(SaveStage(second, stage_of("reserve", frame=b"second")))
        await verbs.save_stage(SaveStage(second, stage_of("charge")))
        assert saved.frame == b"first"
        names = [stage.name for stage in (await existing(verbs, record_id)).stages]
        assert names == ["reserve", "charge"]

    async def test_a_stage_is_identified_by_name_and_key(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06, S-01: both parts are compared exactly, so no two pairs collide."""
        lease = await lease_of(verbs, record_id)
        stages = [Stage(name, key, b"%d" % number) for number, (name, key) in enumerate(LOOKALIKES)]
        for stage in stages:
            await verbs.save_stage(SaveStage(lease, stage))
        assert list((await existing(verbs, record_id)).stages) == stages

    @pytest.mark.parametrize("name", ["käse", "支払い", "🧾", "a\x00b", "\ud800", "%s'\"`", "x" * 1000])
    async def test_names_are_any_text(self, verbs: AsyncVerbs, record_id: bytes, name: str) -> None:
        """S-01: names and keys may hold any character, unpaired surrogates included."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, Stage(name, name, b"value")))
        again = await verbs.save_stage(SaveStage(lease, Stage(name, name, b"other")))
        assert again.frame == b"value"
        assert (await existing(verbs, record_id)).stages == (Stage(name, name, b"value"),)

    @pytest.mark.parametrize("frame", [b"", b"\x00\xff", b"\x80" * 100_000], ids=["empty", "binary", "large"])
    async def test_values_are_any_bytes(self, verbs: AsyncVerbs, record_id: bytes, frame: bytes) -> None:
        """B-07: a value is opaque, and the next attempt gets the same bytes."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve", frame=frame)))
        await verbs.fail(Fail(lease))
        assert (await leased(verbs, claim_of(record_id))).stages[0].frame == frame

    async def test_many_stages_keep_their_order(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: stages are ordered by when they were saved, not by name."""
        lease = await lease_of(verbs, record_id)
        stages = [stage_of("item", str(number * 7 % 120)) for number in range(120)]
        for stage in stages:
            await verbs.save_stage(SaveStage(lease, stage))
        await verbs.fail(Fail(lease))
        assert list((await leased(verbs, claim_of(record_id))).stages) == stages

    async def test_a_completed_attempt_saves_no_stage(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """S-03: the owner gets ``AlreadyCompleted``, also for a stage that is on record, and nothing changes."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        await verbs.complete(Complete(lease, b"response"))
        before = await existing(verbs, record_id)
        for name in ("reserve", "charge"):
            with pytest.raises(AlreadyCompleted):
                await verbs.save_stage(SaveStage(lease, stage_of(name)))
        assert await existing(verbs, record_id) == before

    async def test_a_failed_attempt_saves_no_stage(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-03: an attempt that has failed no longer owns the record."""
        lease = await lease_of(verbs, record_id)
        await verbs.fail(Fail(lease))
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        assert await existing(verbs, record_id) == before

    async def test_a_completion_keeps_the_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: operators can read the stages of a completed record."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        await verbs.complete(Complete(lease, b"response"))
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)

    async def test_a_stage_extends_lease_and_expiry(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: saving a stage shows that the owner is alive, so it renews the lease."""
        lease = await lease_of(verbs, record_id)
        clock.advance(20)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + LEASE, abs=0.001)
        assert record.expires_at == pytest.approx(clock() + LEASE + TTL, abs=0.001)
