"""Settlement as a list of commands: what is recorded, when, and what the client is sent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

import pytest

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Complete, Fail, Get, RecordLater, Release, Sleep, Unreserve
from open_idempotency._core.models import Completed, Record, Response, Stage, Status
from open_idempotency._core.settlement import Fate, abort, finish
from open_idempotency._core.stored_response import decode_response, encode_response
from open_idempotency.exceptions import AlreadyCompleted, BackendUnavailable, LeaseLost, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import PRINT, RECORD, Listener, Script, attempt_of

DONE = Response(201, [(b"x", b"1"), (b"set-cookie", b"a")], b"made")
DOWN = BackendUnavailable("down")


def reported(attempt: Attempt) -> list[type[events.Event]]:
    """The classes of the events that the attempt's listener received."""
    assert isinstance(attempt.policy.on_event, Listener)
    return attempt.policy.on_event.kinds()


def completed_by(owner: bytes = b"n" * 16, **fields: Any) -> Record:
    """The record after a later attempt completed it."""
    frame = encode_response(Response(202, [(b"y", b"2")], b"theirs"))
    record = Record(RECORD, PRINT, Status.COMPLETED, owner, 9, 2, 0.0, 0.0, 1.0, 1.0, response=frame)
    return replace(record, **fields)


# Finishing


def test_a_kept_response_is_completed_in_one_command() -> None:
    """O-01, R-03."""
    attempt, script = attempt_of(), Script({Complete: [Completed()]})
    assert script.run(finish(attempt, DONE)) is Fate.KEPT
    assert script.names() == ["Complete"]
    assert reported(attempt) == [events.Completed]


def test_what_is_stored_is_the_response_without_the_fields_of_the_moment() -> None:
    """R-01, R-02: headers such as Date and Set-Cookie are not stored."""
    script = Script({Complete: [Completed()]})
    script.run(finish(attempt_of(), DONE))
    (command,) = script.asked_for(Complete)
    assert decode_response(command.response) == Response(201, [(b"x", b"1")], b"made")


@pytest.mark.parametrize(("status", "kept"), [(201, 86_400.0), (303, 86_400.0), (404, 7.0), (422, 7.0)])
def test_a_stored_error_has_a_time_to_live_of_its_own(status: int, kept: float) -> None:
    """B-26."""
    attempt, script = attempt_of(error_ttl=7), Script({Complete: [Completed()]})
    script.run(finish(attempt, Response(status, [], b"")))
    (command,) = script.asked_for(Complete)
    assert command.lease.ttl == kept


@pytest.mark.parametrize("fields", [{"store": lambda response: True}, {}])
@pytest.mark.parametrize("status", [401, 403, 409, 429, 503])
def test_a_status_that_is_stored_on_demand_is_kept_as_long_as_a_success(status: int, fields: dict[str, Any]) -> None:
    """B-26, R-13: the response stands for an effect, which a request that runs again would repeat."""
    attempt, script = attempt_of(error_ttl=7, **fields), Script({Complete: [Completed()]})
    attempt.keep = None if fields else True
    script.run(finish(attempt, Response(status, [], b"")))
    (command,) = [each for each in script.asked if isinstance(each, Complete)]
    assert command.lease.ttl == attempt.lease.ttl > 7


@pytest.mark.parametrize("history", ["stage", "earlier attempt"])
def test_an_error_after_an_effect_is_stored_as_long_as_a_success(history: str) -> None:
    """B-26: a request that runs again would repeat the effects of its stages."""
    attempt, script = attempt_of(error_ttl=7), Script({Complete: [Completed()]})
    assert attempt.lease is not None
    if history == "stage":
        attempt.saved(Stage("charge", "", b"{}"))
    else:
        attempt.lease.attempt = 2
    script.run(finish(attempt, Response(402, [], b"")))
    (command,) = script.asked_for(Complete)
    assert command.lease == attempt.lease


