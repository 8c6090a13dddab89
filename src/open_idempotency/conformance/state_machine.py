"""Hypothesis state machines: random histories of commands for a backend, compared with the reference model.

This module needs Hypothesis, so ``model_check`` imports it lazily. It only chooses commands; ``reference_model``
decides which outcomes are right. Records and quotas have a machine each, because they do not depend on each other.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from open_idempotency.backend import (
    Claim,
    Complete,
    Fail,
    Get,
    Lease,
    Leased,
    Release,
    Renew,
    Reserve,
    SaveStage,
    Stage,
    Unreserve,
    Withdraw,
)
from open_idempotency.conformance.reference_model import Disagreement, QuotaModel, RecordModel
from open_idempotency.conformance.support import ManualClock

#: calls a verb of a sync or async backend, and returns what the verb returns
Call = Callable[..., object]

# Quarters of a second are exact in binary, so backend and model agree whether a moment is before or after an end.
LEASES = (8.0, 2.0)
TTLS = (32.0, 16.0)
ABOUTS = (b"", b"one", b"\x00 two \xff")
STEPS = (0.25, 1.75, 4.0, 40.0)
#: seconds that pass when a record disappears: afterwards tokens only grow with the clock (B-02)
AFTER_REMOVAL = 0.25
RECORDS = 2
KEYS = 4
LIMITS = (2, 1, 3)

# A value that is listed twice is drawn twice as often: most histories are about one record and its latest owners.
_records = st.sampled_from([0, 0, 0, 1])
_latest_first = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5])
_keys = st.integers(0, KEYS - 1)
_mostly = st.sampled_from([True, True, False])
_frames = st.sampled_from([b"one", b"", b"two\x00\xff"])
_responses = st.none() | _frames
_fingerprints = st.sampled_from([b"\x01 a request"] * 5 + [b"\x01 another request"])
# One name with two keys, and one key with two names.
_stages = st.builds(Stage, st.sampled_from(["charge", "ship"]), st.sampled_from(["", "1"]), _frames)


class RecordMachine(RuleBasedStateMachine):
    """Histories of records. ``call``: the backend, empty and on ``clock``. ``end``: closes the backend."""

    def __init__(self, call: Call, clock: ManualClock, end: Callable[[], None]) -> None:
        super().__init__()
        self._call = call
        self._clock = clock
        self._end = end
        self._model = RecordModel(clock)
        prefix = secrets.token_bytes(8)
        self._ids = [prefix + bytes([number]) for number in range(RECORDS)]
        self._claims: list[Claim] = []
        self._leases: list[Lease] = []

    def _outcome(self, verb: str, *arguments: object) -> object:
        try:
            return self._call(verb, *arguments)
        except Exception as error:
            return error

    def _lease(self, back: int) -> Lease:
        return self._leases[-1 - min(back, len(self._leases) - 1)]

    def _has_claims(self) -> bool:
        return bool(self._claims)

    def _has_leases(self) -> bool:
        return bool(self._leases)

    # Time

    @precondition(_has_claims)
    @rule(seconds=st.sampled_from(STEPS))
    def time_passes(self, seconds: float) -> None:
        """Time passes, so leases end and records expire."""
        self._clock.advance(seconds)

    @rule(
        record=_records, expiry=st.sampled_from([False, False, True]), beside=st.sampled_from([0.0, 0.0, -0.25, 0.25])
    )
    def time_passes_to_an_end(self, record: int, expiry: bool, beside: float) -> None:
        """Time passes to the end of a lease or record, or a quarter of a second beside it."""
        row = self._model.live(self._ids[record])
        if row is not None:
            end = row.expires_at if expiry else row.lease_end
            self._clock.advance(max(0.0, end + beside - self._clock()))

    # Claims

    @rule(
        record=_records,
        fingerprint=_fingerprints,
        lease=st.sampled_from(LEASES),
        ttl=st.sampled_from(TTLS),
        resume_failed=_mostly,
        resume_abandoned=_mostly,
        max_attempts=st.sampled_from([None, 2, 1]),
        about=st.sampled_from(ABOUTS),
    )
    def request(
        self,
        record: int,
        fingerprint: bytes,
        lease: float,
        ttl: float,
        resume_failed: bool,
        resume_abandoned: bool,
        max_attempts: int | None,
        about: bytes,
    ) -> None:
        """A new owner claims."""
        owner = len(self._claims).to_bytes(16, "big")
        takeovers = (resume_failed, resume_abandoned, max_attempts)
        c = Claim(self._ids[record], fingerprint, owner, lease, ttl, *takeovers, about)
        self._claims.append(c)
        self._send(c)

    @precondition(_has_claims)
    @rule(back=_latest_first)
    def claim_again(self, back: int) -> None:
        """An owner sends its claim again (B-08), soon or late."""
        self._send(self._claims[-1 - min(back, len(self._claims) - 1)])

    @precondition(_has_claims)
    @rule(back=_latest_first)
    def withdraw(self, back: int) -> None:
        """A claim whose caller was cancelled is withdrawn (B-08c), whether or not it has arrived."""
        c = Withdraw(self._claims[-1 - min(back, len(self._claims) - 1)])
        self._model.withdrawn(c, self._outcome("withdraw", c))
        self._clock.advance(AFTER_REMOVAL)

    def _send(self, c: Claim) -> None:
        outcome = self._outcome("claim", c)
        self._model.claimed(c, outcome)
        if isinstance(outcome, Leased):
            self._leases.append(outcome.lease)

    # An owner's verbs

    @precondition(_has_claims)
    @rule(backs=st.lists(_latest_first, max_size=4))
    def renew(self, backs: list[int]) -> None:
        """A heartbeat renews many leases, some of them stale (B-04)."""
        some = [self._lease(back) for back in backs if self._leases]
        self._model.renewed(some, self._outcome("renew", Renew(some)))

    @precondition(_has_leases)
    @rule(back=_latest_first, stage=_stages)
    def save_stage(self, back: int, stage: Stage) -> None:
        """An owner saves a stage: in time, again, stale, or after its attempt has ended."""
        self._save_stage(self._lease(back), stage)

    @precondition(_has_leases)
    @rule(back=_latest_first, response=_frames)
    def complete(self, back: int, response: bytes) -> None:
        """An owner completes: in time, again, stale, or after the record vanished (B-08a)."""
        self._complete(self._lease(back), response)

    @precondition(_has_leases)
    @rule(back=_latest_first, final=_mostly.map(lambda mostly: not mostly), response=_responses)
    def fail(self, back: int, final: bool, response: bytes | None) -> None:
        """An owner fails, finally or not, with or without a response."""
        self._fail(self._lease(back), final, response)

    @precondition(_has_leases)
    @rule(back=_latest_first)
    def release(self, back: int) -> None:
        """An owner releases its claim (L-06)."""
        self._release(self._lease(back))

    @precondition(_has_leases)
    @rule(verb=st.integers(0, 4), by_token=st.booleans())
    def use_half_a_lease(self, verb: int, by_token: bool) -> None:
        """A lease with only the token or only the owner right is refused (B-03)."""
        lease = self._lease(0)
        forged = replace(lease, owner=b"\xff" * 16) if by_token else replace(lease, token=lease.token + 1)
        uses: tuple[Callable[[], None], ...] = (
            lambda: self._save_stage(forged, Stage("charge", "", b"forged")),
            lambda: self._complete(forged, b"forged"),
            lambda: self._fail(forged, False, None),
            lambda: self._release(forged),
            lambda: self._model.renewed([forged], self._outcome("renew", Renew([forged]))),
        )
        uses[verb]()

    def _save_stage(self, lease: Lease, stage: Stage) -> None:
        c = SaveStage(lease, stage)
        self._model.stage_saved(c, self._outcome("save_stage", c))

    def _complete(self, lease: Lease, response: bytes) -> None:
        c = Complete(lease, response)
        self._model.completed(c, self._outcome("complete", c))

    def _fail(self, lease: Lease, final: bool, response: bytes | None) -> None:
        c = Fail(lease, final, response)
        self._model.failed(c, self._outcome("fail", c))

    def _release(self, lease: Lease) -> None:
        c = Release(lease)
        self._model.released(c, self._outcome("release", c))
        self._clock.advance(AFTER_REMOVAL)

    # Operators

    @precondition(_has_claims)
    @rule(record=_records)
    def delete(self, record: int) -> None:
        """An operator, an eviction or a flush removes the record while its owner may run (B-08a, B-09)."""
        outcome = self._outcome("delete", self._ids[record])
        _check_equal("delete", outcome, self._model.vanish(self._ids[record]))
        self._clock.advance(AFTER_REMOVAL)

    @precondition(_has_claims)
    @rule(limit=st.sampled_from([0, 1, 1000]))
    def purge(self, limit: int) -> None:
        """A purge deletes expired records only (B-09)."""
        self._model.purged(limit, self._outcome("purge", limit))

    @precondition(_has_claims)
    @rule()
    def scan(self) -> None:
        """A scan returns all live records (B-09)."""
        records = self._call("scan")
        assert isinstance(records, list)
        _check_equal("scan", sorted(record.record_id for record in records), sorted(self._model.live_ids()))
        for record in records:
            self._model.read(record.record_id, record)

    @invariant()
    def records_match_the_model(self) -> None:
        """After each command every record is as the model has it, so refused commands have changed nothing."""
        for record_id in self._ids:
            self._model.read(record_id, self._outcome("get", Get(record_id)))

    def teardown(self) -> None:
        """Close the backend; the next history gets a new one."""
        self._end()


def _check_equal(what: str, outcome: object, expected: object) -> None:
    if outcome != expected:
        raise Disagreement(f"{what}: the backend returned or raised {outcome!r}; the contract requires {expected!r}")


class QuotaMachine(RuleBasedStateMachine):
    """Histories of quotas. ``call``: the backend, empty and on ``clock``. ``end``: closes the backend."""

    def __init__(self, call: Call, clock: ManualClock, end: Callable[[], None]) -> None:
        super().__init__()
        self._call = call
        self._clock = clock
        self._end = end
        self._model = QuotaModel(clock)
        self._scope_id = secrets.token_bytes(32)

    def _record_id(self, key: int) -> bytes:
        return self._scope_id[:8] + bytes([key])

    def _outcome(self, verb: str, argument: object) -> object:
        try:
            return self._call(verb, argument)
        except Exception as error:
            return error

    def _has_reservations(self) -> bool:
        return self._model.next_end() is not None

    @rule(key=_keys, limit=st.sampled_from(LIMITS), lease=st.sampled_from(LEASES), ttl=st.sampled_from(TTLS))
    def reserve(self, key: int, limit: int, lease: float, ttl: float) -> None:
        """One of the scope's keys is reserved; it may count already."""
        c = Reserve(self._scope_id, self._record_id(key), limit, lease, ttl)
        self._model.reserved(c, self._outcome("reserve", c))

    @rule(key=_keys)
    def unreserve(self, key: int) -> None:
        """A key's slot is freed, whether or not it has one."""
        c = Unreserve(self._scope_id, self._record_id(key))
        self._model.unreserved(c, self._outcome("unreserve", c))

    @precondition(_has_reservations)
    @rule(seconds=st.sampled_from(STEPS))
    def time_passes(self, seconds: float) -> None:
        """Time passes, so reservations end."""
        self._clock.advance(seconds)

    @precondition(_has_reservations)
    @rule(beside=st.sampled_from([0.0, -0.25, 0.25]))
    def time_passes_to_an_end(self, beside: float) -> None:
        """Time passes to the first end of a reservation, or a quarter of a second beside it."""
        end = self._model.next_end()
        assert end is not None
        self._clock.advance(max(0.0, end + beside - self._clock()))

    @rule(limit=st.sampled_from([0, 1, 1000]))
    def purge(self, limit: int) -> None:
        """A purge deletes expired reservations only (B-09)."""
        self._model.purged(limit, self._outcome("purge", limit))

    def teardown(self) -> None:
        """Close the backend; the next history gets a new one."""
        self._end()
