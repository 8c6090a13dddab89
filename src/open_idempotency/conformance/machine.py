"""The state machine: Hypothesis finds histories of commands on which a backend and the model disagree.

Needs Hypothesis, so ``modelled`` imports it when it is asked for. What is right is said in ``model`` alone.
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
    SaveStage,
    Stage,
    Withdraw,
)
from open_idempotency.conformance.model import Disagreement, Model
from open_idempotency.conformance.support import ManualClock

#: calls a verb of the backend, in whatever colour, and gives its answer
Call = Callable[..., object]

# Quarters of a second are exact in binary, so both sides agree on which side of an end a moment is.
LEASES = (8.0, 2.0)
TTLS = (32.0, 16.0)
STEPS = (0.25, 1.75, 4.0, 40.0)
#: seconds that pass when a record disappears: tokens grow across that as far as the clock does (B-02)
MOMENT = 0.25
RECORDS = 2

# What is listed twice is drawn twice as often: most histories are about one record and its latest owners.
_records = st.sampled_from([0, 0, 0, 1])
_latest_first = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5])
_mostly = st.sampled_from([True, True, False])
_frames = st.sampled_from([b"one", b"", b"two\x00\xff"])
_responses = st.none() | _frames
_fingerprints = st.sampled_from([b"\x01 a request"] * 5 + [b"\x01 another request"])
# One name in two keys, and one key in two names.
_stages = st.builds(Stage, st.sampled_from(["charge", "ship"]), st.sampled_from(["", "1"]), _frames)


class BackendMachine(RuleBasedStateMachine):
    """``call(verb, *arguments)`` is the backend, which must be empty and on ``clock``; ``end`` closes it."""

    def __init__(self, call: Call, clock: ManualClock, end: Callable[[], None]) -> None:
        super().__init__()
        self._call = call
        self._clock = clock
        self._end = end
        self._model = Model(clock)
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
        """Leases end, records expire."""
        self._clock.advance(seconds)

    @rule(
        record=_records, expiry=st.sampled_from([False, False, True]), beside=st.sampled_from([0.0, 0.0, -0.25, 0.25])
    )
    def time_passes_to_an_end(self, record: int, expiry: bool, beside: float) -> None:
        """To where one moment decides: the end of a lease or of a record."""
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
    ) -> None:
        """Somebody new claims."""
        owner = len(self._claims).to_bytes(16, "big")
        c = Claim(self._ids[record], fingerprint, owner, lease, ttl, resume_failed, resume_abandoned, max_attempts)
        self._claims.append(c)
        self._send(c)

    @precondition(_has_claims)
    @rule(back=_latest_first)
    def claim_again(self, back: int) -> None:
        """Sent again by the same owner (B-08), soon or late."""
        self._send(self._claims[-1 - min(back, len(self._claims) - 1)])

    @precondition(_has_claims)
    @rule(back=_latest_first)
    def withdraw(self, back: int) -> None:
        """Its caller was cancelled (B-08c); its claim may have arrived, or come later."""
        c = Withdraw(self._claims[-1 - min(back, len(self._claims) - 1)])
        self._model.withdrawn(c, self._outcome("withdraw", c))
        self._clock.advance(MOMENT)

    def _send(self, c: Claim) -> None:
        outcome = self._outcome("claim", c)
        self._model.claimed(c, outcome)
        if isinstance(outcome, Leased):
            self._leases.append(outcome.lease)

    # The owner's verbs

    @precondition(_has_claims)
    @rule(backs=st.lists(_latest_first, max_size=4))
    def renew(self, backs: list[int]) -> None:
        """One beat for many leases, stale ones among them (B-04)."""
        some = [self._lease(back) for back in backs if self._leases]
        self._model.renewed(some, self._outcome("renew", Renew(some)))

    @precondition(_has_leases)
    @rule(back=_latest_first, stage=_stages)
    def save_stage(self, back: int, stage: Stage) -> None:
        """New, sent again, or of an owner that is stale or too late."""
        self._save_stage(self._lease(back), stage)

    @precondition(_has_leases)
    @rule(back=_latest_first, response=_frames)
    def complete(self, back: int, response: bytes) -> None:
        """In time, again, late, or where the record is gone (B-08a)."""
        self._complete(self._lease(back), response)

    @precondition(_has_leases)
    @rule(back=_latest_first, final=_mostly.map(lambda mostly: not mostly), response=_responses)
    def fail(self, back: int, final: bool, response: bytes | None) -> None:
        """For good or not, with an answer to repeat or without."""
        self._fail(self._lease(back), final, response)

    @precondition(_has_leases)
    @rule(back=_latest_first)
    def release(self, back: int) -> None:
        """Given back (L-06)."""
        self._release(self._lease(back))

    @precondition(_has_leases)
    @rule(verb=st.integers(0, 4), by_token=st.booleans())
    def use_half_a_lease(self, verb: int, by_token: bool) -> None:
        """The token alone, or the owner alone, is none (B-03)."""
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
        self._clock.advance(MOMENT)

    # Operators

    @precondition(_has_claims)
    @rule(record=_records)
    def delete(self, record: int) -> None:
        """By an operator, an eviction or a flush: behind its owner's back (B-08a, B-09)."""
        outcome = self._outcome("delete", self._ids[record])
        self._same("delete", outcome, self._model.vanish(self._ids[record]))
        self._clock.advance(MOMENT)

    @precondition(_has_claims)
    @rule(limit=st.sampled_from([0, 1, 1000]))
    def purge(self, limit: int) -> None:
        """Expired records go, and the others stay (B-09)."""
        self._model.purged(limit, self._outcome("purge", limit))

    @precondition(_has_claims)
    @rule()
    def scan(self) -> None:
        """All live records (B-09)."""
        records = self._call("scan")
        assert isinstance(records, list)
        self._same("scan", sorted(record.record_id for record in records), sorted(self._model.live_ids()))
        for record in records:
            self._model.read(record.record_id, record)

    @invariant()
    def the_records_are_as_they_should_be(self) -> None:
        """After each command: what was refused has changed nothing."""
        for record_id in self._ids:
            self._model.read(record_id, self._outcome("get", Get(record_id)))

    @staticmethod
    def _same(what: str, outcome: object, wanted: object) -> None:
        if outcome != wanted:
            raise Disagreement(f"{what}: the backend gave {outcome!r}, wanted is {wanted!r}")

    def teardown(self) -> None:
        """The backend is closed, and another one is made for the next history."""
        self._end()