@pytest.mark.parametrize("status", [401, 403, 409, 429, 199])
def test_a_response_that_is_not_kept_gives_the_claim_back(status: int) -> None:
    attempt, script = attempt_of(), Script({Release: [None]})
    assert script.run(finish(attempt, Response(status, [], b""))) is Fate.NOT_KEPT
    assert script.names() == ["Release"]
    assert reported(attempt) == [events.Released]


@pytest.mark.parametrize(
    ("on_failed", "final", "stored"), [("resume", False, None), ("reject", True, None), ("replay", True, b"oops")]
)
def test_a_server_error_fails_the_attempt_as_the_policy_says(on_failed: str, final: bool, stored: Any) -> None:
    """O-08."""
    attempt, script = attempt_of(on_failed=on_failed), Script({Fail: [None]})
    assert script.run(finish(attempt, Response(503, [], b"oops"))) is Fate.NOT_KEPT
    command = script.asked[0]
    assert isinstance(command, Fail)
    assert command.final is final
    assert (command.response and decode_response(command.response).body) == stored
    assert reported(attempt) == [events.Failed]


@pytest.mark.parametrize(
    ("wish", "store", "status", "verb"),
    [
        (True, None, 500, Complete),
        (True, None, 403, Complete),
        (False, None, 200, Release),
        (False, lambda _: True, 200, Release),
        (True, lambda _: False, 200, Complete),
        (None, lambda _: False, 200, Release),
        (None, lambda _: True, 503, Complete),
        (None, lambda _: None, 200, Complete),
        (None, lambda _: None, 503, Fail),
        (False, None, 500, Fail),
    ],
)
def test_the_views_wish_overrules_the_policy_and_it_the_status(
    wish: bool | None, store: Any, status: int, verb: Any
) -> None:
    """``idem.keep()`` and ``idem.discard()`` overrule ``store=``, which overrules the rule of the status."""
    attempt, script = attempt_of(store=store), Script({Complete: [Completed()], Release: [None], Fail: [None]})
    attempt.keep = wish
    script.run(finish(attempt, Response(status, [], b"")))
    assert script.names() == [verb.__name__]


def faulty(response: Response) -> bool:
    """A hook with a bug."""
    raise LookupError("hunter2")


def counted(response: Response) -> bool:
    """A hook whose author expects the status and gets the response. They are never equal, so it would discard every
    response.
    """
    return response == 200


def among(response: Response) -> bool:
    """A hook with the same mistake, for several statuses."""
    return response in (200, 201)


def vague(response: Response) -> object:
    """A hook that returns the bytes that it found, so b"" for a response without a body."""
    return response.body


@pytest.mark.parametrize(("status", "verb"), [(200, "Complete"), (403, "Release"), (500, "Fail")])
@pytest.mark.parametrize(
    ("hook", "error"),
    [(faulty, "LookupError"), (counted, "TypeError"), (among, "TypeError"), (vague, "TypeError")],
)
def test_a_faulty_store_hook_leaves_the_rule_of_the_status(hook: Any, error: str, status: int, verb: str) -> None:
    """R-14: the handler has run, so its outcome must not be lost; the event names the class of the error and not its
    message.
    """
    attempt, script = attempt_of(store=hook), Script({Complete: [Completed()], Release: [None], Fail: [None]})
    script.run(finish(attempt, Response(status, [], b"")))
    assert script.names() == [verb]
    assert reported(attempt)[0] is events.HookFailed
    assert error in repr(attempt.policy.on_event.seen)
    assert "hunter2" not in repr(attempt.policy.on_event.seen)


