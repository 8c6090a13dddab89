"""Stages as a list of commands: recorded, tried again, refused, recreated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Get, SaveStage
from open_idempotency._core.models import Stage, StageSaved
from open_idempotency._core.recording import save_stage
from open_idempotency._core.settlement import abort
from open_idempotency.exceptions import BackendUnavailable, LeaseLost
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import OWNER, Listener, Script, attempt_of, lease_of

DOWN = BackendUnavailable("down")


def reported(attempt: Attempt) -> list[type[events.Event]]:
    """The classes of the events that the attempt's listener received."""
    assert isinstance(attempt.policy.on_event, Listener)
    return attempt.policy.on_event.kinds()


CANCELLED = asyncio.CancelledError()
NEW = Stage("charge", "", b"new")


def test_a_stage_is_one_command_and_known_from_then_on() -> None:
    """B-06: one ``SaveStage`` is sent."""
    attempt, script = attempt_of(), Script({SaveStage: [StageSaved(b"new")]})
    assert script.run(save_stage(attempt, NEW)) == b"new"
    assert script.names() == ["SaveStage"]
    assert attempt.stages == {("charge", ""): b"new"}


def test_a_stage_that_was_on_record_has_its_first_value() -> None:
    """B-06."""
    attempt, script = attempt_of(), Script({SaveStage: [StageSaved(b"first")]})
    assert script.run(save_stage(attempt, NEW)) == b"first"
    assert attempt.stages == {("charge", ""): b"first"}


def test_a_stage_without_a_lease_is_not_recorded() -> None:
    """S-03."""
    script = Script()
    assert script.run(save_stage(Attempt(IdempotencyPolicy()), NEW)) == b"new"
    assert script.asked == []


def test_stages_go_back_into_a_record_that_vanished() -> None:
    """B-08a: an event reports it."""
    attempt = attempt_of(Stage("a", "", b"1"), Stage("b", "k", b"2"))
    script = Script({SaveStage: [StageSaved(b"new", recreated=True), StageSaved(b"1"), StageSaved(b"2")]})
    script.run(save_stage(attempt, NEW))
    saved = [(c.stage.name, c.stage.key, c.stage.frame) for c in script.asked if isinstance(c, SaveStage)]
    assert saved == [("charge", "", b"new"), ("a", "", b"1"), ("b", "k", b"2")]
    assert reported(attempt) == [events.Recreated]


def test_a_stage_is_tried_again_while_the_backend_is_down() -> None:
    """L-08."""
    script = Script({SaveStage: [DOWN, StageSaved(b"new")]})
    assert script.run(save_stage(attempt_of(), NEW)) == b"new"


def test_a_stage_that_cannot_be_recorded_in_time_is_an_error() -> None:
    """L-08, I11."""
    attempt, script = attempt_of(record_within=1), Script({SaveStage: [DOWN] * 50})
    with pytest.raises(BackendUnavailable):
        script.run(save_stage(attempt, NEW))
    assert attempt.stages == {}


class Renewed(Script):
    """A script whose attempt is renewed until ``last``."""

    attempt: Attempt
    last = 0.0

    def _Sleep(self, command: Any) -> None:  # noqa: N802 (named for the command)
        super()._Sleep(command)
        self.attempt.sure_until = min(self.clock, self.last) + 30.0


@pytest.mark.parametrize(("renewed", "ends", "tried"), [(0.0, 1e9, 30.0), (45.0, 1e9, 75.0), (45.0, 28.0, 28.0)])
def test_a_stage_is_tried_for_as_long_as_its_lease_may_live_and_its_server_waits(
    renewed: float, ends: float, tried: float
) -> None:
    """L-08: its effect has happened, so the write is not given up after the seconds that a client waits."""
    script = Renewed({SaveStage: [DOWN] * 200})
    attempt = script.attempt = attempt_of()
    attempt.sure_until, script.last = script.clock + 20.0, script.clock + renewed
    attempt.ends_at = script.clock + ends
    with pytest.raises(BackendUnavailable):
        script.run(save_stage(attempt, NEW))
    assert tried - 1.5 <= script.clock - Script.clock <= tried


def test_a_stage_of_a_stale_owner_marks_the_attempt() -> None:
    """L-03, S-07."""
    attempt, script = attempt_of(), Script({SaveStage: [LeaseLost("x")]})
    with pytest.raises(LeaseLost):
        script.run(save_stage(attempt, NEW))
    assert attempt.lost
    assert reported(attempt) == [events.OwnershipLost]
    with pytest.raises(LeaseLost):
        script.run(save_stage(attempt, Stage("next", "", b"")))
    assert script.names() == ["SaveStage"]


def test_the_loss_of_a_lease_is_reported_once_however_often_it_is_noticed() -> None:
    """Each decision has one event."""
    attempt, script = attempt_of(), Script({SaveStage: [LeaseLost("x")], Get: [None]})
    with pytest.raises(LeaseLost) as caught:
        script.run(save_stage(attempt, NEW))
    script.run(abort(attempt, caught.value))
    assert reported(attempt) == [events.OwnershipLost]


def test_a_cancelled_stage_is_sent_once_more_and_the_cancellation_goes_on() -> None:
    """L-04: its effect has happened, so its record matters."""
    script = Script({SaveStage: [CANCELLED, StageSaved(b"new")]})
    with pytest.raises(asyncio.CancelledError):
        script.run(save_stage(attempt_of(), NEW))
    assert script.names() == ["SaveStage", "SaveStage"]


def test_a_cancelled_stage_of_an_attempt_that_was_lost_meanwhile_is_not_sent_again() -> None:
    """L-04, B-08a: it would recreate a record that nobody releases, and block the key for a lease."""
    attempt = attempt_of()
    steps = save_stage(attempt, NEW)
    assert isinstance(next(steps), SaveStage)
    attempt.lost = True
    with pytest.raises(asyncio.CancelledError):
        steps.throw(CANCELLED)


def test_a_downstream_seed_is_the_same_on_every_attempt_of_one_request() -> None:
    """``key_for`` does not depend on owner and token."""
    later = lease_of(owner=b"z" * 16, token=99, attempt=2)
    assert attempt_of(owned=later).seed == attempt_of(owned=lease_of(owner=OWNER)).seed != b""
