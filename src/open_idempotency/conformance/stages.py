"""The contract of ``save_stage``: an ordered list that only grows."""

from __future__ import annotations

import pytest

from open_idempotency.backend import Complete, Fail, SaveStage, Stage
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

# Pairs that a careless joining of name and key would confuse.
LOOKALIKES = [("a", ""), ("a", "b"), ("ab", ""), ("", "ab"), ("a:b", ""), ("a", ":b"), ("", "")]


class StageContract:
    """B-06, B-07, B-08, S-01 and S-03."""

    async def test_a_new_stage_is_saved(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: it answers with the value that is on record."""
        lease = await lease_of(verbs, record_id)
        answer = await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        assert (answer.frame, answer.recreated) == (stage_of("reserve").frame, False)
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)

    async def test_the_first_value_wins(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-06, B-08: sent again it succeeds with the first value, and changes nothing."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve", frame=b"first")))
        before = await existing(verbs, record_id)
        clock.advance(1)
        answer = await verbs.save_stage(SaveStage(lease, stage_of("reserve", frame=b"second")))
        assert answer.frame == b"first"
        assert await existing(verbs, record_id) == before

    async def test_a_later_attempt_cannot_change_a_value(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: append-only across attempts."""
        first = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(first, stage_of("reserve", frame=b"first")))
        await verbs.fail(Fail(first))
        second = await lease_of(verbs, record_id)
        answer = await verbs.save_stage(SaveStage(second, stage_of("reserve", frame=b"second")))
        await verbs.save_stage(SaveStage(second, stage_of("charge")))
        assert answer.frame == b"first"
        names = [stage.name for stage in (await existing(verbs, record_id)).stages]
        assert names == ["reserve", "charge"]

    async def test_stages_are_told_apart_by_name_and_key(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06, S-01: by both, exactly."""
        lease = await lease_of(verbs, record_id)
        stages = [Stage(name, key, b"%d" % number) for number, (name, key) in enumerate(LOOKALIKES)]
        for stage in stages:
            await verbs.save_stage(SaveStage(lease, stage))
        assert list((await existing(verbs, record_id)).stages) == stages

    @pytest.mark.parametrize("name", ["käse", "支払い", "🧾", "a\x00b", "\ud800", "%s'\"`", "x" * 1000])
    async def test_names_are_any_text(self, verbs: AsyncVerbs, record_id: bytes, name: str) -> None:
        """S-01: also in the key."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, Stage(name, name, b"value")))
        again = await verbs.save_stage(SaveStage(lease, Stage(name, name, b"other")))
        assert again.frame == b"value"
        assert (await existing(verbs, record_id)).stages == (Stage(name, name, b"value"),)

    @pytest.mark.parametrize("frame", [b"", b"\x00\xff", b"\x80" * 100_000], ids=["empty", "binary", "large"])
    async def test_values_are_any_bytes(self, verbs: AsyncVerbs, record_id: bytes, frame: bytes) -> None:
        """B-07: opaque, and the same bytes for the next attempt."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve", frame=frame)))
        await verbs.fail(Fail(lease))
        assert (await leased(verbs, claim_of(record_id))).stages[0].frame == frame

    async def test_many_stages_keep_their_order(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: by when they were saved, not by name."""
        lease = await lease_of(verbs, record_id)
        stages = [stage_of("item", str(number * 7 % 120)) for number in range(120)]
        for stage in stages:
            await verbs.save_stage(SaveStage(lease, stage))
        await verbs.fail(Fail(lease))
        assert list((await leased(verbs, claim_of(record_id))).stages) == stages

    async def test_after_the_completion_it_is_too_late(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """S-03: AlreadyCompleted for the owner, also for a stage that is there; nothing changes."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        await verbs.complete(Complete(lease, b"response"))
        before = await existing(verbs, record_id)
        for name in ("reserve", "charge"):
            with pytest.raises(AlreadyCompleted):
                await verbs.save_stage(SaveStage(lease, stage_of(name)))
        assert await existing(verbs, record_id) == before

    async def test_after_the_failure_it_is_too_late(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-03: an attempt that ended owns nothing."""
        lease = await lease_of(verbs, record_id)
        await verbs.fail(Fail(lease))
        before = await existing(verbs, record_id)
        with pytest.raises(LeaseLost):
            await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        assert await existing(verbs, record_id) == before

    async def test_a_completion_keeps_the_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-06: operators can still see them."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        await verbs.complete(Complete(lease, b"response"))
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)

    async def test_a_stage_extends_lease_and_expiry(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: it is a sign of life."""
        lease = await lease_of(verbs, record_id)
        clock.advance(20)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + LEASE, abs=0.001)
        assert record.expires_at == pytest.approx(clock() + LEASE + TTL, abs=0.001)
