"""Encryption as a list of commands: backends get sealed frames; attempts and views get plain values."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Claim, Complete, Fail, Get, SaveStage
from open_idempotency._core.models import (
    Completed,
    Finished,
    Lease,
    Leased,
    Record,
    Refusal,
    Refused,
    Response,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency._core.recording import save_stage
from open_idempotency._core.settlement import Fate, finish
from open_idempotency._core.stored_response import (
    FAILURE,
    RESPONSE,
    SEALED,
    StageKind,
    decode_response,
    encode_response,
    encode_stage,
    seal,
    seal_stage,
    unseal,
    unseal_stage,
)
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import BackendUnavailable, LeaseLost, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy
from tests.effort import times
from tests.unit.builders import PRINT, RECORD, Listener, Script, attempt_of, lease_of
from tests.unit.core.admissions import Admission, name

KEYS = EncryptionKeys({"2026": b"k" * 32})
POLICY = IdempotencyPolicy(encryption=KEYS)
LEASE = lease_of()
DONE = Response(201, [(b"location", b"/cards/4111")], b"card 4111")
PLAIN = encode_response(DONE)
VALUE = encode_stage(StageKind.VALUE, b'"4111"')
OTHER = encode_stage(StageKind.VALUE, b'"5222"')
NEW = Stage("charge", "", VALUE)
DOWN = BackendUnavailable("down")


def reported(attempt: Attempt) -> list[events.Event]:
    """The events that the attempt's listener received."""
    assert isinstance(attempt.policy.on_event, Listener)
    return attempt.policy.on_event.seen


class Accepting(Script):
    """A script that returns every stage as it was sent, unless a result is prepared."""

    recreated = False

    def _SaveStage(self, command: SaveStage) -> StageSaved:  # noqa: N802 (named for the command)
        return StageSaved(command.stage.frame, recreated=self.recreated and len(saved(self)) == 1)


def saved(script: Script) -> list[Stage]:
    """The stages that the backend was given."""
    return [command.stage for command in script.asked if isinstance(command, SaveStage)]


# Stages


def test_a_stage_goes_to_the_backend_sealed_and_stays_plain_here() -> None:
    """B-06: the view sees the value that it saved."""
    attempt = attempt_of(encryption=KEYS)
    script = Accepting({SaveStage: [DOWN]})
    assert script.run(save_stage(attempt, NEW)) == VALUE
    first, second = saved(script)
    assert first == second, "a resent stage has the same bytes"
    assert b"4111" not in first.frame
    assert (first.name, first.key) == ("charge", "")
    assert unseal_stage(first, LEASE, POLICY) == NEW
    assert attempt.stages == {("charge", ""): VALUE}


def test_a_stage_that_was_on_record_has_its_first_value() -> None:
    """B-06: an earlier attempt sealed it, so its bytes differ."""
    first = seal_stage(Stage("charge", "", OTHER), LEASE, POLICY)
    attempt, script = attempt_of(encryption=KEYS), Script({SaveStage: [StageSaved(first.frame)]})
    assert script.run(save_stage(attempt, NEW)) == OTHER
    assert attempt.stages == {("charge", ""): OTHER}


def test_the_same_value_sealed_by_an_earlier_try_is_the_same_value() -> None:
    """B-08: a resent stage differs in its bytes and succeeds."""
    first = seal_stage(NEW, LEASE, POLICY)
    script = Script({SaveStage: [StageSaved(first.frame)]})
    assert script.run(save_stage(attempt_of(encryption=KEYS), NEW)) == VALUE
    assert saved(script)[0].frame != first.frame


def test_stages_are_sealed_again_into_a_record_that_vanished() -> None:
    """B-08a."""
    attempt = attempt_of(Stage("a", "1", OTHER), encryption=KEYS)
    script = Accepting()
    script.recreated = True
    script.run(save_stage(attempt, NEW))
    assert [unseal_stage(stage, LEASE, POLICY) for stage in saved(script)] == [NEW, Stage("a", "1", OTHER)]
    assert all(stage.frame.startswith(SEALED) for stage in saved(script))


