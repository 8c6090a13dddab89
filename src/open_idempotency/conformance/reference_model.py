"""The reference model: the contract of a backend (B-01 to B-09) in its simplest form, for comparison with a backend.

The model shares no code with ``open_idempotency.decisions``, so that an error there is not repeated here. It is given
each command with the backend's outcome, raises ``Disagreement`` if the outcome is wrong, and keeps the state that the
records should have. It imports neither Hypothesis nor a database. Records and quotas have a model each, because
they do not depend on each other.
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
    OverQuota,
    Record,
    Refusal,
    Refused,
    Release,
    Renewal,
    Reserve,
    Reserved,
    SaveStage,
    Stage,
    StageSaved,
    Status,
    Unreserve,
    Withdraw,
)
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost

#: seconds by which a time of the backend may differ, since backends round differently
TOLERANCE = 0.001

#: seconds for which a withdrawn owner gets no lease (B-08c)
WITHDRAWN_FOR = 3600.0

RUNNING, COMPLETED, FAILED = Status.IN_PROGRESS, Status.COMPLETED, Status.FAILED


class Disagreement(AssertionError):
    """An outcome or a record of the backend differs from what the contract requires."""


@dataclass
class Row:
    """The state that a record should have. Times are seconds on the backend's clock."""

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
    about: bytes = b""

    def is_owned_by(self, lease: Lease) -> bool:
        """Whether token and owner both match (B-03)."""
        return (self.token, self.owner) == (lease.token, lease.owner)