def test_a_store_hook_is_given_the_whole_response_as_a_copy() -> None:
    """R-13: a hook that changes its copy changes neither the live response nor the stored one."""
    seen: list[Response] = []

    def curious(response: Response) -> None:
        seen.append(Response(response.status, tuple(response.headers), response.body))
        response.status, response.body = 500, None
        cast("list[Any]", response.headers).clear()

    attempt, script = attempt_of(store=curious), Script({Complete: [Completed()]})
    live = Response(201, [(b"x-ledger", b"main")], b"placed")
    assert script.run(finish(attempt, live)) is Fate.KEPT
    assert seen == [Response(201, ((b"x-ledger", b"main"),), b"placed")]
    assert live == Response(201, [(b"x-ledger", b"main")], b"placed")
    (stored,) = [command for command in script.asked if isinstance(command, Complete)]
    assert decode_response(stored.response) == live


def test_a_store_hook_sees_no_body_that_was_not_collected() -> None:
    """R-13: the body is None where it exceeded ``max_response_bytes``."""
    seen: list[bytes | None] = []
    attempt = attempt_of(store=lambda response: seen.append(response.body))
    Script({Complete: [Completed()]}).run(finish(attempt, Response(200, [], None)))
    assert seen == [None]


def test_an_attempt_without_a_lease_settles_nothing() -> None:
    attempt, script = Attempt(IdempotencyPolicy()), Script()
    assert script.run(finish(attempt, DONE)) is Fate.NOT_KEPT
    assert script.asked == []
    assert attempt.phase is Phase.ENDED


@pytest.mark.parametrize(
    ("response", "fields"),
    [
        (Response(200, [], None), {}),
        (Response(200, [], b"x" * 11), {"max_response_bytes": 10}),
        (Response(200, [(b"x", b"a\r\nb")], b""), {}),
        (Response(200, [(b"a", b"b")] * 0x10000, b""), {}),
    ],
    ids=["let-go", "over-the-limit", "unframeable", "too-many-fields"],
)
def test_a_response_that_cannot_be_kept_is_completed_as_a_tombstone(response: Response, fields: dict[str, Any]) -> None:
    """O-11: the request never runs again; the event says that the body is not stored."""
    attempt, script = attempt_of(**fields), Script({Complete: [Completed()]})
    assert script.run(finish(attempt, response)) is Fate.KEPT
    (command,) = script.asked_for(Complete)
    assert decode_response(command.response).body is None
    assert attempt.policy.on_event.seen[-1].stored is False


@pytest.mark.parametrize("failures", [1, 3])
def test_a_completion_is_tried_again_while_the_backend_is_down(failures: int) -> None:
    """L-08."""
    attempt, script = attempt_of(), Script({Complete: [DOWN] * failures + [Completed()]})
    assert script.run(finish(attempt, DONE)) is Fate.KEPT
    first, *more = ["Complete", "Sleep"] * failures
    assert script.names() == [first, "TakeSlot", *more, "Complete"]


def recorded_later(script: Script) -> RecordLater:
    """The one recording that was handed over to the background."""
    (command,) = [command for command in script.asked if isinstance(command, RecordLater)]
    return command


@pytest.mark.parametrize(("fields", "limit"), [({}, 5.0), ({"respond_within": 2}, 2.0), ({"respond_within": 0}, 0.0)])
def test_a_client_waits_for_a_completion_no_longer_than_respond_within(fields: dict[str, Any], limit: float) -> None:
    """L-08: its response then goes out unrecorded, and the recording continues in the background."""
    attempt, script = attempt_of(**fields), Script({Complete: [DOWN] * 100})
    assert script.run(finish(attempt, DONE)) is Fate.UNRECORDED
    assert limit - 1.0 <= slept(script) <= limit
    assert reported(attempt)[-1] is events.Unrecorded
    assert recorded_later(script).attempt is attempt
    assert recorded_later(script).size == len(script.asked_for(Complete)[0].response)


