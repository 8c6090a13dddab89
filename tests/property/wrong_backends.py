"""Backends with one mistake each, for the model test to find: missing guards and off-by-one ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from open_idempotency.backend import (
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Finished,
    Get,
    Lease,
    Leased,
    Mismatch,
    OverQuota,
    Record,
    Refusal,
    Refused,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Status,
    Unreserve,
    Withdraw,
)
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import LeaseLost


class _Wrong(MemoryBackend):
    def found(self, record_id: bytes) -> Record | None:
        return self._table.live(record_id)

    def put(self, record: Record) -> None:
        self._table.records[record.record_id] = record

    def now(self) -> float:
        return self._table.now()

    def current(self, lease: Lease) -> Lease:
        """A lease that would be accepted."""
        record = self.found(lease.record_id)
        return lease if record is None else replace(lease, token=record.token, owner=record.owner)


class StaleCompletes(_Wrong):
    def complete(self, c: Complete, /) -> Completed:
        return super().complete(replace(c, lease=self.current(c.lease)))


class StaleSavesStages(_Wrong):
    def save_stage(self, c: SaveStage, /) -> StageSaved:
        return super().save_stage(replace(c, lease=self.current(c.lease)))


class StaleFails(_Wrong):
    def fail(self, c: Fail, /) -> None:
        super().fail(replace(c, lease=self.current(c.lease)))


class StaleReleases(_Wrong):
    def release(self, c: Release, /) -> None:
        super().release(replace(c, lease=self.current(c.lease)))


class StaleRenews(_Wrong):
    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        return super().renew(Renew([self.current(lease) for lease in c.leases]))


class TokenAloneIsEnough(_Wrong):
    def complete(self, c: Complete, /) -> Completed:
        return super().complete(replace(c, lease=replace(c.lease, owner=self.current(c.lease).owner)))


class OwnerAloneIsEnough(_Wrong):
    def complete(self, c: Complete, /) -> Completed:
        return super().complete(replace(c, lease=replace(c.lease, token=self.current(c.lease).token)))


class NotReentrant(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        return super().claim(replace(c, owner=c.owner + bytes([self.sent()])))

    def sent(self) -> int:
        self._sent = (getattr(self, "_sent", 0) + 1) % 256
        return self._sent


class MismatchIgnored(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        record = self.found(c.record_id)
        result = super().claim(c if record is None else replace(c, fingerprint=record.fingerprint))
        return (
            replace(result, lease=replace(result.lease, fingerprint=c.fingerprint))
            if isinstance(result, Leased)
            else result
        )


class MismatchOnlyWhenCompleted(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        record = self.found(c.record_id)
        if record is None or record.status is Status.COMPLETED or record.fingerprint == c.fingerprint:
            return super().claim(c)
        result = super().claim(replace(c, fingerprint=record.fingerprint))
        return Mismatch() if isinstance(result, Leased) else result


class LeaseEndsLate(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        record = self.found(c.record_id)
        if record is not None and record.lease_end == self.now() and record.status is Status.IN_PROGRESS:
            self.put(replace(record, lease_end=self.now() + 0.25))
        return super().claim(c)


class CompletedRunsAgain(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        result = super().claim(c)
        record = self.found(c.record_id)
        if isinstance(result, Finished) and record is not None and record.claimed_at < self.now() - 8:
            self.put(replace(record, status=Status.FAILED))
            return super().claim(c)
        return result


class FinalRunsAgain(_Wrong):
    def fail(self, c: Fail, /) -> None:
        super().fail(replace(c, final=False))


class AttemptsUncounted(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        return super().claim(replace(c, max_attempts=None))


class AbandonedResumed(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        return super().claim(replace(c, resume_abandoned=True))


class FailedResumed(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        return super().claim(replace(c, resume_failed=True))


class GivenBackIsAnAttempt(_Wrong):
    def release(self, c: Release, /) -> None:
        record = self.found(c.lease.record_id)
        if record is not None and record.stages:
            super().fail(Fail(c.lease))
        else:
            super().release(c)


class StagesForgotten(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        result = super().claim(c)
        return replace(result, stages=()) if isinstance(result, Leased) else result


class StageOverwritten(_Wrong):
    def save_stage(self, c: SaveStage, /) -> StageSaved:
        record = self.found(c.lease.record_id)
        result = super().save_stage(c)
        if record is not None and not result.recreated:
            stages = tuple(c.stage if (s.name, s.key) == (c.stage.name, c.stage.key) else s for s in record.stages)
            kept = self.found(c.lease.record_id)
            assert kept is not None
            self.put(replace(kept, stages=stages + kept.stages[len(stages) :]))
            return StageSaved(c.stage.frame)
        return result


class StageKeyIgnored(_Wrong):
    def save_stage(self, c: SaveStage, /) -> StageSaved:
        return super().save_stage(replace(c, stage=replace(c.stage, key="")))


class SecondCompletionWins(_Wrong):
    def complete(self, c: Complete, /) -> Completed:
        result = super().complete(c)
        record = self.found(c.lease.record_id)
        assert record is not None
        self.put(replace(record, response=c.response))
        return result


class TtlFromTheClaim(_Wrong):
    def complete(self, c: Complete, /) -> Completed:
        record = self.found(c.lease.record_id)
        result = super().complete(c)
        kept = self.found(c.lease.record_id)
        if record is not None and kept is not None:
            self.put(replace(kept, expires_at=min(kept.expires_at, record.claimed_at + record.ttl)))
        return result


class ReadingExtends(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        result = super().claim(c)
        record = self.found(c.record_id)
        if record is not None and not isinstance(result, Leased):
            self.put(replace(record, expires_at=record.expires_at + 0.25))
        return result


class VanishedIsLost(_Wrong):
    def complete(self, c: Complete, /) -> Completed:
        if self.found(c.lease.record_id) is None:
            raise LeaseLost("gone")
        return super().complete(c)


class TokenStandsStill(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        result = super().claim(c)
        record = self.found(c.record_id)
        if isinstance(result, Leased) and record is not None:
            self.put(replace(record, token=1))
            return replace(result, lease=replace(result.lease, token=1))
        return result


class PurgesTheLiving(_Wrong):
    def purge(self, limit: int = 1000) -> int:
        for record_id in list(self._table.records)[:limit]:
            self.delete(record_id)
        return 0


class ExpiredIsFound(_Wrong):
    def get(self, c: Get, /) -> Record | None:
        return self._table.records.get(c.record_id)


class ResponseOfAnEarlierAttempt(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        before = self.found(c.record_id)
        result = super().claim(c)
        record = self.found(c.record_id)
        if before is not None and record is not None and before.response and not isinstance(result, Refused):
            self.put(replace(record, response=before.response))
        return result


class ForgetsWhoWasWithdrawn(_Wrong):
    def withdraw(self, c: Withdraw, /) -> None:
        super().withdraw(c)
        self._table._withdrawn.clear()


class WithdrawsTheLatestOnly(_Wrong):
    def withdraw(self, c: Withdraw, /) -> None:
        self._table._withdrawn.clear()
        super().withdraw(c)


class WithdrawsWhatIsSomebodyElses(_Wrong):
    def withdraw(self, c: Withdraw, /) -> None:
        record = self.found(c.claim.record_id)
        if record is not None and record.status is Status.IN_PROGRESS:
            super().withdraw(replace(c, claim=replace(c.claim, owner=record.owner)))
        super().withdraw(c)


class WithdrawsTheKeyOfAll(_Wrong):
    def claim(self, c: Claim, /) -> ClaimResult:
        late = any(record_id == c.record_id for record_id, _ in self._table._withdrawn)
        result = super().claim(c)
        if late and isinstance(result, Leased):
            self.release(Release(result.lease))
            return Refused(Refusal.WITHDRAWN, 0)
        return result


class AdmitsOneKeyTooMany(_Wrong):
    def reserve(self, c: Reserve, /) -> ReserveResult:
        return super().reserve(replace(c, limit=c.limit + 1))


class RefusesAKeyThatCounts(_Wrong):
    def reserve(self, c: Reserve, /) -> ReserveResult:
        others = replace(c, record_id=c.record_id + b"again")
        result = super().reserve(others)
        self.unreserve(Unreserve(c.scope_id, others.record_id))
        return result if isinstance(result, OverQuota) else super().reserve(c)


class PlacesEndTooSoon(_Wrong):
    def reserve(self, c: Reserve, /) -> ReserveResult:
        return super().reserve(replace(c, ttl=c.ttl / 4))


class PlacesEndTooLate(_Wrong):
    def reserve(self, c: Reserve, /) -> ReserveResult:
        return super().reserve(replace(c, ttl=c.ttl * 4))


class TellsTheWrongEnd(_Wrong):
    def reserve(self, c: Reserve, /) -> ReserveResult:
        result = super().reserve(c)
        return OverQuota(result.remaining + 100) if isinstance(result, OverQuota) else result


class GivesNoPlaceBack(_Wrong):
    def unreserve(self, c: Unreserve, /) -> None:
        pass


WRONG = sorted(_Wrong.__subclasses__(), key=lambda kind: kind.__name__)