class RecordModel:
    """The state that all records should have. ``clock``: the backend's clock.

    Each method takes a command and its ``outcome``, which is what the backend returned or the error that it raised.
    Each raises ``Disagreement`` if the outcome is wrong.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: dict[bytes, Row] = {}
        self._last_tokens: dict[bytes, int] = {}
        self._withdrawn: dict[tuple[bytes, bytes], float] = {}

    def live(self, record_id: bytes) -> Row | None:
        """The row of a record; None if it is absent or expired."""
        row = self._rows.get(record_id)
        return row if row is not None and self._clock() < row.expires_at else None

    def live_ids(self) -> set[bytes]:
        """The ids of all records that are not expired."""
        return {record_id for record_id in self._rows if self.live(record_id) is not None}

    def vanish(self, record_id: bytes) -> bool:
        """Remove a record, as a deletion or an eviction does (B-08a, B-09). Returns whether it was live."""
        was_live = self.live(record_id) is not None
        self._rows.pop(record_id, None)
        return was_live

    def purged(self, limit: int, outcome: object) -> None:
        """B-09: a purge deletes at most ``limit`` records, all of them expired.

        A backend may have dropped some before. Withdrawn owners whose hour has passed may count as well.
        """
        expired = [record_id for record_id in self._rows if self.live(record_id) is None]
        most = min(limit, len(expired) + sum(end <= self._clock() for end in self._withdrawn.values()))
        if not isinstance(outcome, int) or not 0 <= outcome <= most:
            _disagree("purge", outcome, f"at most {most}")
        if len(expired) <= limit:
            for record_id in expired:
                del self._rows[record_id]

    # Claims

    def claimed(self, c: Claim, outcome: object) -> None:
        """B-01, B-08 and O-02 to O-10: the outcome of a claim in every state of its record."""
        row, now = self.live(c.record_id), self._clock()
        is_withdrawn = self._withdrawn.get((c.record_id, c.owner), now) > now
        if row is None and is_withdrawn:
            _expect("claim", outcome, Refused(Refusal.WITHDRAWN, 0))
        elif row is None:
            self._granted(c, outcome, attempt=1, stages=[])
        elif row.fingerprint != c.fingerprint:
            _expect("claim", outcome, Mismatch())
        elif row.status is COMPLETED:
            _expect("claim", outcome, Finished(row.response or b""))
        elif row.status is RUNNING and row.owner == c.owner and is_withdrawn:
            _expect("claim", outcome, Refused(Refusal.WITHDRAWN, row.attempt))
        elif row.status is RUNNING and row.owner == c.owner:
            self._granted_again(row, c, outcome)
        elif row.status is RUNNING and now < row.lease_end:
            _expect_busy(outcome, Busy(now - row.claimed_at, row.lease_end - now))
        elif (reason := _refusal(row, c)) is not None:
            _expect("claim", outcome, Refused(reason, row.attempt, row.response))
        elif is_withdrawn:
            _expect("claim", outcome, Refused(Refusal.WITHDRAWN, row.attempt))
        else:
            self._granted(c, outcome, row.attempt + 1, row.stages)

    def _granted(self, c: Claim, outcome: object, attempt: int, stages: list[Stage]) -> None:
        lease = _lease_of(outcome, c, attempt, stages)
        before = self._last_tokens.get(c.record_id, 0)
        if lease.token <= before:
            _disagree("token (B-02)", lease.token, f"more than {before}")
        self._rows[c.record_id] = self._running(lease, list(stages), c.about)
        self._note_token(lease)

    def _granted_again(self, row: Row, c: Claim, outcome: object) -> None:
        """B-08: the owner gets the same lease again, and it lasts from now on."""
        lease = _lease_of(outcome, c, row.attempt, row.stages)
        _expect("token of a claim sent again (B-08)", lease.token, row.token)
        again = self._running(lease, row.stages, c.about)
        again.claimed_at = row.claimed_at
        self._rows[c.record_id] = again

    def _running(self, lease: Lease, stages: list[Stage], about: bytes = b"") -> Row:
        now = self._clock()
        end = now + lease.duration
        return Row(
            lease.fingerprint, lease.owner, lease.token, lease.attempt, now, end, lease.ttl, end + lease.ttl,
            stages=stages, about=about,
        )  # fmt: skip

    def _note_token(self, lease: Lease) -> None:
        self._last_tokens[lease.record_id] = max(lease.token, self._last_tokens.get(lease.record_id, 0))

    # The owner's verbs

    def renewed(self, leases: Iterable[Lease], outcome: object) -> None:
        """B-03, B-04: one result for each lease, in order, and only leases that are owned are extended."""
        _expect("renew", list(outcome) if isinstance(outcome, Iterable) else outcome, self._renewals(leases))

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
        """B-06: the first value stays. B-08a: a vanished record is recreated. S-03: a completed one takes no stage."""
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
        """B-05, B-08, B-08a: the record is completed, and its first response stays."""
        row = self.live(c.lease.record_id)
        recreated = row is None
        if row is None:
            row = self._recreate(c.lease)
        elif not row.is_owned_by(c.lease) or row.status is FAILED:
            _expect_error("complete", outcome, LeaseLost)
            return
        if row.status is RUNNING:
            row.ttl = c.lease.ttl
            self._end(row, COMPLETED, c.response)
        _expect("complete", outcome, Completed(recreated=recreated))

    def failed(self, c: Fail, outcome: object) -> None:
        """B-05, B-08: the attempt ends and its stages stay; without a record there is no effect."""
        row = self.live(c.lease.record_id)
        if row is not None and (not row.is_owned_by(c.lease) or row.status is COMPLETED):
            _expect_error("fail", outcome, LeaseLost)
            return
        _expect("fail", outcome, None)
        if row is not None and row.status is RUNNING:
            self._end(row, FAILED, c.response)
            row.final = c.final

    def released(self, c: Release, outcome: object) -> None:
        """L-06: the attempt does not count; stages and earlier attempts stay."""
        row = self.live(c.lease.record_id)
        if row is not None and (not row.is_owned_by(c.lease) or row.status is COMPLETED or row.final):
            _expect_error("release", outcome, LeaseLost)
            return
        _expect("release", outcome, None)
        if row is not None and row.status is RUNNING:
            self._forget_attempt(c.lease.record_id, row)

    def withdrawn(self, c: Withdraw, outcome: object) -> None:
        """B-08c: the owner's claim is released, and for an hour the owner gets no lease."""
        _expect("withdraw", outcome, None)
        row = self.live(c.claim.record_id)
        if row is not None and row.status is RUNNING and row.owner == c.claim.owner:
            self._forget_attempt(c.claim.record_id, row)
        self._withdrawn[c.claim.record_id, c.claim.owner] = self._clock() + WITHDRAWN_FOR

    def _forget_attempt(self, record_id: bytes, row: Row) -> None:
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

    # Reading

    def read(self, record_id: bytes, outcome: object) -> None:
        """B-09: every field of the record is as it should be; None if there should be no record."""
        row = self.live(record_id)
        if row is None or not isinstance(outcome, Record):
            _expect("get", outcome, row)
            return
        exact = ("fingerprint", "owner", "token", "attempt", "status", "final", "response", "ttl", "about")
        for name in exact:
            _expect(f"get: {name}", getattr(outcome, name), getattr(row, name))
        _expect("get: stages", list(outcome.stages), row.stages)
        for name in ("claimed_at", "lease_end", "expires_at"):
            _expect_near(f"get: {name}", getattr(outcome, name), getattr(row, name))


def _refusal(row: Row, c: Claim) -> Refusal | None:
    """O-08, O-09, O-10: why a claim of a failed or abandoned record is refused; None if it gets the lease."""
    is_released = row.status is FAILED and row.attempt == 0
    if row.final or (row.status is FAILED and not is_released and not c.resume_failed):
        return Refusal.FAILED
    if row.status is RUNNING and not c.resume_abandoned:
        return Refusal.ABANDONED
    if c.max_attempts is not None and row.attempt >= c.max_attempts:
        return Refusal.ATTEMPTS
    return None


def _lease_of(outcome: object, c: Claim, attempt: int, stages: list[Stage]) -> Lease:
    """The lease of a claim that has to succeed; its token is chosen by the backend."""
    if not isinstance(outcome, Leased):
        _disagree("claim", outcome, f"Leased, attempt {attempt}")
    lease = outcome.lease
    _expect("claim", lease, Lease(c.record_id, c.owner, lease.token, attempt, c.fingerprint, c.lease, c.ttl))
    _expect("claim: stages", list(outcome.stages), stages)
    return lease