@pytest.mark.parametrize("seconds", [0.9, 2.0, 4.0, 6.0])
def test_the_first_call_counts_for_what_the_client_waits(seconds: float) -> None:
    """L-08: the bound holds however slow the calls are; no further call is made that would end too late if it took as
    long as the last one.
    """

    class Slow(Script):
        seconds = 0.0

        def _result(self, command: Any) -> Any:
            self.clock += self.seconds if isinstance(command, Complete) else 0.0
            return super()._result(command)

    script = Slow({Complete: [DOWN] * 100})
    script.seconds = seconds
    script.run(finish(attempt_of(), DONE))
    assert script.clock - Script.clock <= max(5.0, seconds)


def test_a_client_gets_its_response_before_its_server_ends_the_request() -> None:
    """L-08: where the server's time limit is known."""
    attempt, script = attempt_of(), Script({Complete: [DOWN] * 100})
    attempt.ends_at = script.clock + 2.0
    assert script.run(finish(attempt, DONE)) is Fate.UNRECORDED
    assert slept(script) <= 2.0


def slept(script: Script) -> float:
    """How long the settlement paused."""
    return sum(command.seconds for command in script.asked if isinstance(command, Sleep))


@pytest.mark.parametrize("alone", [False, True], ids=["all slots are taken", "a worker with one thread"])
def test_a_client_waits_only_briefly_where_its_thread_is_needed(alone: bool) -> None:
    """L-08: a request that waits in a thread keeps that thread from requests without a key."""
    attempt, script = attempt_of(), Script({Complete: [DOWN] * 100}, slots=int(alone))
    attempt.alone = alone
    assert script.run(finish(attempt, DONE)) is Fate.UNRECORDED
    assert 0.1 < slept(script) <= 1.0
    assert recorded_later(script)


def test_the_place_is_given_back_before_the_response_goes_out() -> None:
    """L-08, O-04: the slot is freed first."""
    script = Script({Complete: [DOWN] * 100})
    script.run(finish(attempt_of(), DONE))
    assert script.slots == 1


@pytest.mark.parametrize("room", [True, False])
def test_where_there_is_no_room_the_recording_is_reported_as_lost(room: bool) -> None:
    """L-08: a recording is never lost silently."""
    attempt, script = attempt_of(respond_within=0), Script({Complete: [DOWN], RecordLater: [room]})
    script.run(finish(attempt, DONE))
    assert reported(attempt)[2:] == ([] if room else [events.RecordingLost])


def test_record_within_bounds_all_of_it() -> None:
    """L-08: if it is shorter than ``respond_within``, it bounds that too, and nothing is handed over."""
    attempt, script = attempt_of(record_within=0), Script({Complete: [DOWN] * 100})
    assert script.run(finish(attempt, DONE)) is Fate.UNRECORDED
    assert script.names() == ["Complete"]
    assert reported(attempt) == [events.BackendFailed, events.Unrecorded, events.RecordingLost]


def handed_over(write: Any = Complete, **fields: Any) -> tuple[Attempt, RecordLater, float]:
    """An attempt whose last write continues in the background, and the time at which that begins."""
    attempt, script = attempt_of(respond_within=0, **fields), Script({write: [DOWN]})
    script.run(finish(attempt, {Complete: DONE, Fail: Response(500, [], b""), Release: Response(403, [], b"")}[write]))
    attempt.policy.on_event.seen.clear()
    return attempt, recorded_later(script), script.clock


@pytest.mark.parametrize("failures", [0, 1, 30])
def test_the_recording_goes_on_in_the_background_until_it_succeeds(failures: int) -> None:
    """L-08: its pauses are a second at most."""
    attempt, later, _ = handed_over()
    script = Script({Complete: [DOWN] * failures + [Completed()]})
    script.run(later.steps)
    assert script.names() == ["Sleep", "Complete"] * (failures + 1)
    assert max(command.seconds for command in script.asked if isinstance(command, Sleep)) <= 1.0
    assert reported(attempt) == [events.RecordedLate]


