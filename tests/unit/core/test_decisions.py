"""The decision table: each verb in each state, for the owner and for another worker."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from open_idempotency import decisions
from open_idempotency._core.commands import Claim, Command, Complete, Fail, Release, Renew, SaveStage, Withdraw
from open_idempotency._core.models import (
    Busy,
    Completed,
    Finished,
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
from open_idempotency.decisions import TRANSITIONS, State, state_of
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost
from tests.unit.builders import OWNER, PRINT, RECORD, STRANGER, lease_of

NOW = 1_000.0
TTL = 86_400.0
STAGE = Stage("reserve", "", b"frame")


def record_in(state: State, *, attempt: int = 1, stages: tuple[Stage, ...] = (STAGE,)) -> Record | None:
    """A record of OWNER in this state at NOW, with token 5."""
    if state is State.ABSENT:
        return None
    record = Record(RECORD, PRINT, Status.IN_PROGRESS, OWNER, 5, attempt, 990.0, 1_020.0, TTL, 90_000.0, stages=stages)
    return {
        State.ALIVE: record,
        State.ABANDONED: replace(record, lease_end=NOW),
        State.FAILED: replace(record, status=Status.FAILED, lease_end=NOW),
        State.FINAL: replace(record, status=Status.FAILED, lease_end=NOW, final=True, response=b"failed"),
        State.COMPLETED: replace(record, status=Status.COMPLETED, lease_end=NOW, response=b"done"),
    }[state]


def claim_of(owner: bytes = STRANGER, **fields: Any) -> Claim:
    """A claim with the fingerprint of the record."""
    return Claim(**{"record_id": RECORD, "fingerprint": PRINT, "owner": owner, "lease": 30.0, "ttl": TTL, **fields})


VERBS: dict[type[Command[Any]], Callable[[Record | None, Any, float], Any]] = {
    SaveStage: lambda record, lease, now: decisions.save_stage(record, SaveStage(lease, Stage("new", "", b"n")), now),
    Complete: lambda record, lease, now: decisions.complete(record, Complete(lease, b"done"), now),
    Fail: lambda record, lease, now: decisions.fail(record, Fail(lease), now),
    Release: lambda record, lease, now: decisions.release(record, Release(lease), now),
}
OWNERS_CASES = list(itertools.product(VERBS, State))


@pytest.mark.parametrize("state", State)
def test_the_builder_makes_the_state_it_says(state: State) -> None:
    """The tables below depend on ``record_in``."""
    assert state_of(record_in(state), NOW) is state


@pytest.mark.parametrize(("verb", "state"), OWNERS_CASES, ids=[f"{v.__name__}-{s.name}" for v, s in OWNERS_CASES])
def test_the_owners_verb_leaves_the_state_of_the_table_or_is_refused(verb: type[Command[Any]], state: State) -> None:
    """B-03."""
    record, wanted = record_in(state), TRANSITIONS[verb].get(state)
    if wanted is not None:
        _, kept = VERBS[verb](record, lease_of(), NOW)
        assert state_of(kept, NOW) is wanted
        return
    before = copy.deepcopy(record)
    refusal = AlreadyCompleted if (verb, state) == (SaveStage, State.COMPLETED) else LeaseLost
    with pytest.raises(refusal):
        VERBS[verb](record, lease_of(), NOW)
    assert record == before


STALE = [lease_of(owner=STRANGER, token=4), lease_of(token=4), lease_of(owner=STRANGER), lease_of(token=6)]


@pytest.mark.parametrize("lease", STALE, ids=["other-owner", "older-token", "same-token-other-owner", "newer-token"])
@pytest.mark.parametrize("state", [state for state in State if state is not State.ABSENT])
@pytest.mark.parametrize("verb", VERBS, ids=[verb.__name__ for verb in VERBS])
def test_a_stale_owner_is_refused_and_changes_nothing(verb: type[Command[Any]], state: State, lease: Any) -> None:
    """B-03, I3, L-03."""
    record = record_in(state)
    before = copy.deepcopy(record)
    with pytest.raises(LeaseLost):
        VERBS[verb](record, lease, NOW)
    assert record == before


@pytest.mark.parametrize("state", State)
def test_renew_by_the_owner_leaves_the_state_of_the_table(state: State) -> None:
    """B-04."""
    record, wanted = record_in(state), TRANSITIONS[Renew].get(state)
    result, kept = decisions.renew(record, lease_of(), NOW)
    expected = {State.ABSENT: Renewal.VANISHED, State.FAILED: Renewal.LOST, State.FINAL: Renewal.LOST}
    assert result is expected.get(state, Renewal.OWNED)
    assert state_of(kept, NOW) is (wanted or state)


@pytest.mark.parametrize("lease", STALE)
@pytest.mark.parametrize("state", [state for state in State if state is not State.ABSENT])
def test_renew_by_a_stale_owner_is_lost_and_changes_nothing(state: State, lease: Any) -> None:
    """B-03, B-04: the result says so; no error is raised."""
    record = record_in(state)
    assert decisions.renew(record, lease, NOW) == (Renewal.LOST, record)


def test_renew_extends_the_lease_and_the_retention_from_now() -> None:
    """L-01, B-05."""
    _, kept = decisions.renew(record_in(State.ALIVE), lease_of(), NOW + 7)
    assert kept is not None
    assert (kept.lease_end, kept.expires_at) == (NOW + 37, NOW + 37 + TTL)


CLAIM_RESULTS = {
    State.ABSENT: Leased,
    State.ALIVE: Busy,
    State.ABANDONED: Leased,
    State.FAILED: Leased,
    State.FINAL: Refused,
    State.COMPLETED: Finished,
}


@pytest.mark.parametrize("state", State)
def test_a_claim_gets_the_true_state(state: State) -> None:
    """B-01, O-01 to O-03, O-08, O-09."""
    result, kept = decisions.claim(record_in(state), claim_of(), NOW)
    assert isinstance(result, CLAIM_RESULTS[state])
    assert state_of(kept, NOW) is TRANSITIONS[Claim][state]


@pytest.mark.parametrize("state", State)
def test_the_owners_withdrawal_leaves_the_state_of_the_table(state: State) -> None:
    """B-08c."""
    _, kept = decisions.withdraw(record_in(state), Withdraw(claim_of(OWNER)), NOW)
    assert state_of(kept, NOW) is TRANSITIONS[Withdraw][state]


@pytest.mark.parametrize("state", State)
def test_a_strangers_withdrawal_changes_nothing(state: State) -> None:
    """B-08c, I3: the other worker may have got ``Busy`` and wait."""
    record = record_in(state)
    before = copy.deepcopy(record)
    assert decisions.withdraw(record, Withdraw(claim_of()), NOW) == (None, record)
    assert record == before


@pytest.mark.parametrize("owner", [OWNER, STRANGER])
@pytest.mark.parametrize("state", State)
def test_a_withdrawn_owner_gets_no_lease(state: State, owner: bytes) -> None:
    """B-08c: its claim is refused, unless its usual result has no lease anyway; nothing is written."""
    record = record_in(state)
    result, kept = decisions.claim(record, claim_of(owner), NOW, withdrawn=True)
    usual, _ = decisions.claim(record, claim_of(owner), NOW)
    attempt = 0 if record is None else record.attempt
    assert result == (Refused(Refusal.WITHDRAWN, attempt) if isinstance(usual, Leased) else usual)
    assert kept is record


@pytest.mark.parametrize("state", [State.ALIVE, State.FINAL, State.COMPLETED])
def test_a_refused_duplicate_never_changes_the_record(state: State) -> None:
    """The decision returns the very record that it was given, so a backend writes nothing (B-11b)."""
    record = record_in(state)
    before = copy.deepcopy(record)
    assert decisions.claim(record, claim_of(), NOW)[1] is record
    assert record == before


@pytest.mark.parametrize("state", [state for state in State if state is not State.ABSENT])
@pytest.mark.parametrize("owner", [OWNER, STRANGER])
def test_another_fingerprint_is_a_mismatch_in_every_state(state: State, owner: bytes) -> None:
    """O-05, I7: also while the first request still runs."""
    record = record_in(state)
    assert decisions.claim(record, claim_of(owner, fingerprint=b"\x02" + PRINT[1:]), NOW) == (Mismatch(), record)


@pytest.mark.parametrize(
    ("state", "fields", "reason"),
    [
        (State.FAILED, {"resume_failed": False}, Refusal.FAILED),
        (State.ABANDONED, {"resume_abandoned": False}, Refusal.ABANDONED),
        (State.FINAL, {}, Refusal.FAILED),
        (State.FINAL, {"resume_failed": True, "max_attempts": 1}, Refusal.FAILED),
        (State.FAILED, {"max_attempts": 2}, Refusal.ATTEMPTS),
        (State.ABANDONED, {"max_attempts": 2}, Refusal.ATTEMPTS),
        (State.FAILED, {"max_attempts": 1}, Refusal.ATTEMPTS),
    ],
)
def test_a_takeover_that_the_policy_does_not_want_is_refused(
    state: State, fields: dict[str, Any], reason: Refusal
) -> None:
    """O-08, O-09, O-10: the record stays unchanged."""
    record = record_in(state, attempt=2)
    result, kept = decisions.claim(record, claim_of(**fields), NOW)
    assert isinstance(result, Refused)
    assert (result.reason, result.attempt, kept) == (reason, 2, record)
    assert kept is record


@pytest.mark.parametrize(
    ("state", "fields"),
    [
        (State.FAILED, {"resume_abandoned": False}),
        (State.ABANDONED, {"resume_failed": False}),
        (State.FAILED, {"max_attempts": 3}),
    ],
)
def test_a_takeover_that_the_policy_wants_is_the_next_attempt(state: State, fields: dict[str, Any]) -> None:
    """O-08, O-09, O-10: the attempt has the earlier stages."""
    result, _ = decisions.claim(record_in(state, attempt=2), claim_of(**fields), NOW)
    assert isinstance(result, Leased)
    assert (result.lease.attempt, result.stages) == (3, (STAGE,))


@pytest.mark.parametrize("state", [State.ALIVE, State.ABANDONED])
def test_a_claim_resent_by_its_owner_is_the_same_claim(state: State) -> None:
    """B-08, I6: it has the same token and attempt, also if the lease has ended meanwhile."""
    result, kept = decisions.claim(record_in(state), claim_of(OWNER), NOW)
    assert isinstance(result, Leased)
    assert (result.lease.token, result.lease.attempt, result.stages) == (5, 1, (STAGE,))
    assert kept is not None
    assert (kept.lease_end, kept.claimed_at) == (NOW + 30, 990.0)


def test_the_lease_is_owned_until_its_end_and_not_at_it() -> None:
    """L-02: the lease has ended at its end time, not after it."""
    record = record_in(State.ALIVE)
    assert state_of(record, 1_019.999) is State.ALIVE
    assert state_of(record, 1_020.0) is State.ABANDONED


def test_a_record_is_there_until_it_expires_and_not_at_that_moment() -> None:
    """An expired record counts as absent."""
    record = record_in(State.COMPLETED)
    assert state_of(record, 89_999.999) is State.COMPLETED
    assert state_of(record, 90_000.0) is State.ABSENT


def test_a_claim_of_an_expired_record_is_a_first_one_with_a_greater_token() -> None:
    """B-02: the old stages are gone, and any fingerprint is accepted."""
    old = record_in(State.COMPLETED)
    assert old is not None
    result, kept = decisions.claim(replace(old, token=10**18), claim_of(fingerprint=b"\x01other"), 90_000.0)
    assert isinstance(result, Leased)
    assert (result.lease.attempt, result.lease.token, result.stages) == (1, 10**18 + 1, ())
    assert kept is not None
    assert kept.response is None


def test_a_token_is_above_those_of_a_record_that_was_lost() -> None:
    """B-02: tokens grow with the clock, also after the record was deleted."""
    first, _ = decisions.claim(None, claim_of(), NOW)
    second, _ = decisions.claim(None, claim_of(), NOW + 0.001)
    assert isinstance(first, Leased)
    assert isinstance(second, Leased)
    assert second.lease.token > first.lease.token


def test_a_token_grows_even_if_the_clock_went_back() -> None:
    """B-02."""
    record = record_in(State.FAILED)
    assert record is not None
    result, _ = decisions.claim(replace(record, token=10**18), claim_of(), NOW)
    assert isinstance(result, Leased)
    assert result.lease.token == 10**18 + 1


def test_busy_reports_how_long_it_has_run_and_how_long_it_may() -> None:
    """O-03: the elapsed time, and the rest of the lease."""
    assert decisions.claim(record_in(State.ALIVE), claim_of(), NOW)[0] == Busy(10.0, 20.0)


def test_the_stored_response_comes_with_the_claim() -> None:
    """B-01: a replay needs no further round trip."""
    assert decisions.claim(record_in(State.COMPLETED), claim_of(), NOW)[0] == Finished(b"done")


def test_a_failed_response_comes_with_the_refusal() -> None:
    """O-08: for ``on_failed="replay"``."""
    assert decisions.claim(record_in(State.FINAL), claim_of(), NOW)[0] == Refused(Refusal.FAILED, 1, b"failed")


def save(record: Record | None, stage: Stage, now: float = NOW) -> tuple[StageSaved, Record]:
    """Save a stage as the owner."""
    return decisions.save_stage(record, SaveStage(lease_of(), stage), now)


def test_stages_are_appended_in_order() -> None:
    """B-06."""
    _, kept = save(record_in(State.ALIVE), Stage("charge", "", b"c"))
    assert [stage.name for stage in kept.stages] == ["reserve", "charge"]


def test_a_stage_saved_twice_keeps_the_first_value() -> None:
    """B-06, B-08."""
    record = record_in(State.ALIVE)
    result, kept = save(record, Stage("reserve", "", b"another"))
    assert result == StageSaved(b"frame")
    assert kept is record


def test_one_name_with_another_key_is_another_stage() -> None:
    """B-06, S-01."""
    _, kept = save(record_in(State.ALIVE), Stage("reserve", "2", b"x"))
    assert len(kept.stages) == 2


def test_a_stage_extends_the_lease() -> None:
    """L-01: a stage counts as activity."""
    _, kept = save(record_in(State.ALIVE), Stage("charge", "", b"c"), NOW + 5)
    assert kept.lease_end == NOW + 35


def test_a_record_that_vanished_is_recreated_by_a_stage_and_says_so() -> None:
    """B-08a."""
    result, kept = save(None, STAGE)
    assert result == StageSaved(b"frame", recreated=True)
    assert (kept.token, kept.owner, kept.attempt, kept.stages) == (5, OWNER, 1, (STAGE,))
    assert state_of(kept, NOW) is State.ALIVE


def test_a_record_that_vanished_is_recreated_by_the_completion_and_says_so() -> None:
    """B-08a."""
    result, kept = decisions.complete(None, Complete(lease_of(), b"done"), NOW)
    assert result == Completed(recreated=True)
    assert (kept.response, kept.token, kept.expires_at) == (b"done", 5, NOW + TTL)


def test_retention_runs_from_the_completion() -> None:
    """B-05."""
    _, kept = decisions.complete(record_in(State.ALIVE), Complete(lease_of(), b"done"), NOW + 10)
    assert kept.expires_at == NOW + 10 + TTL


def test_a_completion_sent_twice_keeps_the_first_response() -> None:
    """B-08."""
    record = record_in(State.COMPLETED)
    result, kept = decisions.complete(record, Complete(lease_of(), b"another"), NOW)
    assert result == Completed()
    assert kept is record


def test_a_failure_keeps_the_stages_for_the_retention() -> None:
    """B-05, L-04."""
    _, kept = decisions.fail(record_in(State.ALIVE), Fail(lease_of()), NOW + 10)
    assert kept is not None
    assert (kept.stages, kept.expires_at, kept.final) == ((STAGE,), NOW + 10 + TTL, False)


@pytest.mark.parametrize("state", [State.FAILED, State.FINAL])
def test_a_failure_sent_twice_changes_nothing(state: State) -> None:
    """B-08."""
    record = record_in(state)
    assert decisions.fail(record, Fail(lease_of()), NOW + 9) == (None, record)


def test_a_release_leaves_nothing_of_a_first_attempt_without_stages() -> None:
    """The response is not kept; a corrected request may use the key with another body."""
    assert decisions.release(record_in(State.ALIVE, stages=()), Release(lease_of()), NOW) == (None, None)


def test_a_release_keeps_stages_and_does_not_count_the_attempt() -> None:
    """O-10: ``max_attempts`` does not count a released attempt."""
    _, kept = decisions.release(record_in(State.ALIVE, attempt=3), Release(lease_of()), NOW)
    assert kept is not None
    assert (kept.stages, kept.attempt, kept.status) == ((STAGE,), 2, Status.FAILED)


def test_a_release_sent_twice_counts_once() -> None:
    """B-08."""
    _, once = decisions.release(record_in(State.ALIVE, attempt=3), Release(lease_of()), NOW)
    _, twice = decisions.release(once, Release(lease_of()), NOW)
    assert twice is once


def test_a_record_that_was_only_ever_given_back_runs_again_under_every_policy() -> None:
    """None of its attempts failed: each was released."""
    _, kept = decisions.release(record_in(State.ALIVE), Release(lease_of()), NOW)
    result, _ = decisions.claim(kept, claim_of(resume_failed=False, max_attempts=1), NOW)
    assert isinstance(result, Leased)
    assert result.lease.attempt == 1


@pytest.mark.parametrize("verb", [Fail, Release], ids=["Fail", "Release"])
def test_what_ends_a_record_that_vanished_ends_nothing(verb: type[Command[Any]]) -> None:
    """B-08a: a failure or a release has nothing worth recreating."""
    assert VERBS[verb](None, lease_of(), NOW) == (None, None)
