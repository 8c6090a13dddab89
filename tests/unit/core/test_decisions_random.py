"""The invariants of one record under random histories of claims, crashes, resends and clock moves."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from open_idempotency import decisions
from open_idempotency._core.commands import Claim, Complete, Fail, Release, SaveStage
from open_idempotency._core.models import Finished, Lease, Leased, Record, Renewal, Stage, Status
from open_idempotency.decisions import State, state_of
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost
from tests.effort import times
from tests.unit.builders import PRINT, RECORD

LEASE, TTL = 10.0, 50.0


class OneRecord(RuleBasedStateMachine):
    """One record on one clock; the model beside it remembers which owners hold which tokens."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.record: Record | None = None
        self.now = 1_000.0
        self.owners = 0
        self.tokens: list[int] = []
        self.current: Lease | None = None
        self.completed: tuple[bytes, float] | None = None
        self.saved: list[Stage] = []

    @rule(seconds=st.sampled_from([0.5, LEASE / 3, LEASE, TTL, TTL + LEASE]))
    def pass_time(self, seconds: float) -> None:
        """The backend's clock moves."""
        self.now += seconds

    @rule()
    def lose_the_record(self) -> None:
        """The record is evicted or flushed, and its guarantees end. Later tokens grow with the clock (B-02)."""
        self.now += 0.001
        self.record, self.completed, self.saved = None, None, []

    @rule(target=leases)
    def claim(self) -> Any:
        """A new request claims the record."""
        self.owners += 1
        return self._claim(self.owners.to_bytes(16, "big"))

    @rule(lease=leases)
    def resend_the_claim(self, lease: Lease) -> None:
        """The reply of the last claim was lost, so its owner sends it again (B-08)."""
        owns = self._owns(lease) and self.record is not None and self.record.status is Status.IN_PROGRESS
        result, kept = decisions.claim(self.record, self._claim_command(lease.owner), self.now)
        if owns and state_of(self.record, self.now) is not State.ABSENT:
            assert isinstance(result, Leased)
            assert result.lease.token == lease.token
            self.record = kept

    def _claim_command(self, owner: bytes) -> Claim:
        return Claim(RECORD, PRINT, owner, LEASE, TTL)

    def _claim(self, owner: bytes) -> Any:
        found = state_of(self.record, self.now)
        before = copy.deepcopy(self.record)
        result, kept = decisions.claim(self.record, self._claim_command(owner), self.now)
        if self.completed and self.now < self.completed[1]:
            assert result == Finished(self.completed[0]), "I2: a completed key ran again"
        if not isinstance(result, Leased):
            assert kept is self.record
            assert kept == before
            return multiple()
        assert found in (State.ABSENT, State.ABANDONED, State.FAILED), "I1: two live owners"
        assert all(result.lease.token > token for token in self.tokens), "B-02: the token did not grow"
        if found is State.ABSENT:
            self.saved = []
        assert result.stages == tuple(self.saved), "B-06: stages are carried across attempts"
        self.tokens.append(result.lease.token)
        self.current, self.completed, self.record = result.lease, None, kept
        return result.lease

    def _owns(self, lease: Lease) -> bool:
        return self.current is not None and lease.token == self.current.token

    def _perform(self, decide: Any, command: Any, lease: Lease) -> Any:
        """Carry out a verb of an owner; a stale owner must be refused while a record exists (I3)."""
        before = copy.deepcopy(self.record)
        stands = state_of(self.record, self.now) is not State.ABSENT
        stale = stands and self.record is not None and self.record.token != lease.token
        try:
            result, kept = decide(self.record, command, self.now)
        except (LeaseLost, AlreadyCompleted):
            assert self.record == before
            return None
        assert not stale, "I3: a stale owner was not refused"
        self.record = kept
        return result

    @rule(lease=leases, name=st.sampled_from("abc"), value=st.binary(max_size=2))
    def save_stage(self, lease: Lease, name: str, value: bytes) -> None:
        """An owner, who may be stale, records a stage."""
        absent = state_of(self.record, self.now) is State.ABSENT
        result = self._perform(decisions.save_stage, SaveStage(lease, Stage(name, "", value)), lease)
        if result is None:
            return
        assert result.recreated is absent
        if absent:
            self.saved, self.current, self.completed = [], lease, None
        known = {stage.name: stage.frame for stage in self.saved}
        assert result.frame == known.get(name, value), "B-06: a saved value changed"
        if name not in known:
            self.saved.append(Stage(name, "", value))

    @rule(lease=leases, response=st.binary(max_size=3))
    def complete(self, lease: Lease, response: bytes) -> None:
        """An owner, who may be stale, completes."""
        state = state_of(self.record, self.now)
        result = self._perform(decisions.complete, Complete(lease, response), lease)
        if result is None:
            return
        if state is State.ABSENT:
            self.saved, self.current = [], lease
        if state is not State.COMPLETED:
            self.completed = response, self.now + TTL

    @rule(lease=leases, final=st.booleans())
    def fail(self, lease: Lease, final: bool) -> None:
        """An owner, who may be stale, fails."""
        self._perform(decisions.fail, Fail(lease, final), lease)

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        """An owner, who may be stale, releases its claim."""
        self._perform(decisions.release, Release(lease), lease)
        if self.record is None:
            self.now += 0.001
            self.saved = []

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        """The heartbeat of an owner, who may be stale, renews."""
        before = copy.deepcopy(self.record)
        owned = state_of(self.record, self.now) is not State.ABSENT and self.record is not None
        owned = owned and self.record is not None and self.record.token == lease.token
        result, self.record = decisions.renew(self.record, lease, self.now)
        if result is Renewal.OWNED:
            assert owned, "I3: a stale owner renewed"
        else:
            assert self.record == before

    @invariant()
    def a_completed_response_stands(self) -> None:
        """I2, I4."""
        if self.completed and self.now < self.completed[1]:
            assert self.record is not None
            assert (self.record.status, self.record.response) == (Status.COMPLETED, self.completed[0])

    @invariant()
    def stages_are_unique_and_in_order(self) -> None:
        """B-06."""
        if self.record is not None and state_of(self.record, self.now) is not State.ABSENT:
            assert self.record.stages == tuple(self.saved)


TestOneRecord = OneRecord.TestCase
TestOneRecord.settings = settings(max_examples=times(50), stateful_step_count=30, deadline=None)