@pytest.mark.parametrize(("write", "event"), [(Fail, events.Failed), (Release, events.Released)])
def test_a_failure_and_a_release_go_on_in_the_background_as_well(write: Any, event: Any) -> None:
    """L-08, L-04: the retry need not wait for the lease, and the client does not wait at all."""
    attempt, later, _ = handed_over(write)
    Script({write: [DOWN, None]}).run(later.steps)
    assert reported(attempt) == [event]


def test_a_recording_that_is_superseded_ends_and_is_reported() -> None:
    """L-03, L-08."""
    attempt, later, _ = handed_over()
    script = Script({Complete: [DOWN, LeaseLost("superseded")]})
    script.run(later.steps)
    assert reported(attempt) == [events.OwnershipLost, events.RecordingLost]
    assert attempt.policy.on_event.seen[-1].reason == "superseded"


def test_a_recording_whose_attempt_is_known_to_be_lost_writes_nothing() -> None:
    """L-03, L-08: it would recreate a record that belongs to another attempt."""
    attempt, later, _ = handed_over()
    attempt.lost = True
    script = Script()
    script.run(later.steps)
    assert script.names() == ["Sleep"]
    assert reported(attempt) == [events.RecordingLost]


@pytest.mark.parametrize(("fields", "total"), [({}, 3600.0), ({"record_within": 60}, 60.0)])
def test_a_recording_gives_up_after_record_within(fields: dict[str, Any], total: float) -> None:
    """L-08: after ``max_run`` if the policy has no ``record_within``."""
    attempt, later, began = handed_over(**fields)
    script = Script({Complete: [DOWN] * 4000}, clock=began)
    script.run(later.steps)
    assert total - 2.0 <= slept(script) <= total
    assert later.until == began + total
    assert reported(attempt) == [events.RecordingLost]


def test_a_backends_own_bug_is_reported_once_and_tried_again() -> None:
    """L-08: the handler has run, whatever the backend raises."""
    attempt, later, _ = handed_over()
    Script({Complete: [TypeError("bug"), TypeError("bug"), Completed()]}).run(later.steps)
    assert reported(attempt) == [events.BackendFailed, events.RecordedLate]


def test_a_record_that_vanished_meanwhile_is_made_anew() -> None:
    """B-08a, L-08: the recording recreates the record."""
    attempt, later, _ = handed_over()
    Script({Complete: [Completed(recreated=True)]}).run(later.steps)
    assert reported(attempt) == [events.Recreated, events.RecordedLate]


def test_a_release_in_the_background_gives_the_callers_place_back() -> None:
    """L-08: the quota slot of the caller is freed too."""
    attempt, script = attempt_of(), Script({Release: [DOWN, None], Unreserve: [None]})
    attempt.scope_id = b"s" * 32
    script.run(finish(attempt, Response(403, [], b"")))
    script.run(recorded_later(script).steps)
    assert script.names()[-2:] == ["Release", "Unreserve"]


def test_a_completion_over_an_unreadable_record_goes_out_unrecorded_at_once() -> None:
    """B-08b, L-08: another try would not help."""
    attempt, script = attempt_of(), Script({Complete: [RecordUnreadable("newer")]})
    assert script.run(finish(attempt, DONE)) is Fate.UNRECORDED
    assert reported(attempt) == [events.Unrecorded, events.RecordingLost]


def test_a_record_that_vanished_is_completed_anew_and_reported() -> None:
    """B-08a."""
    attempt, script = attempt_of(), Script({Complete: [Completed(recreated=True)]})
    assert script.run(finish(attempt, DONE)) is Fate.KEPT
    assert reported(attempt) == [events.Recreated, events.Completed]


@pytest.mark.parametrize("verb", [Release, Fail], ids=["Release", "Fail"])
@pytest.mark.parametrize("error", [DOWN, RecordUnreadable("newer")], ids=["down", "unreadable"])
def test_a_response_that_is_not_kept_goes_out_even_if_the_backend_is_down(verb: Any, error: Exception) -> None:
    """L-08: the lease expires by itself."""
    attempt, script = attempt_of(), Script({verb: [error]})
    status = {Release: 403, Fail: 500}[verb]
    assert script.run(finish(attempt, Response(status, [], b""))) is Fate.NOT_KEPT
    assert reported(attempt) == [events.BackendFailed]