def test_a_stage_that_is_not_one_of_this_place_is_unreadable_to_the_view() -> None:
    """B-08b: a stage that the backend returns is verified too."""
    moved = seal_stage(Stage("refund", "", OTHER), LEASE, POLICY)
    attempt, script = attempt_of(encryption=KEYS), Script({SaveStage: [StageSaved(moved.frame)]})
    with pytest.raises(RecordUnreadable):
        script.run(save_stage(attempt, NEW))
    assert attempt.stages == {}


# Responses


def test_a_response_goes_to_the_backend_sealed() -> None:
    """The body and the headers are encrypted."""
    attempt, script = attempt_of(encryption=KEYS), Script({Complete: [Completed()]})
    assert script.run(finish(attempt, DONE)) is Fate.KEPT
    (command,) = (c for c in script.asked if isinstance(c, Complete))
    assert b"4111" not in command.response
    assert decode_response(unseal(command.response, RESPONSE, LEASE, POLICY)) == DONE
    assert reported(attempt) == [events.Completed(events.short(RECORD), 201, True)]


def test_a_failed_response_that_is_to_be_replayed_is_sealed_too() -> None:
    """O-08: ``on_failed="replay"``."""
    attempt, script = attempt_of(encryption=KEYS, on_failed="replay"), Script({Fail: [None]})
    script.run(finish(attempt, Response(503, [], b"card 4111")))
    (command,) = (c for c in script.asked if isinstance(c, Fail))
    assert command.final
    assert command.response is not None
    assert b"4111" not in command.response
    assert decode_response(unseal(command.response, FAILURE, LEASE, POLICY)).body == b"card 4111"


def test_a_superseded_client_gets_the_new_owners_response_in_plain() -> None:
    """L-03."""
    frame = seal(PLAIN, RESPONSE, LEASE, POLICY)
    record = Record(RECORD, PRINT, Status.COMPLETED, b"n" * 16, 9, 2, 0.0, 0.0, 1.0, 1.0, response=frame)
    script = Script({Complete: [LeaseLost("x")], Get: [record]})
    response = script.run(finish(attempt_of(encryption=KEYS), DONE))
    assert response.body == b"card 4111"


# Admission


def admission(*claims: Any, **fields: Any) -> Admission:
    """An admission with encryption."""
    return Admission(*claims, **{"encryption": KEYS, **fields})


def _claim() -> Claim:
    """The claim that every admission here makes."""
    probe = Admission(DOWN)
    probe.run()
    return next(command for command in probe.script.asked if isinstance(command, Claim))


CLAIM = _claim()
MINE = Lease(CLAIM.record_id, CLAIM.owner, 5, 2, CLAIM.fingerprint, 30.0, 86_400.0)


def test_a_repeat_gets_the_stored_response_in_plain() -> None:
    """O-02."""
    response = admission(Finished(seal(PLAIN, RESPONSE, CLAIM, POLICY))).run()
    assert (response.status, response.body) == (201, b"card 4111")


def test_a_failed_response_is_replayed_in_plain() -> None:
    """O-08."""
    frame = seal(PLAIN, FAILURE, CLAIM, POLICY)
    response = admission(Refused(Refusal.FAILED, 1, frame), on_failed="replay").run()
    assert response.body == b"card 4111"


def test_a_later_attempt_knows_the_stages_in_plain() -> None:
    """O-08: the attempt reads them, whichever key sealed them."""
    stage = seal_stage(NEW, MINE, IdempotencyPolicy(encryption=EncryptionKeys({"2025": b"o" * 32})))
    both = EncryptionKeys({"2026": b"k" * 32, "2025": b"o" * 32})
    attempt = admission(Leased(MINE, (stage,)), encryption=both).run()
    assert attempt.stages == {("charge", ""): VALUE}


