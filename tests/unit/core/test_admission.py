"""Admission as a list of commands: what happens, in which order, and what the client gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.admission import admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Claim, Withdraw
from open_idempotency._core.models import Busy, Finished, Leased, Mismatch, Refusal, Refused, Response, Stage
from open_idempotency._core.stored_response import StageKind, encode_response, encode_stage
from open_idempotency._engine.bodies import RequestBody
from open_idempotency.exceptions import BackendUnavailable, BodyTooLarge, RecordUnreadable, ScopeUnknown
from tests.unit.builders import OWNER, lease_of
from tests.unit.core.admissions import FRAME, TOMBSTONE, Admission, name

STAGE = encode_stage(StageKind.VALUE, b"1")


def too_large() -> RequestBody:
    """A body that exceeds the limit while it is received."""
    raise BodyTooLarge("over")


def test_a_malformed_key_is_refused_before_any_command() -> None:
    """O-06: no backend call is made, and the body is not read."""
    admission = Admission(key=(b"idempotency-key", b'"abc'))
    assert name(admission.problem()) == "key-malformed"
    assert admission.script.names() == []


def test_a_missing_key_on_a_route_that_requires_one_is_refused_before_any_command() -> None:
    """O-06: no command is sent."""
    admission = Admission(key=None, required=True)
    assert name(admission.problem()) == "key-missing"
    assert admission.script.names() == []


def test_a_missing_key_on_an_optional_route_is_an_attempt_without_a_lease_and_no_command() -> None:
    """The request passes through; its body is not buffered and the backend is not called."""
    admission = Admission(key=None)
    attempt = admission.run()
    assert isinstance(attempt, Attempt)
    assert attempt.lease is None
    assert admission.script.asked == []


def test_a_short_anonymous_key_is_refused_before_the_body_is_read() -> None:
    admission = Admission(key=(b"idempotency-key", b"short"))
    assert name(admission.problem()) == "key-malformed"
    assert admission.script.names() == ["Call"]


def test_a_short_key_of_a_verified_user_is_claimed() -> None:
    admission = Admission(Leased(lease_of()), key=(b"idempotency-key", b"short"), user="ann")
    assert isinstance(admission.run(), Attempt)


def test_a_body_over_the_limit_is_refused_before_the_claim() -> None:
    """O-07: the request never runs unprotected."""
    admission = Admission(receive=too_large)
    assert name(admission.problem()) == "body-too-large"
    assert admission.script.names() == ["Call", "Call"]


def test_an_unknown_scope_ends_in_an_error_before_the_claim() -> None:
    """The result is a 500, never a scope that callers share."""
    admission = Admission(scope=lambda _: "")
    with pytest.raises(ScopeUnknown):
        admission.run()
    assert admission.script.names() == ["Call"]


def test_a_new_key_reads_the_body_and_then_claims_once() -> None:
    """O-01: two calls of the adapter, one round trip."""
    admission = Admission(Leased(lease_of()))
    attempt = admission.run()
    assert admission.script.names() == ["Call", "Call", "Claim"]
    assert attempt.lease == lease_of()
    assert admission.listener.kinds() == [events.Claimed]


def test_the_claim_says_what_the_policy_wants() -> None:
    """B-01, O-08 to O-10: the claim has the lease, the TTL and the takeover rules of the policy."""
    admission = Admission(
        Leased(lease_of()), lease=7, ttl=70, max_run=70, on_failed="reject", on_abandoned="reject", max_attempts=4
    )
    admission.run()
    claim = admission.script.asked[2]
    assert isinstance(claim, Claim)
    assert (claim.owner, claim.lease, claim.ttl) == (OWNER, 7.0, 70.0)
    assert (claim.resume_failed, claim.resume_abandoned, claim.max_attempts) == (False, False, 4)
    assert len(claim.record_id) == 32


def test_earlier_stages_come_with_the_attempt() -> None:
    """O-08, O-09: the attempt has the stages of earlier attempts."""
    attempt = Admission(Leased(lease_of(attempt=2), (Stage("a", "", STAGE), Stage("b", "k", STAGE)))).run()
    assert attempt.stages == {("a", ""): STAGE, ("b", "k"): STAGE}


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("release", [None, BackendUnavailable("down")], ids=["given back", "not given back"])
def test_a_stage_that_cannot_be_read_never_runs(release: Any, fail_open: bool) -> None:
    """B-08b: the claim is released, and no failure of that release lets the view run."""
    stages = (Stage("a", "", STAGE), Stage("b", "", b"\xff junk"))
    admission = Admission(Leased(lease_of(attempt=2), stages), releases=(release,), fail_open=fail_open)
    assert name(admission.problem()) == "record-unreadable"
    assert admission.script.names() == ["Call", "Call", "Claim", "Release"]
    assert set(admission.listener.kinds()) == {events.BackendFailed}


def test_a_completed_key_is_replayed_in_one_round_trip() -> None:
    """O-02, B-01."""
    admission = Admission(Finished(FRAME))
    response = admission.run()
    assert (response.status, response.body) == (201, b"made")
    assert (b"idempotent-replayed", b"true") in response.headers
    assert admission.script.names() == ["Call", "Call", "Claim"]
    assert admission.listener.seen == [events.Replayed(admission.listener.seen[0].record, 201)]


def test_a_completed_key_whose_body_was_not_kept_is_reported_and_never_run() -> None:
    """O-11: the client gets a problem with the status."""
    problem = Admission(Finished(TOMBSTONE)).problem()
    assert (name(problem), problem["original_status"], problem["location"]) == ("not-replayable", 201, "/1")


def test_a_duplicate_in_flight_gets_a_retry_after() -> None:
    """O-03."""
    admission = Admission(Busy(3.0, 20.0))
    response = admission.run()
    assert response.status == 409
    assert (b"retry-after", b"3") in response.headers
    assert admission.script.names() == ["Call", "Call", "Claim"]
    assert admission.listener.kinds() == [events.Conflicted]


def test_a_reused_key_is_refused() -> None:
    """O-05."""
    admission = Admission(Mismatch())
    assert name(admission.problem()) == "key-reused"
    assert admission.listener.kinds() == [events.KeyReused]


@pytest.mark.parametrize("reason", Refusal)
def test_a_refused_takeover_is_an_unknown_outcome(reason: Refusal) -> None:
    """O-08 to O-10."""
    admission = Admission(Refused(reason, 2))
    problem = admission.problem()
    assert (name(problem), problem["retryable"]) == ("outcome-unknown", reason is Refusal.WITHDRAWN)
    assert admission.listener.kinds() == [events.Rejected]
    (reported,) = admission.listener.problems
    assert (reported.reference, reported.attempt) == (problem["reference"], 2)


def test_a_failed_response_is_replayed_where_the_policy_says_so() -> None:
    """O-08: ``on_failed="replay"`` replays it."""
    failed = encode_response(Response(500, [], b"oops"))
    response = Admission(Refused(Refusal.FAILED, 1, failed), on_failed="replay").run()
    assert (response.status, response.body) == (500, b"oops")


@pytest.mark.parametrize("policy", ["reject", "resume"])
def test_a_failed_response_is_not_replayed_where_the_policy_does_not_say_so(policy: str) -> None:
    """O-08: ``on_failed`` decides, and not the record."""
    failed = encode_response(Response(500, [], b"oops"))
    assert name(Admission(Refused(Refusal.FAILED, 1, failed), on_failed=policy).problem()) == "outcome-unknown"


def test_a_failure_without_a_response_is_an_unknown_outcome_where_failed_responses_are_replayed() -> None:
    """O-08: an exception leaves no response to replay."""
    assert name(Admission(Refused(Refusal.FAILED, 1), on_failed="replay").problem()) == "outcome-unknown"


def test_while_the_backend_is_down_nothing_runs() -> None:
    """O-12, I8."""
    admission = Admission(BackendUnavailable("down"))
    response = admission.run()
    assert response.status == 503
    assert (b"retry-after", b"1") in response.headers
    assert admission.listener.kinds() == [events.BackendFailed]


def test_a_route_that_fails_open_runs_unprotected_and_counts_it() -> None:
    """O-12, I8."""
    admission = Admission(BackendUnavailable("down"), fail_open=True)
    attempt = admission.run()
    assert isinstance(attempt, Attempt)
    assert attempt.lease is None
    assert admission.listener.kinds() == [events.BackendFailed, events.FailedOpen]


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_record_that_cannot_be_read_never_runs(fail_open: bool) -> None:
    """B-08b: the route does not run it even if it fails open."""
    admission = Admission(RecordUnreadable("newer"), fail_open=fail_open)
    assert name(admission.problem()) == "record-unreadable"


def test_a_stored_response_that_cannot_be_read_never_runs() -> None:
    """B-08b."""
    admission = Admission(Finished(b"\xff junk"))
    assert name(admission.problem()) == "record-unreadable"
    assert admission.script.names() == ["Call", "Call", "Claim"]


def test_the_cause_is_named_in_the_event_and_its_words_are_not() -> None:
    """The message of the error may contain an address or a password."""
    error = BackendUnavailable("down")
    error.__cause__ = ConnectionError("redis://:hunter2@host")
    admission = Admission(error)
    admission.run()
    assert "ConnectionError" in repr(admission.listener.seen)
    assert "hunter2" not in repr(admission.listener.seen)


CANCELLATIONS = [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1)]


@pytest.mark.parametrize("cancelled", CANCELLATIONS, ids=lambda error: type(error).__name__)
def test_a_claim_that_is_cancelled_is_withdrawn(cancelled: BaseException) -> None:
    """B-08c, L-04: it may have been made or be in flight; the key must not be blocked for a lease; the cancellation
    continues.
    """
    admission = Admission(cancelled)
    with pytest.raises(type(cancelled)) as caught:
        admission.run()
    assert caught.value is cancelled
    claim, withdrawal = admission.script.asked[2:]
    assert isinstance(claim, Claim)
    assert withdrawal == Withdraw(claim)


def test_a_claim_that_cannot_be_withdrawn_is_withdrawn_once_more() -> None:
    """B-08c: the first withdrawal may have used the connection on which the claim hangs."""
    admission = Admission(asyncio.CancelledError(), withdrawals=(BackendUnavailable("silent"), None))
    with pytest.raises(asyncio.CancelledError):
        admission.run()
    assert admission.script.names()[2:] == ["Claim", "Withdraw", "Withdraw"]
    assert admission.listener.seen == []


def test_a_cancelled_claim_is_cancelled_even_if_it_cannot_be_withdrawn() -> None:
    """L-04: the original error is raised; an event reports the error of the cleanup."""
    admission = Admission(asyncio.CancelledError(), withdrawals=(BackendUnavailable("down"),) * 2)
    with pytest.raises(asyncio.CancelledError):
        admission.run()
    assert [(type(event), event.verb) for event in admission.listener.seen] == [(events.BackendFailed, "withdraw")]


def test_an_engine_that_is_thrown_away_asks_nothing_more() -> None:
    """A loop that is torn down closes its coroutines; commands cannot be carried out there."""
    admission = Admission()
    steps = admit(admission.intake, admission.policy)
    command = next(steps)
    while not isinstance(command, Claim):
        command = steps.send(command.function())
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)