# A later attempt owns the record


def superseded(attempt: Attempt, record: Any, response: Response = DONE) -> tuple[Response, Script]:
    """What the client of a superseded attempt gets, and the script with its commands."""
    lost = [LeaseLost("superseded")]
    script = Script({Complete: lost, Release: lost, Fail: lost, Get: [record]})
    sent = script.run(finish(attempt, response))
    assert isinstance(sent, Response)
    return sent, script


@pytest.mark.parametrize("status", [201, 403, 500])
def test_a_stale_response_never_goes_out_the_new_owners_does(status: int) -> None:
    """L-03: the client gets the new owner's response, whatever the stale one was."""
    attempt = attempt_of()
    sent, script = superseded(attempt, completed_by(), Response(status, [], b"mine"))
    assert (sent.status, sent.body) == (202, b"theirs")
    assert script.names()[-1] == "Get"
    assert reported(attempt) == [events.OwnershipLost]


@pytest.mark.parametrize(
    "record",
    [
        None,
        completed_by(status=Status.IN_PROGRESS, response=None),
        completed_by(status=Status.FAILED),
        completed_by(fingerprint=b"\x01another"),
    ],
    ids=["absent", "running", "failed", "another-request"],
)
def test_a_stale_response_without_a_new_one_is_a_conflict(record: Record | None) -> None:
    """L-03: the client gets 409."""
    sent, _ = superseded(attempt_of(), record)
    assert json.loads(sent.body or b"")["type"].endswith(":in-progress")


@pytest.mark.parametrize("record", [DOWN, RecordUnreadable("x"), completed_by(response=b"junk")])
def test_a_stale_response_never_goes_out_even_if_the_backend_cannot_say_more(record: Any) -> None:
    """L-03, I8: the client gets a problem."""
    sent, _ = superseded(attempt_of(), record)
    assert sent.status == 503


def test_an_attempt_that_is_known_to_be_lost_records_nothing() -> None:
    """L-03, S-07: the heartbeat reported the loss, and it is not reported again."""
    attempt, script = attempt_of(), Script({Get: [completed_by()]})
    attempt.lost = True
    assert script.run(finish(attempt, DONE)).body == b"theirs"
    assert script.names() == ["Get"]
    assert reported(attempt) == []


# Cancellation

CANCELLED = asyncio.CancelledError()


def test_a_cancelled_completion_is_sent_once_more_and_the_cancellation_goes_on() -> None:
    """L-04, B-08: a completion that its owner sends twice succeeds."""
    script = Script({Complete: [CANCELLED, Completed()]})
    with pytest.raises(asyncio.CancelledError) as caught:
        script.run(finish(attempt_of(), DONE))
    assert caught.value is CANCELLED
    first, second = script.asked_for(Complete)
    assert first is second


def test_a_completion_that_is_cancelled_between_tries_is_sent_once_more() -> None:
    """L-04, L-08."""
    script = Script({Complete: [DOWN, Completed()], Sleep: [CANCELLED]})
    with pytest.raises(asyncio.CancelledError):
        script.run(finish(attempt_of(), DONE))
    assert script.names() == ["Complete", "TakeSlot", "Sleep", "Complete"]


@pytest.mark.parametrize("error", [DOWN, LeaseLost("x"), RecordUnreadable("x")])
def test_a_cancellation_goes_on_even_if_the_completion_fails(error: Exception) -> None:
    """L-04, L-08: the failure is reported; while the backend is down, the completion continues in the background."""
    attempt, script = attempt_of(), Script({Complete: [CANCELLED, error]})
    with pytest.raises(asyncio.CancelledError):
        script.run(finish(attempt, DONE))
    assert reported(attempt) == [events.BackendFailed]
    assert ("RecordLater" in script.names()) is (error is DOWN)