STRANGER = replace(CLAIM, record_id=b"s" * 32)
ANOTHER_REQUEST = replace(CLAIM, fingerprint=b"\x01" + b"a" * 32)
WRONG_RESPONSES = {
    "of another record": seal(PLAIN, RESPONSE, STRANGER, POLICY),
    "of another request with this key": seal(PLAIN, RESPONSE, ANOTHER_REQUEST, POLICY),
    "of a failure": seal(PLAIN, FAILURE, CLAIM, POLICY),
    "of a stage": seal_stage(Stage("answer", "", PLAIN), MINE, POLICY).frame,
    "plain": PLAIN,
    "empty": b"",
    "of no cipher": SEALED,
    "sealed, and no response": seal(b"no response", RESPONSE, CLAIM, POLICY),
    "of another key": seal(PLAIN, RESPONSE, CLAIM, IdempotencyPolicy(encryption=EncryptionKeys({"2026": b"x" * 32}))),
}


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("frame", WRONG_RESPONSES.values(), ids=WRONG_RESPONSES)
def test_a_response_that_does_not_belong_here_fails_closed(frame: bytes, fail_open: bool) -> None:
    """B-08b: 503; nothing runs and nothing is written, also where the route fails open."""
    tried = admission(Finished(frame), fail_open=fail_open)
    assert name(tried.problem()) == "record-unreadable"
    assert tried.script.names() == ["Call", "Call", "Claim"]
    assert tried.listener.kinds() == [events.BackendFailed]


@settings(max_examples=times(50), deadline=None)
@given(frame=st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: SEALED + b"\x01\x042026" + rest))
def test_any_bytes_as_a_sealed_record_fail_closed(frame: bytes) -> None:
    """B-08b: the bytes stand for a response and for a stage."""
    assert name(admission(Finished(frame)).problem()) == "record-unreadable"
    tried = admission(Leased(MINE, (Stage("charge", "", frame),)), releases=(None,))
    assert name(tried.problem()) == "record-unreadable"


WRONG_STAGES = {
    "of another name": replace(seal_stage(Stage("refund", "", VALUE), MINE, POLICY), name="charge"),
    "of another key": replace(seal_stage(Stage("charge", "2", VALUE), MINE, POLICY), key=""),
    "of a name that runs into its key": replace(
        seal_stage(Stage("charge", "d", VALUE), MINE, POLICY), name="charged", key=""
    ),
    "of another record": seal_stage(NEW, replace(MINE, record_id=b"s" * 32), POLICY),
    "of a response": Stage("charge", "", seal(VALUE, RESPONSE, MINE, POLICY)),
    "plain": NEW,
}


@pytest.mark.parametrize("stage", WRONG_STAGES.values(), ids=WRONG_STAGES)
def test_a_stage_that_does_not_belong_here_fails_closed(stage: Stage) -> None:
    """B-08b: 503; nothing runs, and the claim is released."""
    good = seal_stage(Stage("reserve", "", VALUE), MINE, POLICY)
    tried = admission(Leased(MINE, (good, stage)), releases=(None,))
    assert name(tried.problem()) == "record-unreadable"
    assert tried.script.names() == ["Call", "Call", "Claim", "Release"]


# Switching it on


def test_a_sealed_record_is_unreadable_without_encryption() -> None:
    """B-08b: a worker that has no keys does not run the request again."""
    tried = admission(Finished(seal(PLAIN, RESPONSE, CLAIM, POLICY)), encryption=None)
    assert name(tried.problem()) == "record-unreadable"


@pytest.mark.parametrize("mode", ["accept", "write"])
def test_while_encryption_is_switched_on_plain_and_sealed_records_are_read(mode: Any) -> None:
    """Live records outlast a deploy."""
    for frame in (PLAIN, seal(PLAIN, RESPONSE, CLAIM, POLICY)):
        assert admission(Finished(frame), plain_records=mode).run().body == b"card 4111"
    for stage in (NEW, seal_stage(NEW, MINE, POLICY)):
        attempt = admission(Leased(MINE, (stage,)), plain_records=mode).run()
        assert attempt.stages == {("charge", ""): VALUE}


@pytest.mark.parametrize(("mode", "sealed"), [("refuse", True), ("accept", True), ("write", False)])
def test_the_first_step_of_switching_on_seals_nothing_yet(mode: Any, sealed: bool) -> None:
    """Workers that do not have the keys yet can still read the records."""
    attempt = attempt_of(encryption=KEYS, plain_records=mode)
    script = Accepting({Complete: [Completed()]})
    script.run(save_stage(attempt, NEW))
    script.run(finish(attempt, DONE))
    (completion,) = (c for c in script.asked if isinstance(c, Complete))
    assert [frame.startswith(SEALED) for frame in (saved(script)[0].frame, completion.response)] == [sealed] * 2


# Custom sealers


