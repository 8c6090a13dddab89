"""The contract of ``free``: an operator frees a key, but never from an attempt unseen by the operator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from open_idempotency.backend import (
    Backend,
    Complete,
    Fail,
    Finished,
    Free,
    Freed,
    Get,
    Lease,
    Leased,
    Record,
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

Write = Callable[[AsyncVerbs, Lease], Awaitable[object]]

_WRITES: dict[str, Write] = {
    "save_stage": lambda verbs, lease: verbs.save_stage(SaveStage(lease, stage_of("late"))),
    "complete": lambda verbs, lease: verbs.complete(Complete(lease, b"late")),
    "fail": lambda verbs, lease: verbs.fail(Fail(lease, final=True)),
    "release": lambda verbs, lease: verbs.release(Release(lease)),
}


def _seen(record: Record, *, keep_stages: bool = False, alive: bool = False) -> Free:
    return Free(record.record_id, record.token, record.status, keep_stages, alive)


async def _abandoned(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> Lease:
    """The lease of an attempt that has saved a stage, and whose lease has ended."""
    lease = await lease_of(verbs, record_id)
    await verbs.save_stage(SaveStage(lease, stage_of("charge")))
    clock.advance(LEASE + 1)
    return lease


class FreeContract:
    """P-20: what ``free`` changes, and what stays. Skipped for a backend without ``frees``."""

    @pytest.fixture
    def operator(self, verbs: AsyncVerbs) -> Backend:
        """The sync backend, as operators use it."""
        operator = verbs.to_sync()
        if not operator.frees:
            pytest.skip("the backend has no free()")
        return operator

    @pytest.mark.parametrize("keep_stages", [False, True])
    async def test_nothing_is_freed_where_there_is_no_record(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes, keep_stages: bool
    ) -> None:
        """P-20: an absent record, and one that has expired."""
        lease = await lease_of(verbs, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=keep_stages, alive=True)
        await verbs.complete(Complete(lease, b"response"))
        clock.advance(lease.ttl + 1)
        assert operator.free(seen) is Freed.ABSENT
        assert operator.free(replace(seen, record_id=record_id[::-1])) is Freed.ABSENT

    @pytest.mark.parametrize("keep_stages", [False, True])
    async def test_a_live_attempt_is_spared(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes, keep_stages: bool
    ) -> None:
        """P-20: unless the operator says otherwise."""
        lease = await lease_of(verbs, record_id)
        before = await existing(verbs, record_id)
        assert operator.free(_seen(before, keep_stages=keep_stages)) is Freed.ALIVE
        assert await existing(verbs, record_id) == before
        assert await verbs.renew(Renew([lease])) == [Renewal.OWNED]

    @pytest.mark.parametrize("keep_stages", [False, True])
    async def test_a_worker_that_renews_in_time_is_spared(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes, keep_stages: bool
    ) -> None:
        """P-20: the attempt was abandoned when it was seen, but its worker is alive."""
        lease = await _abandoned(verbs, clock, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=keep_stages)
        await verbs.renew(Renew([lease]))
        assert operator.free(seen) is Freed.ALIVE

    @pytest.mark.parametrize("keep_stages", [False, True])
    @pytest.mark.parametrize("end", ["completed", "failed", "taken over"])
    async def test_a_record_that_has_changed_since_is_left_alone(
        self,
        verbs: AsyncVerbs,
        operator: Backend,
        clock: ManualClock,
        record_id: bytes,
        keep_stages: bool,
        end: str,
    ) -> None:
        """P-20: token and status are compared with those that were seen, in one atomic call."""
        lease = await _abandoned(verbs, clock, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=keep_stages, alive=True)
        if end == "completed":
            await verbs.complete(Complete(lease, b"response"))
        elif end == "failed":
            await verbs.fail(Fail(lease))
        else:
            await lease_of(verbs, record_id)
        before = await existing(verbs, record_id)
        assert operator.free(seen) is Freed.CHANGED
        assert await existing(verbs, record_id) == before

    async def test_a_completed_record_is_forgotten_and_never_reopened(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes
    ) -> None:
        """P-20: its response would be lost."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), b"response"))
        record = await existing(verbs, record_id)
        assert operator.free(_seen(record, keep_stages=True)) is Freed.CHANGED
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        assert operator.free(_seen(record)) is Freed.DONE
        assert await verbs.get(Get(record_id)) is None

    async def test_a_forgotten_record_is_gone_with_its_stages(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes
    ) -> None:
        """P-20: the next claim is a first attempt, with a larger token."""
        lease = await _abandoned(verbs, clock, record_id)
        assert operator.free(_seen(await existing(verbs, record_id))) is Freed.DONE
        assert await verbs.get(Get(record_id)) is None
        again = await leased(verbs, claim_of(record_id))
        assert (again.lease.attempt, again.stages) == (1, ())
        assert again.lease.token > lease.token

    @pytest.mark.parametrize("state", ["alive", "abandoned", "failed", "final", "again"])
    async def test_a_freed_key_is_claimed_at_once_with_its_stages(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes, state: str
    ) -> None:
        """P-20: whatever the policy says about failed and abandoned attempts, and about their number."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        if state in ("failed", "final"):
            await verbs.fail(Fail(lease, state == "final", b"failed response"))
        elif state != "alive":
            clock.advance(LEASE + 1)
        if state == "again":
            await lease_of(verbs, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=True, alive=True)
        assert operator.free(seen) is Freed.DONE
        record = await existing(verbs, record_id)
        assert (record.status, record.attempt, record.final, record.response) == (Status.FAILED, 0, False, None)
        strict = claim_of(record_id, resume_failed=False, resume_abandoned=False, max_attempts=1)
        outcome = await verbs.claim(strict)
        assert isinstance(outcome, Leased)
        assert (outcome.lease.attempt, outcome.stages) == (1, (stage_of("charge"),))
        assert outcome.lease.token > record.token > seen.token

    async def test_a_freed_record_stays_without_stages(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes
    ) -> None:
        """P-20: so that its old owner notices that it was fenced off, and does not create the record again."""
        await lease_of(verbs, record_id)
        operator.free(_seen(await existing(verbs, record_id), keep_stages=True, alive=True))
        assert (await existing(verbs, record_id)).status is Status.FAILED

    @pytest.mark.parametrize("write", _WRITES)
    @pytest.mark.parametrize("stages", [0, 1])
    async def test_the_worker_that_was_taken_for_dead_is_fenced_off(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes, write: str, stages: int
    ) -> None:
        """P-20: it can neither renew nor write, before and after the next claim."""
        lease = await lease_of(verbs, record_id)
        if stages:
            await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        operator.free(_seen(await existing(verbs, record_id), keep_stages=True, alive=True))
        for _ in range(2):
            before = await existing(verbs, record_id)
            assert await verbs.renew(Renew([lease])) == [Renewal.LOST]
            with pytest.raises(LeaseLost):
                await _WRITES[write](verbs, lease)
            assert await existing(verbs, record_id) == before
            await verbs.claim(claim_of(record_id))

    async def test_operators_find_records_by_the_beginning_of_their_ids(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes
    ) -> None:
        """B-09: all live records with this beginning, and no others."""
        neighbour = record_id[:6] + record_id[6:][::-1]
        for each in (record_id, neighbour):
            await lease_of(verbs, each)
        assert set(operator.ids(record_id[:6])) == {record_id, neighbour}
        assert {record_id, neighbour} <= set(operator.ids())
        assert list(operator.ids(record_id)) == [record_id]
        assert list(operator.ids(record_id[:6] + b"\0\0\0\0")) == []
        operator.delete(neighbour)
        assert list(operator.ids(record_id[:6])) == [record_id]

    async def test_operators_read_the_clock_that_decides(self, operator: Backend, clock: ManualClock) -> None:
        """B-09: ages and leases are measured by it."""
        before = operator.now()
        clock.advance(5)
        assert operator.now() == pytest.approx(before + 5, abs=0.001)
