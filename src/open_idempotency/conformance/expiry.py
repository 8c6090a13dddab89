"""The contract of time: what a lease is, what a TTL is, and that expired is absent."""

from __future__ import annotations

import pytest

from open_idempotency.backend import Busy, Complete, Fail, Finished, Get, Leased, Release, SaveStage
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


class ExpiryContract:
    """B-05: lease and TTL are separate, and reading extends nothing."""

    async def test_the_ttl_runs_from_the_completion(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: replayed up to its end, and gone at it."""
        lease = await lease_of(verbs, record_id)
        clock.advance(LEASE - 1)
        await verbs.complete(Complete(lease, b"response"))
        clock.advance(TTL - 0.5)
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        clock.advance(0.5)
        assert (await lease_of(verbs, record_id)).attempt == 1

    async def test_an_abandoned_record_outlives_its_lease_by_the_ttl(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: its stages are kept for whoever resumes."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        clock.advance(LEASE + TTL - 0.5)
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)
        clock.advance(0.5)
        answer = await leased(verbs, claim_of(record_id))
        assert (answer.lease.attempt, answer.stages) == (1, ())

    @pytest.mark.parametrize("ending", ["fail", "release"])
    async def test_a_failed_record_is_kept_from_its_last_activity(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, ending: str
    ) -> None:
        """B-05: for the TTL after the failure, stages included."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        clock.advance(10)
        await (verbs.fail(Fail(lease)) if ending == "fail" else verbs.release(Release(lease)))
        clock.advance(TTL - 0.5)
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)
        clock.advance(0.5)
        assert await verbs.get(Get(record_id)) is None

    async def test_an_expired_records_stages_never_come_back(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: neither for the new owner nor for the attempt after it."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("old")))
        clock.advance(LEASE + TTL)
        second = await lease_of(verbs, record_id)
        answer = await verbs.save_stage(SaveStage(second, stage_of("old", frame=b"new")))
        await verbs.fail(Fail(second))
        assert answer.frame == b"new"
        third = await leased(verbs, claim_of(record_id))
        assert third.stages == (stage_of("old", frame=b"new"),)

    async def test_reading_extends_nothing(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-05: get, scan and replays leave the expiry alone."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), b"response"))
        for _ in range(3):
            clock.advance(TTL / 4)
            assert isinstance(await verbs.claim(claim_of(record_id)), Finished)
            await existing(verbs, record_id)
            assert record_id in [record.record_id async for record in verbs.scan()]
        clock.advance(TTL / 4)
        assert isinstance(await verbs.claim(claim_of(record_id)), Leased)

    async def test_a_duplicate_does_not_extend_the_lease(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: a client that keeps asking does not keep a dead owner alive."""
        await lease_of(verbs, record_id)
        clock.advance(LEASE - 1)
        assert isinstance(await verbs.claim(claim_of(record_id)), Busy)
        clock.advance(1)
        assert isinstance(await verbs.claim(claim_of(record_id)), Leased)

    async def test_each_claim_brings_its_own_times(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """SPEC section 1: the TTL is that of the request which completes it, fractions of a second included."""
        await verbs.fail(Fail(await lease_of(verbs, record_id, lease=0.25, ttl=9.5)))
        lease = await lease_of(verbs, record_id, lease=1.5, ttl=5.5)
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + 1.5, abs=0.001)
        await verbs.complete(Complete(lease, b""))
        record = await existing(verbs, record_id)
        assert record.expires_at == pytest.approx(clock() + 5.5, abs=0.001)

    @pytest.mark.parametrize("ttl", [1e12, float("inf")])
    async def test_a_very_long_ttl_is_no_trouble(self, verbs: AsyncVerbs, record_id: bytes, ttl: float) -> None:
        """B-05: "for ever" is a number as well."""
        await verbs.complete(Complete(await lease_of(verbs, record_id, ttl=ttl), b"response"))
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