class Broken:
    """A sealer whose key service is down; ``outcome`` is raised if it is an exception, and otherwise returned."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def seal(self, plain: bytes, bound_to: bytes, /) -> bytes:
        return self._failing()

    def unseal(self, sealed: bytes, bound_to: bytes, /) -> bytes:
        return self._failing()

    def _failing(self) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


BROKEN = [ConnectionError("hunter2"), BackendUnavailable("the key service"), "text", None]


@pytest.mark.parametrize("outcome", BROKEN, ids=repr)
def test_a_response_that_cannot_be_sealed_leaves_a_bare_tombstone(outcome: Any) -> None:
    """I2: the handler has run, so the record is completed; it has only the status of the response."""
    attempt, script = attempt_of(encryption=Broken(outcome)), Script({Complete: [Completed()]})
    assert script.run(finish(attempt, DONE)) is Fate.KEPT
    (command,) = (c for c in script.asked if isinstance(c, Complete))
    assert decode_response(command.response) == Response(201, [], None)
    failed, completed = reported(attempt)
    assert isinstance(failed, events.HookFailed)
    assert failed.hook == "encryption"
    assert "hunter2" not in repr(failed)
    assert completed == events.Completed(events.short(RECORD), 201, False)
    # and a retry gets an error, and does not run
    assert name(admission(Finished(command.response)).problem()) == "record-unreadable"


@pytest.mark.parametrize("outcome", BROKEN, ids=repr)
def test_a_stage_that_cannot_be_sealed_is_an_error_and_never_stored_plain(outcome: Any) -> None:
    """The stage fails as it does while the backend is down."""
    attempt, script = attempt_of(encryption=Broken(outcome)), Script()
    with pytest.raises(BackendUnavailable):
        script.run(save_stage(attempt, NEW))
    assert script.asked == []
    assert attempt.stages == {}


@pytest.mark.parametrize("outcome", BROKEN, ids=repr)
def test_a_sealer_that_cannot_open_never_lets_a_request_run(outcome: Any) -> None:
    """B-08b, I8: the record exists, so failing open must not run the request again."""
    frame = seal(PLAIN, RESPONSE, CLAIM, POLICY)
    tried = admission(Finished(frame), encryption=Broken(outcome), fail_open=True)
    assert name(tried.problem()) == "record-unreadable"


def test_a_cancelled_completion_sends_the_same_sealed_bytes_again() -> None:
    """L-04, B-08: it is sealed once and sent twice."""
    script = Script({Complete: [asyncio.CancelledError(), Completed()]})
    with pytest.raises(asyncio.CancelledError):
        script.run(finish(attempt_of(encryption=KEYS), DONE))
    first, second = (c.response for c in script.asked if isinstance(c, Complete))
    assert first == second


class Notebook:
    """A custom sealer: it keeps the plain bytes, and returns numbers for them."""

    def __init__(self) -> None:
        self.pages: list[tuple[bytes, bytes]] = []

    def seal(self, plain: bytes, bound_to: bytes, /) -> bytes:
        self.pages.append((plain, bound_to))
        return b"%d" % (len(self.pages) - 1)

    def unseal(self, sealed: bytes, bound_to: bytes, /) -> bytes:
        plain, place = self.pages[int(sealed)]
        if place != bound_to:
            raise LookupError("moved")
        return plain


def test_a_sealer_of_ones_own_is_asked_for_every_frame() -> None:
    """A custom key service seals every frame; each frame is bound to a digest of its own."""
    notebook = Notebook()
    policy = IdempotencyPolicy(encryption=notebook)
    frames = [
        seal(PLAIN, RESPONSE, LEASE, policy),
        seal(PLAIN, FAILURE, LEASE, policy),
        *(seal_stage(Stage(*names, VALUE), LEASE, policy).frame for names in (("a", ""), ("a", "b"), ("ab", ""))),
    ]
    assert frames == [SEALED + b"%d" % number for number in range(5)]
    assert len({place for _, place in notebook.pages}) == 5
    assert {len(place) for _, place in notebook.pages} == {32}
    assert unseal(frames[0], RESPONSE, LEASE, policy) == PLAIN
    with pytest.raises(RecordUnreadable):
        unseal(frames[0], FAILURE, LEASE, policy)


def test_the_sealer_is_not_shown_with_the_policy() -> None:
    assert "Notebook" not in repr(IdempotencyPolicy(encryption=Notebook()))
