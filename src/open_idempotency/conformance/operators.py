"""The contract of get, delete, scan and purge: what operators do with records."""

from __future__ import annotations

from open_idempotency.backend import AsyncBackend, Backend, Complete, Get, SaveStage, Status
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


class OperatorContract:
    """B-09."""

    async def test_a_record_is_read_whole(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-09: every field, as the claim made it."""
        c = claim_of(record_id)
        lease = (await leased(verbs, c)).lease
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        record = await existing(verbs, record_id)
        assert (record.record_id, record.fingerprint, record.owner) == (record_id, c.fingerprint, c.owner)
        assert (record.status, record.token, record.attempt) == (Status.IN_PROGRESS, lease.token, 1)
        assert (record.claimed_at, record.lease_end) == (clock(), clock() + LEASE)
        assert (record.ttl, record.expires_at) == (TTL, clock() + LEASE + TTL)
        assert (record.final, record.response, record.stages) == (False, None, (stage_of("reserve"),))

    async def test_what_is_not_there_is_none(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-09: and asking for it does not make it."""
        assert await verbs.get(Get(record_id)) is None
        assert not await verbs.delete(record_id)
        assert (await lease_of(verbs, record_id)).attempt == 1

    async def test_a_deleted_record_is_gone_with_its_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-09: the next claim is a first one."""
        await verbs.save_stage(SaveStage(await lease_of(verbs, record_id), stage_of("reserve")))
        assert await verbs.delete(record_id)
        assert not await verbs.delete(record_id)
        answer = await leased(verbs, claim_of(record_id))
        assert (answer.lease.attempt, answer.stages) == (1, ())

    async def test_an_expired_record_is_not_there(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-05, B-09: for every reader."""
        await lease_of(verbs, record_id)
        clock.advance(LEASE + TTL)
        assert await verbs.get(Get(record_id)) is None
        assert [record async for record in verbs.scan()] == []
        assert not await verbs.delete(record_id)

    async def test_a_scan_finds_every_live_record(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-09: more than one batch of them, whole, and none that expired."""
        await lease_of(verbs, record_id, ttl=1.0, lease=1.0)
        clock.advance(2)
        expected = {record_id + b"%d" % number for number in range(230)}
        for live in expected:
            await verbs.complete(Complete(await lease_of(verbs, live), b"response"))
        found = [record async for record in verbs.scan()]
        assert {record.record_id for record in found} == expected
        assert {record.response for record in found} == {b"response"}

    async def test_a_purge_is_bounded(self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
        """B-09: at most so many, and never a live one."""
        for number in range(5):
            await lease_of(verbs, record_id + b"%d" % number)
        clock.advance(LEASE + TTL)
        assert await verbs.purge(2) == 2
        assert await verbs.purge() == 3
        assert await verbs.purge() == 0

    async def test_a_purge_leaves_live_records_alone(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-09: in progress, abandoned or completed."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("reserve")))
        clock.advance(LEASE + TTL - 0.5)
        assert await verbs.purge() == 0
        assert (await existing(verbs, record_id)).stages == (stage_of("reserve"),)

    async def test_both_colours_see_the_same_records(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-12: and lead to each other, so the heartbeat can renew what an event loop claimed."""
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
        """B-11: closing is not the end."""
        await lease_of(verbs, record_id)
        await verbs.close()
        await verbs.close()
        assert not isinstance(await verbs.get(Get(record_id)), type(None))
