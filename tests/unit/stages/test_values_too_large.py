"""Responses and stage values that the backend refuses for their size: what the engine records instead (B-21)."""

from __future__ import annotations

from typing import Any

import pytest

from open_idempotency import events, idem
from open_idempotency._core.commands import Complete, Fail, RecordLater
from open_idempotency._core.models import Completed, Response
from open_idempotency._core.settlement import Fate, finish
from open_idempotency._core.stored_response import FAILURE, RESPONSE, StageKind, decode_response, decode_stage, unseal
from open_idempotency.backend import SaveStage, StageSaved
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge
from tests.unit.builders import Listener, Script, attempt_of
from tests.unit.stages.stage_client import Client, Counted

LOCATION = (b"location", b"/orders/1")
LONG = Response(201, [LOCATION], b"made" * 100)
TOO_LARGE = RecordTooLarge("the store takes no such value")
KEYS = EncryptionKeys({"2026": b"k" * 32})


@pytest.mark.parametrize("encryption", [None, KEYS], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    ("refusals", "headers"), [(1, [LOCATION]), (2, [])], ids=["without its body", "without its headers too"]
)
def test_a_response_that_is_too_large_leaves_a_tombstone(refusals: int, headers: Any, encryption: Any) -> None:
    """O-11, B-21: the client gets its response, the log a warning, and the event says that no body was stored."""
    attempt = attempt_of(encryption=encryption)
    script = Script({Complete: [*[TOO_LARGE] * refusals, Completed()]})
    assert script.run(finish(attempt, LONG)) is Fate.KEPT
    last = script.asked_for(Complete)[-1]
    stored = decode_response(unseal(last.response, RESPONSE, last.lease, attempt.policy))
    assert stored == Response(201, headers, None)
    listener = attempt.policy.on_event
    assert isinstance(listener, Listener)
    assert listener.kinds() == [*[events.BackendFailed] * refusals, events.Completed]
    assert listener.seen[0].error == "RecordTooLarge"
    assert listener.seen[-1].stored is False


def test_a_failure_that_is_too_large_leaves_a_tombstone() -> None:
    """O-11, B-21: ``on_failed="replay"`` stores failed responses as well."""
    attempt = attempt_of(on_failed="replay")
    script = Script({Fail: [TOO_LARGE, None]})
    script.run(finish(attempt, Response(502, [LOCATION], b"x" * 100)))
    last = script.asked_for(Fail)[-1]
    frame = unseal(last.response, FAILURE, last.lease, attempt.policy)
    assert (last.final, decode_response(frame)) == (True, Response(502, [LOCATION], None))


def test_a_store_that_takes_nothing_at_all_is_tried_again_as_one_that_is_down() -> None:
    """L-08: a response of a few bytes was refused too, so the server itself has a fault."""
    attempt = attempt_of(respond_within=0)
    script = Script({Complete: [TOO_LARGE] * 3})
    assert script.run(finish(attempt, LONG)) is Fate.UNRECORDED
    assert script.names()[-1] == "RecordLater"


def test_a_response_is_found_too_large_in_the_background() -> None:
    """B-21, L-08: the server was down while the client waited, and refuses the response when it is up again."""
    attempt = attempt_of(respond_within=0)
    script = Script({Complete: [BackendUnavailable("down")]})
    assert script.run(finish(attempt, LONG)) is Fate.UNRECORDED
    (later,) = script.asked_for(RecordLater)
    script.results[Complete] = [TOO_LARGE, Completed()]
    script.run(later.steps)
    assert decode_response(script.asked_for(Complete)[-1].response).body is None
    assert attempt.policy.on_event.kinds()[-1] is events.RecordedLate


WARNED: list[type[events.Event]] = [events.BackendFailed, events.StageValueNotKept]


class Narrow(MemoryBackend):
    """A backend that accepts frames up to a number of bytes, as a server with a limit does."""

    most = 1000

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend``."""
        if len(c.stage.frame) > self.most:
            raise TOO_LARGE
        return super().save_stage(c)


@pytest.mark.parametrize("encryption", [None, KEYS], ids=["plain", "encrypted"])
def test_a_stage_whose_value_is_too_large_is_done_without_it(encryption: Any) -> None:
    """S-02a, B-21: the effect is not repeated, and the attempt continues with the value."""
    listener = Listener()
    client = Client(backend=Narrow(), on_event=listener, encryption=encryption)
    charge = Counted("x" * 2000)
    with client.request():
        assert idem.run("charge", charge) == charge.result
    with client.request() as attempt:
        assert decode_stage(attempt.stages["charge", ""])[0] is StageKind.NOT_KEPT
        assert idem.run("charge", charge, default="gone") == "gone"
    assert charge.calls == 1
    assert [kind for kind in listener.kinds() if kind in WARNED] == WARNED
