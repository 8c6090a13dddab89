"""The model: SPEC section 2 said once more, as plainly as it can be, to hold a backend's answers against.

It shares no line with the decision table, so that an error there is not repeated here. It is shown each command
together with what the backend made of it, says whether that was right, and keeps what the records should now be.
Nothing here knows of Hypothesis, of a colour, or of a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from open_idempotency.backend import (
    Busy,
    Claim,
    Complete,
    Completed,
    Fail,
    Finished,
    Lease,
    Leased,
    Mismatch,
    Record,
    Refusal,
    Refused,
    Release,
    Renewal,
    SaveStage,
    Stage,
    StageSaved,
    Status,
    Withdraw,
)
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost

#: seconds by which a backend's arithmetic may be off
TOLERANCE = 0.001

#: seconds for which a withdrawn owner gets no lease
WITHDRAWN_FOR = 3600.0

RUNNING, COMPLETED, FAILED = Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED


class Disagreement(AssertionError):
    """The backend did or said something else than SPEC section 2 asks for."""


@dataclass
class Row:
    """What a record should be. Times are seconds on the backend's clock."""

    fingerprint: bytes
    owner: bytes
    token: int
    attempt: int
    claimed_at: float
    lease_end: float
    ttl: float
    expires_at: float
    status: Status = RUNNING
    final: bool = False
    response: bytes | None = None
    stages: list[Stage] = field(default_factory=list[Stage])

    def is_owned_by(self, lease: Lease) -> bool:
        """B-03: token and owner, both."""
        return (self.token, self.owner) == (lease.token, lease.owner)