@pytest.mark.parametrize(("status", "verb"), [(403, Release), (500, Fail)])
def test_a_cancelled_release_or_failure_is_sent_once_more(status: int, verb: Any) -> None:
    """L-04."""
    script = Script({verb: [CANCELLED, None]})
    with pytest.raises(asyncio.CancelledError):
        script.run(finish(attempt_of(), Response(status, [], b"")))
    assert script.names() == [verb.__name__] * 2


def test_a_settlement_that_is_thrown_away_asks_nothing_more() -> None:
    """A loop that is torn down closes its coroutines; commands cannot be carried out there."""
    steps = finish(attempt_of(), DONE)
    next(steps)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


# Aborting


@pytest.mark.parametrize(
    ("error", "policy", "final"),
    [
        (ValueError(), {}, False),
        (ValueError(), {"on_failed": "reject"}, True),
        (ValueError(), {"on_failed": "replay"}, True),
        (ValueError(), {"on_abandoned": "reject"}, False),
        (CANCELLED, {}, False),
        (CANCELLED, {"on_abandoned": "reject"}, True),
        (CANCELLED, {"on_failed": "reject"}, False),
        (SystemExit(), {"on_abandoned": "reject"}, True),
        (KeyboardInterrupt(), {}, False),
    ],
)
def test_a_handler_that_raised_or_was_stopped_fails_as_the_policy_says(
    error: BaseException, policy: dict[str, Any], final: bool
) -> None:
    """L-04, O-08, O-09: an exception is a failure; a cancellation leaves the outcome as unknown as a crash does."""
    attempt, script = attempt_of(**policy), Script({Fail: [None]})
    assert script.run(abort(attempt, error)) is Fate.NOT_KEPT
    command = script.asked[0]
    assert isinstance(command, Fail)
    assert (command.final, command.response) == (final, None)
    assert script.names() == ["Fail"]


def test_a_handler_that_raised_without_a_lease_settles_nothing() -> None:
    script = Script()
    assert script.run(abort(Attempt(IdempotencyPolicy()), ValueError())) is Fate.NOT_KEPT
    assert script.asked == []


def test_a_failure_is_not_held_up_by_a_backend_that_is_down() -> None:
    """L-04, L-08: the write continues in the background."""
    attempt, script = attempt_of(), Script({Fail: [DOWN]})
    assert script.run(abort(attempt, ValueError())) is Fate.NOT_KEPT
    assert script.names() == ["Fail", "RecordLater"]


@pytest.mark.parametrize("how", ["reported by the heartbeat", "raised by a stage", "refused by the backend"])
def test_a_stale_handler_that_raised_gets_the_new_owners_response(how: str) -> None:
    """L-03, S-07: the loss is reported once."""
    attempt, script = attempt_of(), Script({Fail: [LeaseLost("x")], Get: [completed_by()]})
    attempt.lost = how == "reported by the heartbeat"
    error = LeaseLost("x") if how == "raised by a stage" else ValueError()
    sent = script.run(abort(attempt, error))
    assert sent.body == b"theirs"
    assert script.names() == (["Fail", "Get"] if how == "refused by the backend" else ["Get"])
    assert reported(attempt) == ([] if how == "reported by the heartbeat" else [events.OwnershipLost])


@pytest.mark.parametrize("end", [lambda a: finish(a, DONE), lambda a: abort(a, ValueError())], ids=["finish", "abort"])
def test_an_attempt_that_is_settled_takes_no_more_stages(end: Any) -> None:
    """S-03: the error is ERR_COMPLETED."""
    attempt = attempt_of()
    Script({Complete: [Completed()], Fail: [None]}).run(end(attempt))
    with pytest.raises(AlreadyCompleted):
        attempt.check_running()
