"""Stored data can be encrypted or redacted, and no client sees a difference in the live response."""

from __future__ import annotations

import json

from open_idempotency.backend import Complete, SaveStage
from tests.http.behaviours import Call, Reply, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Declined, Steps
from tests.http.sites import Case
from tests.http.variants import on_memory_only

CARD = "4111-1111-1111-1111"


def with_a_card(call: Call) -> Steps:
    """Reserves on a card, fails in the first attempt, and then responds with the card."""
    reserved = yield Run("reserve", lambda: {"card": CARD, "run": len(call.script.runs)})
    if len(call.script.runs) == 1:
        raise Declined("after the stage")
    return Reply(201, [("Content-Type", "application/json")], json.dumps({"reserved": reserved}).encode())


def stored(case: Case) -> list[bytes]:
    """The frames of stages and responses that the backend was given."""
    stages = [command.stage.frame for command in case.commands if isinstance(command, SaveStage)]
    return stages + [command.response for command in case.commands if isinstance(command, Complete)]


def test_an_encrypted_request_resumes_and_is_replayed_as_any_other(new_case: NewCase) -> None:
    """R-01, O-08: the backend gets neither the body nor the value of a stage in plain text."""
    case = new_case(with_a_card, "encrypted")
    assert case.send().status_code == 500
    first, second = case.send(), case.send()
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert first.json() == {"reserved": {"card": CARD, "run": 1}}
    frames = stored(case)
    assert len(frames) == 2
    assert all(CARD.encode() not in frame and b"2026" in frame for frame in frames)


@on_memory_only
def test_a_redacted_response_reaches_its_first_client_whole(new_case: NewCase) -> None:
    """The live response is not changed, in every adapter's way of sending it."""
    case = new_case(with_a_card, "redacts")
    case.send()
    first, second = case.send(), case.send()
    assert first.json() == {"reserved": {"card": CARD, "run": 1}}
    assert second.json() == {"reserved": {"card": None, "run": 1}}
    assert second.headers["idempotent-replayed"] == "true"