@dataclass
class Reservation:
    """When one key's reservation ends: at the earliest and at the latest, in seconds on the backend's clock."""

    earliest: float
    latest: float


class QuotaModel:
    """The reservations that one scope should have. ``clock``: the backend's clock.

    A reservation lasts for lease plus TTL from its key's latest request, and for up to one more lease, as the backend
    chooses. In between it may count or not, so both outcomes are right. The methods take a command and its ``outcome``,
    as those of ``RecordModel`` do, and raise ``Disagreement``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reservations: dict[bytes, Reservation] = {}

    def reserved(self, c: Reserve, outcome: object) -> None:
        """At most ``limit`` keys are admitted, and a key that counts already is never refused."""
        now = self._clock()
        if outcome == Reserved():
            _require("reserve", outcome, self._refusal(c, now))
            self._take(c, now)
            return
        if not isinstance(outcome, OverQuota) or not self._may_refuse(c, now):
            _require("reserve", outcome, "Reserved(), or OverQuota if enough other keys count")
            return
        own = self._reservations.get(c.record_id)
        if own is not None:  # the backend says that it has ended; a purge may still delete it
            own.latest = min(own.latest, now)
        _require("reserve", outcome, self._wrong_end(outcome.remaining, now))

    def unreserved(self, c: Unreserve, outcome: object) -> None:
        """The key no longer counts; without a reservation there is no effect."""
        self._reservations.pop(c.record_id, None)
        _require("unreserve", outcome, None if outcome is None else "None")

    def next_end(self) -> float | None:
        """The earliest moment at which a live reservation may end; None without one."""
        return min((one.earliest for one in self._reservations.values() if one.earliest > self._clock()), default=None)

    def purged(self, limit: int, outcome: object) -> None:
        """A purge deletes at most ``limit`` reservations, all of them expired. Some may have been dropped before."""
        now = self._clock()
        most = min(limit, sum(one.earliest <= now for one in self._reservations.values()))
        if not isinstance(outcome, int) or not 0 <= outcome <= most:
            _require("purge", outcome, f"at most {most}")

    def _take(self, c: Reserve, now: float) -> None:
        earliest, latest = now + c.lease + c.ttl, now + 2 * c.lease + c.ttl
        before = self._reservations.get(c.record_id)
        if before is not None and before.latest > now:  # a shorter request does not shorten it
            earliest, latest = max(earliest, before.earliest), max(latest, before.latest)
        self._reservations[c.record_id] = Reservation(earliest, latest)

    def _refusal(self, c: Reserve, now: float) -> str | None:
        """The outcome that was required instead of ``Reserved``; None if ``Reserved`` is right."""
        own = self._reservations.get(c.record_id)
        counting = sum(one.earliest > now for one in self._others(c))
        return "OverQuota" if (own is None or own.latest <= now) and counting >= c.limit else None

    def _may_refuse(self, c: Reserve, now: float) -> bool:
        own = self._reservations.get(c.record_id)
        possibly_counting = sum(one.latest > now for one in self._others(c))
        return (own is None or own.earliest <= now) and possibly_counting >= c.limit

    def _others(self, c: Reserve) -> Iterable[Reservation]:
        return (one for key, one in self._reservations.items() if key != c.record_id)

    def _wrong_end(self, remaining: float, now: float) -> str | None:
        """What ``remaining`` has to be; None if it is between the first possible and the first certain end."""
        soonest = min(one.earliest for one in self._reservations.values() if one.latest > now) - now
        latest = (
            min((one.latest for one in self._reservations.values() if one.earliest > now), default=remaining + now)
            - now
        )
        if soonest - TOLERANCE <= remaining <= latest + TOLERANCE or (soonest <= 0 and remaining >= 0):
            return None
        return f"an end between {soonest} and {latest} s"


def _require(what: str, outcome: object, expected: str | None) -> None:
    """Raise ``Disagreement`` unless ``expected`` is None, which means that the outcome is right."""
    if expected is not None:
        _disagree(what, outcome, expected)


def _expect(what: str, outcome: object, expected: object) -> None:
    if outcome != expected:
        _disagree(what, outcome, repr(expected))


def _expect_error(what: str, outcome: object, expected: type[Exception]) -> None:
    if not isinstance(outcome, expected):
        _disagree(what, outcome, expected.__name__)


def _expect_busy(outcome: object, expected: Busy) -> None:
    if not isinstance(outcome, Busy):
        _disagree("claim", outcome, repr(expected))
    _expect_near("claim: elapsed", outcome.elapsed, expected.elapsed)
    _expect_near("claim: remaining", outcome.remaining, expected.remaining)


def _expect_near(what: str, outcome: float, expected: float) -> None:
    if abs(outcome - expected) > TOLERANCE:
        _disagree(what, outcome, repr(expected))


def _disagree(what: str, outcome: object, expected: str) -> NoReturn:
    raise Disagreement(f"{what}: the backend returned or raised {outcome!r}; the contract requires {expected}")