class Model:
    """All records as they should be. ``clock`` is the backend's.

    Each method takes a command and the backend's ``outcome``, which is the answer or the error that was raised, and
    raises ``Disagreement``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: dict[bytes, Row] = {}
        self._last_tokens: dict[bytes, int] = {}
        self._withdrawn: dict[tuple[bytes, bytes], float] = {}

    def live(self, record_id: bytes) -> Row | None:
        """Expired is absent."""
        row = self._rows.get(record_id)
        return row if row is not None and self._clock() < row.expires_at else None

    def live_ids(self) -> set[bytes]:
        """The ids of all records that are not expired."""
        return {record_id for record_id in self._rows if self.live(record_id) is not None}

    def vanish(self, record_id: bytes) -> bool:
        """The record is gone (B-08a, B-09); whether there was one."""
        was_live = self.live(record_id) is not None
        self._rows.pop(record_id, None)
        return was_live

    def purged(self, limit: int, outcome: object) -> None:
        """B-09: expired records alone, and no more of them than asked for. Some may have gone by themselves.

        Owners that are refused no more may count as well.
        """
        expired = [record_id for record_id in self._rows if self.live(record_id) is None]
        most = min(limit, len(expired) + sum(end <= self._clock() for end in self._withdrawn.values()))
        if not isinstance(outcome, int) or not 0 <= outcome <= most:
            _disagree("purge", outcome, f"at most {most}")
        if len(expired) <= limit:
            for record_id in expired:
                del self._rows[record_id]

    # Claiming

    def claimed(self, c: Claim, outcome: object) -> None:
        """B-01, B-08, and O-02 to O-10."""
        row, now = self.live(c.record_id), self._clock()
        late = self._withdrawn.get((c.record_id, c.owner), now) > now
        if row is None and late:
            _expect("claim", outcome, Refused(Refusal.WITHDRAWN, 0))
        elif row is None:
            self._granted(c, outcome, attempt=1, stages=[])
        elif row.fingerprint != c.fingerprint:
            _expect("claim", outcome, Mismatch())
        elif row.status is COMPLETED:
            _expect("claim", outcome, Finished(row.response or b""))
        elif row.status is RUNNING and row.owner == c.owner and late:
            _expect("claim", outcome, Refused(Refusal.WITHDRAWN, row.attempt))
        elif row.status is RUNNING and row.owner == c.owner:
            self._granted_again(row, c, outcome)
        elif row.status is RUNNING and now < row.lease_end:
            _expect_busy(outcome, Busy(now - row.claimed_at, row.lease_end - now))
        elif (reason := _why_refused(row, c)) is not None:
            _expect("claim", outcome, Refused(reason, row.attempt, row.response))
        elif late:
            _expect("claim", outcome, Refused(Refusal.WITHDRAWN, row.attempt))
        else:
            self._granted(c, outcome, row.attempt + 1, row.stages)

    def _granted(self, c: Claim, outcome: object, attempt: int, stages: list[Stage]) -> None:
        lease = _lease(outcome, c, attempt, stages)
        before = self._last_tokens.get(c.record_id, 0)
        if lease.token <= before:
            _disagree("token (B-02)", lease.token, f"more than {before}")
        self._rows[c.record_id] = self._running(lease, list(stages))
        self._note_token(lease)

    def _granted_again(self, row: Row, c: Claim, outcome: object) -> None:
        """B-08: the same lease, which now lasts from now on."""
        lease = _lease(outcome, c, row.attempt, row.stages)
        _expect("token of a claim sent again (B-08)", lease.token, row.token)
        again = self._running(lease, row.stages)
        again.claimed_at = row.claimed_at
        self._rows[c.record_id] = again

    def _running(self, lease: Lease, stages: list[Stage]) -> Row:
        now = self._clock()
        end = now + lease.duration
        return Row(
            lease.fingerprint, lease.owner, lease.token, lease.attempt, now, end, lease.ttl, end + lease.ttl,
            stages=stages,
        )  # fmt: skip

    def _note_token(self, lease: Lease) -> None:
        self._last_tokens[lease.record_id] = max(lease.token, self._last_tokens.get(lease.record_id, 0))

    # The owner's verbs

    def renewed(self, leases: Iterable[Lease], outcome: object) -> None:
        """B-03, B-04."""
        _expect("renew", outcome if isinstance(outcome, Exception) else list(_many(outcome)), self._renewals(leases))

    def _renewals(self, leases: Iterable[Lease]) -> list[Renewal]:
        return [self._renewal(lease) for lease in leases]

    def _renewal(self, lease: Lease) -> Renewal:
        row = self.live(lease.record_id)
        if row is None:
            return Renewal.VANISHED
        if not row.is_owned_by(lease) or row.status is FAILED:
            return Renewal.LOST
        if row.status is RUNNING:
            self._extend(row, lease)
        return Renewal.OWNED

    def _extend(self, row: Row, lease: Lease) -> None:
        row.lease_end = self._clock() + lease.duration
        row.expires_at = row.lease_end + row.ttl

    def stage_saved(self, c: SaveStage, outcome: object) -> None:
        """B-06: the first value stays; B-08a: a record that vanished comes back; S-03: too late is an error."""
        row = self.live(c.lease.record_id)
        if row is None:
            self._recreate(c.lease).stages.append(c.stage)
            _expect("save_stage", outcome, StageSaved(c.stage.frame, recreated=True))
            return
        if row.is_owned_by(c.lease) and row.status is COMPLETED:
            _expect_error("save_stage", outcome, AlreadyCompleted)
            return
        if not row.is_owned_by(c.lease) or row.status is not RUNNING:
            _expect_error("save_stage", outcome, LeaseLost)
            return
        for stage in row.stages:
            if (stage.name, stage.key) == (c.stage.name, c.stage.key):
                _expect("save_stage", outcome, StageSaved(stage.frame))
                return
        row.stages.append(c.stage)
        self._extend(row, c.lease)
        _expect("save_stage", outcome, StageSaved(c.stage.frame))

    def completed(self, c: Complete, outcome: object) -> None:
        """B-05, B-08, B-08a: final from now on, and the first response stays."""
        row = self.live(c.lease.record_id)
        recreated = row is None
        if row is None:
            row = self._recreate(c.lease)
        elif not row.is_owned_by(c.lease) or row.status is FAILED:
            _expect_error("complete", outcome, LeaseLost)
            return
        if row.status is RUNNING:
            self._end(row, COMPLETED, c.response)
        _expect("complete", outcome, Completed(recreated=recreated))

    def failed(self, c: Fail, outcome: object) -> None:
        """B-05, B-08: the attempt ends, its stages stay; where there is no record nothing is to be said."""
        row = self.live(c.lease.record_id)
        if row is not None and (not row.is_owned_by(c.lease) or row.status is COMPLETED):
            _expect_error("fail", outcome, LeaseLost)
            return
        _expect("fail", outcome, None)
        if row is not None and row.status is RUNNING:
            self._end(row, FAILED, c.response)
            row.final = c.final

    def released(self, c: Release, outcome: object) -> None:
        """L-06: as if it had not been claimed, but for stages and earlier attempts."""
        row = self.live(c.lease.record_id)
        if row is not None and (not row.is_owned_by(c.lease) or row.status is COMPLETED or row.final):
            _expect_error("release", outcome, LeaseLost)
            return
        _expect("release", outcome, None)
        if row is not None and row.status is RUNNING:
            self._give_back(c.lease.record_id, row)

    def withdrawn(self, c: Withdraw, outcome: object) -> None:
        """B-08c: what its owner has claimed is given back, and it gets no lease any more."""
        _expect("withdraw", outcome, None)
        row = self.live(c.claim.record_id)
        if row is not None and row.status is RUNNING and row.owner == c.claim.owner:
            self._give_back(c.claim.record_id, row)
        self._withdrawn[c.claim.record_id, c.claim.owner] = self._clock() + WITHDRAWN_FOR

    def _give_back(self, record_id: bytes, row: Row) -> None:
        if row.attempt == 1 and not row.stages:
            del self._rows[record_id]
            return
        self._end(row, FAILED, None)
        row.attempt -= 1

    def _end(self, row: Row, status: Status, response: bytes | None) -> None:
        now = self._clock()
        row.status, row.response, row.lease_end, row.expires_at = status, response, now, now + row.ttl

    def _recreate(self, lease: Lease) -> Row:
        row = self._rows[lease.record_id] = self._running(lease, [])
        self._note_token(lease)
        return row

    # Looking

    def read(self, record_id: bytes, outcome: object) -> None:
        """B-09: every field, and nothing where nothing should be. Reading has changed nothing."""
        row = self.live(record_id)
        if row is None or not isinstance(outcome, Record):
            _expect("get", outcome, row)
            return
        exact = ("fingerprint", "owner", "token", "attempt", "status", "final", "response", "ttl")
        for name in exact:
            _expect(f"get: {name}", getattr(outcome, name), getattr(row, name))
        _expect("get: stages", list(outcome.stages), row.stages)
        for name in ("claimed_at", "lease_end", "expires_at"):
            _expect_near(f"get: {name}", getattr(outcome, name), getattr(row, name))


def _why_refused(row: Row, c: Claim) -> Refusal | None:
    """O-08, O-09, O-10: whether somebody whose claim finds no owner may run."""
    given_back = row.status is FAILED and row.attempt == 0
    if row.final or (row.status is FAILED and not given_back and not c.resume_failed):
        return Refusal.FAILED
    if row.status is RUNNING and not c.resume_abandoned:
        return Refusal.ABANDONED
    if c.max_attempts is not None and row.attempt >= c.max_attempts:
        return Refusal.ATTEMPTS
    return None


def _lease(outcome: object, c: Claim, attempt: int, stages: list[Stage]) -> Lease:
    """The lease of an outcome that has to be one; the token is the backend's to choose."""
    if not isinstance(outcome, Leased):
        _disagree("claim", outcome, f"Leased, attempt {attempt}")
    lease = outcome.lease
    _expect("claim", lease, Lease(c.record_id, c.owner, lease.token, attempt, c.fingerprint, c.lease, c.ttl))
    _expect("claim: stages", list(outcome.stages), stages)
    return lease


def _many(outcome: object) -> Iterable[object]:
    return outcome if isinstance(outcome, Iterable) else [outcome]


def _expect(what: str, outcome: object, wanted: object) -> None:
    if outcome != wanted:
        _disagree(what, outcome, repr(wanted))


def _expect_error(what: str, outcome: object, wanted: type[Exception]) -> None:
    if not isinstance(outcome, wanted):
        _disagree(what, outcome, wanted.__name__)


def _expect_busy(outcome: object, wanted: Busy) -> None:
    if not isinstance(outcome, Busy):
        _disagree("claim", outcome, repr(wanted))
    _expect_near("claim: elapsed", outcome.elapsed, wanted.elapsed)
    _expect_near("claim: remaining", outcome.remaining, wanted.remaining)


def _expect_near(what: str, outcome: float, wanted: float) -> None:
    if abs(outcome - wanted) > TOLERANCE:
        _disagree(what, outcome, repr(wanted))


def _disagree(what: str, outcome: object, wanted: str) -> NoReturn:
    raise Disagreement(f"{what}: the backend gave {outcome!r}, wanted is {wanted}")
