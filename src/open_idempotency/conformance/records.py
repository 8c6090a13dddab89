"""The contract of records: their time to live, what operators do with them, and quotas.

``QuotaContract`` tests ``reserve`` and ``unreserve``: how many keys of one scope may be live at the same time. A
backend without ``quotas`` has to refuse both verbs. The other tests are skipped for it, with that reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Busy,
    Complete,
    Fail,
    Finished,
    Get,
    Leased,
    OverQuota,
    Release,
    Reserve,
    Reserved,
    SaveStage,
    Status,
    Unreserve,
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
from open_idempotency.exceptions import ConfigurationError


class ExpiryContract:
    """B-05: lease and TTL are separate, and reading extends neither."""

    async def test_the_ttl_runs_from_the_completion(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: the response is replayed until its TTL has passed, and then the record is gone."""
        lease = await lease_of(verbs, record_id)
        clock.advance(LEASE - 1)
        await verbs.complete(Complete(lease, b"response"))
        clock.advance(TTL - 0.5)
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        clock.advance(0.5)
        assert (await lease_of(verbs, record_id)).attempt == 1

    async def test_a_completion_may_shorten_the_time_to_live(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-26: the TTL is that of the completion's lease; after it a purge deletes the record."""
        lease = await lease_of(verbs, record_id)
        await verbs.complete(Complete(replace(lease, ttl=TTL / 4), b"response"))
        assert (await existing(verbs, record_id)).ttl == TTL / 4
        await verbs.complete(Complete(replace(lease, ttl=TTL / 4), b"response"))
        clock.advance(TTL / 4 - 0.5)
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        assert await verbs.purge() == 0
        clock.advance(0.5)
        assert await verbs.get(Get(record_id)) is None
        assert await verbs.purge() == 1
        assert (await lease_of(verbs, record_id)).attempt == 1

    async def test_an_abandoned_record_outlives_its_lease_by_the_ttl(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: its stages stay for the attempt that resumes."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        clock.advance(LEASE + TTL - 0.5)
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)
        clock.advance(0.5)
        outcome = await leased(verbs, claim_of(record_id))
        assert (outcome.lease.attempt, outcome.stages) == (1, ())

    @pytest.mark.parametrize("ending", ["fail", "release"])
    async def test_a_failed_record_is_kept_from_its_last_activity(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, ending: str
    ) -> None:
        """B-05: record and stages stay for the TTL after the failure or release."""
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
        """B-05: neither the new owner nor the attempt after it gets the expired values."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("old")))
        clock.advance(LEASE + TTL)
        second = await lease_of(verbs, record_id)
        outcome = await verbs.save_stage(SaveStage(second, stage_of("old", frame=b"new")))
        await verbs.fail(Fail(second))
        assert outcome.frame == b"new"
        third = await leased(verbs, claim_of(record_id))
        assert third.stages == (stage_of("old", frame=b"new"),)

    async def test_reading_extends_nothing(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-05: ``get``, ``scan`` and replays do not move the expiry."""
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
        """B-05: a client that retries does not extend the lease of a dead owner."""
        await lease_of(verbs, record_id)
        clock.advance(LEASE - 1)
        assert isinstance(await verbs.claim(claim_of(record_id)), Busy)
        clock.advance(1)
        assert isinstance(await verbs.claim(claim_of(record_id)), Leased)

    async def test_each_claim_brings_its_own_times(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05: lease and TTL are those of the latest claim, fractions of a second included."""
        await verbs.fail(Fail(await lease_of(verbs, record_id, lease=0.25, ttl=9.5)))
        lease = await lease_of(verbs, record_id, lease=1.5, ttl=5.5)
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + 1.5, abs=0.001)
        await verbs.complete(Complete(lease, b""))
        record = await existing(verbs, record_id)
        assert record.expires_at == pytest.approx(clock() + 5.5, abs=0.001)

    @pytest.mark.parametrize("ttl", [1e12, float("inf")])
    async def test_a_very_long_or_infinite_ttl_is_accepted(
        self, verbs: AsyncVerbs, record_id: bytes, ttl: float
    ) -> None:
        """B-05: a TTL may be longer than the backend's own limit, or infinite."""
        await verbs.complete(Complete(await lease_of(verbs, record_id, ttl=ttl), b"response"))
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")


class OperatorContract:
    """B-09: reading, deleting, scanning and purging; B-11 and B-12: closing, and the sync and async forms."""

    async def test_a_record_is_read_in_full(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-09: ``get`` returns every field as the claim and the stages set it."""
        c = claim_of(record_id)
        lease = (await leased(verbs, c)).lease
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        record = await existing(verbs, record_id)
        assert (record.record_id, record.fingerprint, record.owner) == (record_id, c.fingerprint, c.owner)
        assert (record.status, record.token, record.attempt) == (Status.IN_PROGRESS, lease.token, 1)
        assert (record.claimed_at, record.lease_end) == (clock(), clock() + LEASE)
        assert (record.ttl, record.expires_at) == (TTL, clock() + LEASE + TTL)
        assert (record.final, record.response, record.stages) == (False, None, (stage_of("reserve"),))

    async def test_an_absent_record_is_none(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-09: reading or deleting an absent record does not create it."""
        assert await verbs.get(Get(record_id)) is None
        assert not await verbs.delete(record_id)
        assert (await lease_of(verbs, record_id)).attempt == 1

    async def test_a_deleted_record_is_gone_with_its_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-09: the next claim is attempt 1 without stages."""
        await verbs.save_stage(SaveStage(await lease_of(verbs, record_id), stage_of("reserve")))
        assert await verbs.delete(record_id)
        assert not await verbs.delete(record_id)
        outcome = await leased(verbs, claim_of(record_id))
        assert (outcome.lease.attempt, outcome.stages) == (1, ())

    async def test_an_expired_record_is_absent(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-05, B-09: ``get``, ``scan`` and ``delete`` do not find an expired record."""
        await lease_of(verbs, record_id)
        clock.advance(LEASE + TTL)
        assert await verbs.get(Get(record_id)) is None
        assert [record async for record in verbs.scan()] == []
        assert not await verbs.delete(record_id)

    async def test_a_scan_finds_every_live_record(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-09: a scan returns more records than one batch holds, each in full, and no expired one."""
        await lease_of(verbs, record_id, ttl=1.0, lease=1.0)
        clock.advance(2)
        expected = {record_id + b"%d" % number for number in range(230)}
        for live in expected:
            await verbs.complete(Complete(await lease_of(verbs, live), b"response"))
        found = [record async for record in verbs.scan()]
        assert {record.record_id for record in found} == expected
        assert {record.response for record in found} == {b"response"}

    async def test_a_scan_of_headers_finds_every_live_record_without_its_large_values(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-09, P-01: more records than one batch holds, each as ``get`` returns it but for response and stages."""
        await lease_of(verbs, record_id, ttl=1.0, lease=1.0)
        clock.advance(2)
        lease = await lease_of(verbs, record_id + b"full", about=b"full")
        await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        await verbs.complete(Complete(lease, b"response"))
        many = [claim_of(record_id + b"%d" % number, about=b"%d" % number) for number in range(520)]
        for start in range(0, len(many), 52):
            await verbs.claim_at_once(many[start : start + 52])
        found = {record.record_id: record for record in verbs.scan_headers()}
        assert set(found) == {record_id + b"full", *(c.record_id for c in many)}
        whole = await existing(verbs, record_id + b"full")
        assert found[record_id + b"full"] == replace(whole, response=None, stages=())
        assert all(found[c.record_id].about == c.about for c in many)

    async def test_a_purge_is_bounded(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-09: a purge deletes at most ``limit`` records."""
        for number in range(5):
            await lease_of(verbs, record_id + b"%d" % number)
        clock.advance(LEASE + TTL)
        assert await verbs.purge(2) == 2
        assert await verbs.purge() == 3
        assert await verbs.purge() == 0

    async def test_a_purge_leaves_live_records_alone(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-09: a record whose lease has ended is live until its TTL has passed too."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        clock.advance(LEASE + TTL - 0.5)
        assert await verbs.purge() == 0
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)

    async def test_the_sync_and_the_async_backend_share_records(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-12: each returns the other, so a heartbeat thread can renew what an event loop has claimed."""
        await lease_of(verbs, record_id)
        sync = verbs.to_sync()
        other = sync.to_async()
        assert isinstance(sync, Backend)
        assert isinstance(other, AsyncBackend)
        assert sync.to_async() is other
        assert other.to_sync() is sync
        assert sync.get(Get(record_id)) == await existing(verbs, record_id)
        sync.close()

    async def test_a_closed_backend_opens_again(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-11: a closed backend reconnects with the next call; closing it again has no effect."""
        await lease_of(verbs, record_id)
        await verbs.close()
        await verbs.close()
        assert not isinstance(await verbs.get(Get(record_id)), type(None))


# Quotas

LIMIT = 5
_MANY = 32
MakeReservation = Callable[..., Reserve]


class QuotaContract:
    """The quota of live keys for each scope: slots, each held by the reservation of one key."""

    @pytest.fixture
    def new_reservation(self, verbs: AsyncVerbs) -> MakeReservation:
        """Makes ``Reserve`` commands for new keys of one scope; arguments replace the default fields."""
        if not verbs.quotas:
            pytest.skip("this backend has no quotas (Backend.quotas is False)")
        scope_id = os.urandom(32)

        def make(record_id: bytes | None = None, *, limit: int = LIMIT, **fields: float) -> Reserve:
            times = {"lease": LEASE, "ttl": TTL, **fields}
            return Reserve(scope_id, record_id or os.urandom(32), limit, **times)

        return make

    async def test_a_backend_without_quotas_refuses_them(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """Without quotas both verbs raise ``ConfigurationError``: a limit is never silently ignored."""
        if verbs.quotas:
            assert await verbs.reserve(Reserve(record_id, record_id, LIMIT, LEASE, TTL)) == Reserved()
            return
        with pytest.raises(ConfigurationError):
            await verbs.reserve(Reserve(record_id, record_id, LIMIT, LEASE, TTL))
        with pytest.raises(ConfigurationError):
            await verbs.unreserve(Unreserve(record_id, record_id))

    async def test_reservations_are_refused_above_the_limit(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """The refusal reports the seconds until the first slot becomes free."""
        outcomes = []
        for _ in range(LIMIT):
            outcomes.append(await verbs.reserve(new_reservation()))
            clock.advance(1)
        assert outcomes == [Reserved()] * LIMIT
        over = await verbs.reserve(new_reservation())
        assert isinstance(over, OverQuota)
        assert LEASE + TTL - LIMIT - 0.001 <= over.remaining <= 2 * LEASE + TTL - LIMIT + 0.001

    async def test_a_key_that_counts_is_never_refused(
        self, verbs: AsyncVerbs, new_reservation: MakeReservation
    ) -> None:
        """Duplicates and retries pass at the limit, and take no second slot below it."""
        reservations = [new_reservation() for _ in range(LIMIT)]
        for one in [*reservations, *reservations]:
            assert await verbs.reserve(one) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation()), OverQuota)

    async def test_each_command_has_its_own_limit(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """Routes may have different limits. Each counts all live keys of the scope."""
        for _ in range(3):
            assert await verbs.reserve(new_reservation()) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=3)), OverQuota)
        assert await verbs.reserve(new_reservation(limit=4)) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)

    async def test_scopes_are_counted_separately(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """I10: the same record id in another scope takes a slot of that scope only."""
        one = new_reservation(limit=1)
        assert await verbs.reserve(one) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)
        other = Reserve(os.urandom(32), one.record_id, 1, LEASE, TTL)
        assert await verbs.reserve(other) == Reserved()
        await verbs.unreserve(Unreserve(other.scope_id, other.record_id))
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)

    async def test_a_key_counts_as_long_as_its_record_may_live(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """A reservation lasts for lease plus TTL at least, and for one more lease at most."""
        assert await verbs.reserve(new_reservation(limit=1)) == Reserved()
        clock.advance(LEASE + TTL - 0.5)
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)
        clock.advance(LEASE + 0.5)
        assert await verbs.reserve(new_reservation(limit=1)) == Reserved()

    async def test_a_retry_prolongs_its_reservation(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """A retry may prolong its record, so it prolongs the reservation too, however soon it comes."""
        for pause in (LEASE / 2, TTL / 2):
            one = new_reservation(limit=1)
            assert await verbs.reserve(one) == Reserved()
            clock.advance(pause)
            assert await verbs.reserve(one) == Reserved()
            clock.advance(LEASE + TTL - 0.5)
            assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)
            clock.advance(LEASE + 0.5)

    async def test_each_reservation_has_its_own_end(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """A short reservation frees its slot before an older long one, and the refusal reports the earlier end."""
        await verbs.reserve(new_reservation(limit=2))
        await verbs.reserve(new_reservation(limit=2, lease=1.0, ttl=10.0))
        over = await verbs.reserve(new_reservation(limit=2))
        assert isinstance(over, OverQuota)
        assert 11 - 0.001 <= over.remaining <= 12 + 0.001
        clock.advance(12)
        assert await verbs.reserve(new_reservation(limit=2)) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=2)), OverQuota)

    async def test_a_key_whose_reservation_expired_counts_as_new(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """An expired reservation holds no slot, even if it has not been purged."""
        one = new_reservation(limit=1)
        await verbs.reserve(one)
        clock.advance(2 * LEASE + TTL)
        await verbs.reserve(new_reservation(limit=1))
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_an_expired_reservation_does_not_readmit_its_key(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """Its own key needs a free slot as well, even before the expired reservation is deleted."""
        one = new_reservation(limit=1, lease=1.0, ttl=10.0)
        await verbs.reserve(one)
        await verbs.reserve(new_reservation(limit=2))
        clock.advance(12)
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_unreserving_frees_the_slot(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """Repeating ``unreserve`` has no effect and frees no second slot."""
        one, other = new_reservation(limit=2), new_reservation(limit=2)
        await verbs.reserve(one)
        await verbs.reserve(other)
        for _ in range(2):
            await verbs.unreserve(Unreserve(one.scope_id, one.record_id))
        assert await verbs.reserve(new_reservation(limit=2)) == Reserved()
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_remaining_ignores_a_slot_that_was_freed(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """The reported time is that of the remaining reservations, so no client retries too early."""
        one = new_reservation(limit=1)
        await verbs.reserve(one)
        clock.advance(TTL)
        await verbs.reserve(new_reservation(limit=2))
        await verbs.unreserve(Unreserve(one.scope_id, one.record_id))
        over = await verbs.reserve(new_reservation(limit=1))
        assert isinstance(over, OverQuota)
        assert over.remaining >= LEASE + TTL - 0.001

    async def test_remaining_uses_the_prolonged_end(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """If the oldest reservation is prolonged, the reported time is that of the next one to end."""
        one = new_reservation(limit=1)
        await verbs.reserve(one)
        clock.advance(TTL / 2)
        await verbs.reserve(new_reservation(limit=2))
        assert await verbs.reserve(one) == Reserved()
        over = await verbs.reserve(new_reservation(limit=1))
        assert isinstance(over, OverQuota)
        assert over.remaining >= LEASE + TTL - 0.001

    async def test_a_reservation_is_no_record(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """B-09: ``get`` and ``scan`` do not find a reservation, and the claim that follows is attempt 1."""
        one = new_reservation()
        await verbs.reserve(one)
        assert await verbs.get(Get(one.record_id)) is None
        assert [record async for record in verbs.scan()] == []
        assert (await lease_of(verbs, one.record_id)).attempt == 1
        assert [record.record_id async for record in verbs.scan()] == [one.record_id]

    async def test_a_purge_deletes_expired_reservations(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """B-09: ``limit`` bounds records and reservations together, and live reservations stay."""
        lasting = new_reservation(limit=100, ttl=10 * TTL)
        for one in (*(new_reservation(limit=100) for _ in range(4)), lasting):
            await verbs.reserve(one)
        await lease_of(verbs, os.urandom(32))
        clock.advance(2 * LEASE + TTL)
        assert await verbs.purge(2) == 2
        assert await verbs.purge() == 3
        assert await verbs.purge() == 0
        assert await verbs.reserve(lasting) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)

    async def test_concurrent_reservations_do_not_exceed_the_limit(
        self, verbs: AsyncVerbs, new_reservation: MakeReservation
    ) -> None:
        """``reserve`` is atomic."""
        outcomes = await verbs.at_once("reserve", [new_reservation() for _ in range(_MANY)])
        assert outcomes.count(Reserved()) == LIMIT
        assert sum(isinstance(outcome, OverQuota) for outcome in outcomes) == _MANY - LIMIT

    async def test_the_sync_and_the_async_backend_share_quotas(
        self, verbs: AsyncVerbs, new_reservation: MakeReservation
    ) -> None:
        """B-12: what an event loop has reserved counts in a thread."""
        await verbs.reserve(new_reservation(limit=1))
        sync = verbs.to_sync()
        assert isinstance(sync.reserve(new_reservation(limit=1)), OverQuota)
        assert sync.quotas
        assert sync.to_async().quotas
