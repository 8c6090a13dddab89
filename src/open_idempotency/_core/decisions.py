"""The decision table: what each verb finds, returns and leaves behind, for one record at one moment.

Pure functions from (record or None, command, now) to (result, record to store). A backend that can hold a lock or
a transaction runs these; the Redis scripts say the same in Lua, and the contract suite holds both to it. The stored
record **is** the given one where nothing changes, and None where the record is to be deleted.

Rules above the table: an expired record is absent. A fingerprint that differs gives ``Mismatch`` in every
state. A verb other than ``claim`` first compares owner and token: a stale owner gets ``LeaseLost`` and changes
nothing. The docs draw their picture from ``TRANSITIONS``.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from types import MappingProxyType

from open_idempotency._core.commands import (
    Claim,
    Command,
    Complete,
    Fail,
    Free,
    Release,
    Renew,
    SaveStage,
    Withdraw,
)
from open_idempotency._core.models import (
    Busy,
    ClaimResult,
    Completed,
    Finished,
    Freed,
    Lease,
    Leased,
    Mismatch,
    Record,
    Refusal,
    Refused,
    Renewal,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost


class State(str, Enum):
    """A record's state at one moment of the backend's clock: finer than its status."""

    ABSENT = "absent"
    ALIVE = "in progress"
    ABANDONED = "abandoned"
    FAILED = "failed"
    FINAL = "failed for good"
    COMPLETED = "completed"


def _row(**next_states: State) -> Mapping[State, State]:
    return MappingProxyType({State[state]: after for state, after in next_states.items()})


S = State
# For each verb: the state it finds -> the state it leaves. A pair that is missing is refused with LeaseLost
# (AlreadyCompleted for a stage after completion). ALIVE in the row of Claim gives Busy, except to its own owner.
TRANSITIONS: Mapping[type[Command[object]], Mapping[State, State]] = MappingProxyType(
    {
        Claim: _row(
            ABSENT=S.ALIVE,
            ALIVE=S.ALIVE,
            ABANDONED=S.ALIVE,
            FAILED=S.ALIVE,
            FINAL=S.FINAL,
            COMPLETED=S.COMPLETED,
        ),
        Renew: _row(ABSENT=S.ABSENT, ALIVE=S.ALIVE, ABANDONED=S.ALIVE, COMPLETED=S.COMPLETED),
        SaveStage: _row(ABSENT=S.ALIVE, ALIVE=S.ALIVE, ABANDONED=S.ALIVE),
        Complete: _row(ABSENT=S.COMPLETED, ALIVE=S.COMPLETED, ABANDONED=S.COMPLETED, COMPLETED=S.COMPLETED),
        Fail: _row(ABSENT=S.ABSENT, ALIVE=S.FAILED, ABANDONED=S.FAILED, FAILED=S.FAILED, FINAL=S.FINAL),
        Release: _row(ABSENT=S.ABSENT, ALIVE=S.FAILED, ABANDONED=S.FAILED, FAILED=S.FAILED),
        Withdraw: _row(
            ABSENT=S.ABSENT,
            ALIVE=S.FAILED,
            ABANDONED=S.FAILED,
            FAILED=S.FAILED,
            FINAL=S.FINAL,
            COMPLETED=S.COMPLETED,
        ),
    }
)

#: seconds for which the claim of a withdrawn owner is refused: longer than TCP tries to deliver anything
WITHDRAWN_FOR = 3600.0

#: seconds by which two reads of one clock may be out of order; more means that it was put back
_APART = 1.0

_BY_STATUS = {Status.COMPLETED: State.COMPLETED, Status.IN_PROGRESS: State.ALIVE}


def state_of(record: Record | None, now: float) -> State:
    """The state of a record at ``now`` (seconds on the backend's clock)."""
    if record is None or record.expires_at <= now:
        return State.ABSENT
    if record.status is Status.FAILED:
        return State.FINAL if record.final else State.FAILED
    if record.status is Status.IN_PROGRESS and record.lease_end <= now:
        return State.ABANDONED
    return _BY_STATUS[record.status]


def claim(record: Record | None, c: Claim, now: float, *, withdrawn: bool = False) -> tuple[ClaimResult, Record | None]:
    """Decide a claim (B-01, B-02, B-08). A refused duplicate leaves the record as it is.

    ``withdrawn``: the owner's claim was withdrawn less than ``WITHDRAWN_FOR`` seconds ago, so this one is late and gets
    no lease (B-08c).
    """
    result, after = _claim(record, c, now)
    if withdrawn and isinstance(result, Leased):
        attempt = 0 if record is None or state_of(record, now) is State.ABSENT else record.attempt
        return Refused(Refusal.WITHDRAWN, attempt), record
    return result, after


def rebased(record: Record, now: float) -> Record:
    """The record as a claim at ``now`` has to see it. It differs only if the backend's clock was put back.

    An attempt that was claimed later than now has a lease from another time. The lease begins anew now, with the same
    length, and the record is to be written. A live owner's next renewal shortens it. A dead owner blocks its key for
    the time that its attempt had run and one lease more, not for the time that the clock was put back. Since 0.1.
    """
    if record.status is not Status.IN_PROGRESS or record.claimed_at <= now + _APART:
        return record
    end = now + (record.lease_end - record.claimed_at)
    return replace(record, claimed_at=now, lease_end=end, expires_at=end + record.ttl)


def _claim(record: Record | None, c: Claim, now: float) -> tuple[ClaimResult, Record | None]:
    state = state_of(record, now)
    if record is None or state is State.ABSENT:
        last_token = record.token if record else 0
        return _take(c, now, attempt=1, last_token=last_token, stages=())
    if not hmac.compare_digest(record.fingerprint, c.fingerprint):
        return Mismatch(), record
    if state is State.COMPLETED:
        return Finished(record.response or b""), record
    if record.owner == c.owner and record.status is Status.IN_PROGRESS:
        return _take_again(record, c, now)
    if state is State.ALIVE:
        return Busy(max(0.0, now - record.claimed_at), record.lease_end - now), record
    refusal = _refusal(record, state, c)
    if refusal is not None:
        return Refused(refusal, record.attempt, record.response), record
    return _take(c, now, record.attempt + 1, record.token, record.stages)


def _refusal(record: Record, state: State, c: Claim) -> Refusal | None:
    # Attempt 0: every claim was released, so no attempt has failed.
    if state is State.FINAL or (state is State.FAILED and record.attempt and not c.resume_failed):
        return Refusal.FAILED
    if state is State.ABANDONED and not c.resume_abandoned:
        return Refusal.ABANDONED
    if c.max_attempts is not None and record.attempt >= c.max_attempts:
        return Refusal.ATTEMPTS
    return None


def _take(c: Claim, now: float, attempt: int, last_token: int, stages: tuple[Stage, ...]) -> tuple[Leased, Record]:
    """A new token: above the last one, and above any that a deleted record may have had (B-02)."""
    token = max(int(now * 1_000_000), last_token + 1)
    lease = Lease(c.record_id, c.owner, token, attempt, c.fingerprint, c.lease, c.ttl)
    return Leased(lease, stages), _in_progress(lease, now, stages, c.about)


def _take_again(record: Record, c: Claim, now: float) -> tuple[Leased, Record]:
    """The claim of this very owner was sent again after a lost reply: it owns the record (B-08)."""
    lease = Lease(c.record_id, c.owner, record.token, record.attempt, c.fingerprint, c.lease, c.ttl)
    after = _in_progress(lease, now, record.stages, c.about)
    after.claimed_at = record.claimed_at
    return Leased(lease, record.stages), after


def _in_progress(lease: Lease, now: float, stages: tuple[Stage, ...] = (), about: bytes = b"") -> Record:
    end = now + lease.duration
    return Record(
        lease.record_id,
        lease.fingerprint,
        Status.IN_PROGRESS,
        lease.owner,
        lease.token,
        lease.attempt,
        now,
        end,
        lease.ttl,
        end + lease.ttl,
        stages=stages,
        about=about,
    )


def _ended(
    record: Record, status: Status, response: bytes | None, now: float, ttl: float, *, final: bool = False
) -> Record:
    """The record as it is stored after the attempt: for ``ttl`` seconds from now."""
    return Record(
        record.record_id,
        record.fingerprint,
        status,
        record.owner,
        record.token,
        record.attempt,
        record.claimed_at,
        now,
        ttl,
        now + ttl,
        final,
        response,
        record.stages,
        record.about,
    )


def _owned(record: Record | None, lease: Lease, verb: type[Command[object]], now: float) -> tuple[State, State]:
    """The state found and the state to leave, for the owner's verbs; LeaseLost for anybody else (B-03)."""
    found = state_of(record, now)
    if record is not None and found is not State.ABSENT and not _is_owner(record, lease):
        raise LeaseLost(f"token {lease.token} was superseded by {record.token}")
    after = TRANSITIONS[verb].get(found)
    if after is None:
        raise LeaseLost(f"the record is {found.value} already")
    return found, after


def _is_owner(record: Record, lease: Lease) -> bool:
    return record.token == lease.token and hmac.compare_digest(record.owner, lease.owner)


def renew(record: Record | None, lease: Lease, now: float) -> tuple[Renewal, Record | None]:
    """Extend one lease from now on (B-04). Only an unfinished record has a lease to extend."""
    try:
        found, after = _owned(record, lease, Renew, now)
    except LeaseLost:
        return Renewal.LOST, record
    if found is State.ABSENT:
        return Renewal.VANISHED, record
    if after is State.COMPLETED:
        return Renewal.OWNED, record
    assert record is not None
    return Renewal.OWNED, _extended(record, lease, now)


def _extended(record: Record, lease: Lease, now: float) -> Record:
    end = now + lease.duration
    return replace(record, lease_end=end, expires_at=end + record.ttl)


def save_stage(record: Record | None, c: SaveStage, now: float) -> tuple[StageSaved, Record]:
    """Append the stage, or return the frame that is there (B-06); activity extends the lease."""
    if record and state_of(record, now) is State.COMPLETED and _is_owner(record, c.lease):
        raise AlreadyCompleted("the response is recorded; stages belong before it")
    found, _ = _owned(record, c.lease, SaveStage, now)
    if record is None or found is State.ABSENT:
        return StageSaved(c.stage.frame, recreated=True), _in_progress(c.lease, now, (c.stage,))
    for stage in record.stages:
        if (stage.name, stage.key) == (c.stage.name, c.stage.key):
            return StageSaved(stage.frame), record
    after = replace(_extended(record, c.lease, now), stages=(*record.stages, c.stage))
    return StageSaved(c.stage.frame), after


def complete(record: Record | None, c: Complete, now: float) -> tuple[Completed, Record]:
    """Store the response for the lease's ``ttl`` seconds from now. A completion sent twice keeps the first (B-08)."""
    found, _ = _owned(record, c.lease, Complete, now)
    if found is State.COMPLETED and record is not None:
        return Completed(), record
    after = record if record and found is not State.ABSENT else _in_progress(c.lease, now)
    return Completed(found is State.ABSENT), _ended(after, Status.COMPLETED, c.response, now, c.lease.ttl)


def fail(record: Record | None, c: Fail, now: float) -> tuple[None, Record | None]:
    """End the attempt; its stages stay for ``ttl`` seconds from now (B-05)."""
    found, after = _owned(record, c.lease, Fail, now)
    if record is None or found is after:
        return None, record
    return None, _ended(record, Status.FAILED, c.response, now, record.ttl, final=c.final)


def release(record: Record | None, c: Release, now: float) -> tuple[None, Record | None]:
    """Forget the claim: without stages or earlier attempts nothing is left of the record."""
    found, after = _owned(record, c.lease, Release, now)
    if record is None or found is after:
        return None, record
    if record.attempt == 1 and not record.stages:
        return None, None
    failed, resumable = fail(record, Fail(c.lease), now)
    assert resumable is not None
    return failed, replace(resumable, attempt=record.attempt - 1)


def withdraw(record: Record | None, c: Withdraw, now: float) -> tuple[None, Record | None]:
    """Take the claim back if its owner has the record. The record of another owner stays as it is (B-08c).

    The backend also remembers the owner, for ``WITHDRAWN_FOR`` seconds: see ``withdrawn_id``.
    """
    state = state_of(record, now)
    if record is None or state not in (State.ALIVE, State.ABANDONED):
        return None, record
    if not hmac.compare_digest(record.owner, c.claim.owner):
        return None, record
    lease = Lease(
        record.record_id, record.owner, record.token, record.attempt, record.fingerprint, c.claim.lease, record.ttl
    )
    return release(record, Release(lease), now)


def free(record: Record | None, c: Free, now: float) -> tuple[Freed, Record | None]:
    """Free a key for an operator, who has seen the record at ``c.token`` and in ``c.status`` (P-20).

    With ``keep_stages`` the record stays, at a token that no owner has. Its attempts no longer count, as if each claim
    had been released, so no policy refuses the next one. Since 0.1.
    """
    state = state_of(record, now)
    if record is None or state is State.ABSENT:
        return Freed.ABSENT, record
    if (record.token, record.status) != (c.token, c.status) or (c.keep_stages and state is State.COMPLETED):
        return Freed.CHANGED, record
    if state is State.ALIVE and not c.alive:
        return Freed.ALIVE, record
    if not c.keep_stages:
        return Freed.DONE, None
    token = max(int(now * 1_000_000), record.token + 1)
    fenced = replace(record, token=token, attempt=0)
    return Freed.DONE, _ended(fenced, Status.FAILED, None, now, record.ttl)


def withdrawn_id(owner: bytes) -> bytes:
    """The scope under which a backend that has reservations may remember a withdrawn owner, beside the record's id.

    It is no caller's scope: those are digests of 32 bytes, and an owner has 16.
    """
    return b"withdrawn:" + owner
