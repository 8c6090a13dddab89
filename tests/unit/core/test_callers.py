"""A retry that comes from another caller: the steps of the core, on a real engine (O-14)."""

from __future__ import annotations

import pytest

from open_idempotency import events
from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.caller_changes import Change, follow
from open_idempotency._core.commands import Claim, Command, Complete, Emit, Get, R, Steps, ask
from open_idempotency._core.keys import Caller
from open_idempotency._core.models import Identity, Leased, Response
from open_idempotency._core.settlement import finish
from open_idempotency._core.stored_response import encode_response
from open_idempotency._engine.engine import Engine, new_owner
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import BackendUnavailable
from tests.unit.builders import Script, attempt_of, body_of, engine_of, lease_of, request_of

LOST = "0" * 64
KEY = [(b"idempotency-key", b"0123456789abcdef")]


class Lost:
    """The carrier of a caller whose session has ended."""

    def carried(self, caller: Caller) -> bytes | None:
        """No session."""
        return None

    def lost(self) -> str | None:
        """The digest of the session that has ended."""
        return LOST


def intake_of(user: str | None, tenant: str = "") -> Intake:
    """The request, as this user sends it with that session."""
    caller = Identity(user, tenant)
    return Intake(request_of(), KEY, new_owner(), lambda: caller, lambda: body_of(b"{}"), session=Lost())


def admitted(engine: Engine, user: str | None, tenant: str = "") -> Attempt | Response:
    """The result of admission."""
    return engine.sync.run(admit(intake_of(user, tenant), engine.policy))


@pytest.mark.parametrize("encryption", [None, EncryptionKeys({"2026": b"k" * 32})], ids=["plain", "encrypted"])
def test_a_session_that_has_ended_leads_to_the_record(encryption: EncryptionKeys | None) -> None:
    """O-14: the retry follows a pointer, which is encrypted like all other records."""
    engine = engine_of(encryption=encryption)
    attempt = admitted(engine, "ada")
    assert isinstance(attempt, Attempt)
    assert attempt.caller is not None
    engine.sync.run(follow(attempt, attempt.caller, Change(False, LOST), new_owner()))
    engine.sync.run(finish(attempt, Response(201, [], b"done")))
    again = admitted(engine, None)
    assert isinstance(again, Response)
    assert again.body == b"done"


def test_a_session_that_has_ended_leads_nowhere_in_another_tenant() -> None:
    """O-14, O-16: a browser may send the same session and the same key to another tenant."""
    engine = engine_of()
    attempt = admitted(engine, "ada", "one")
    assert isinstance(attempt, Attempt)
    assert attempt.caller is not None
    engine.sync.run(follow(attempt, attempt.caller, Change(False, LOST), new_owner()))
    engine.sync.run(finish(attempt, Response(201, [], b"done")))
    assert isinstance(admitted(engine, None, "one"), Response)
    assert isinstance(admitted(engine, None, "two"), Attempt)


def test_what_is_no_pointer_lets_nothing_run() -> None:
    """O-14, B-08b: 503, as for any record that cannot be read."""
    engine = engine_of()
    attempt = admitted(engine, "ada")
    assert isinstance(attempt, Attempt)
    assert attempt.caller is not None
    claim = Claim(attempt.caller.of_session(LOST), b"f" * 32, new_owner(), 10, 10)
    taken = engine.sync.run(_one(claim))
    assert isinstance(taken, Leased)
    engine.sync.run(_one(Complete(taken.lease, encode_response(Response(200, [], b"")))))
    refused = admitted(engine, None)
    assert isinstance(refused, Response)
    assert refused.status == 503


def _one(command: Command[R]) -> Steps[R]:
    return (yield from ask(command))


def test_where_all_callers_are_one_no_session_is_followed() -> None:
    """O-19b, O-14: no caller can become another one there, so the backend is not asked for a session that has ended."""
    script = Script({Claim: [Leased(lease_of(), ())]})
    attempt = script.run(admit(intake_of("ada"), engine_of(scope="anonymous").policy))
    assert isinstance(attempt, Attempt)
    assert attempt.caller is None
    script = Script({Claim: [Leased(lease_of(), ())]})
    script.run(admit(intake_of(None), engine_of(scope="anonymous").policy))
    assert not any(isinstance(command, Get) for command in script.asked)


def test_a_backend_that_is_down_lets_nothing_run() -> None:
    """O-14, O-12: it is unknown whether the request began under another caller."""
    script = Script({Get: [BackendUnavailable("down")]})
    response = script.run(admit(intake_of(None), engine_of().policy))
    assert isinstance(response, Response)
    assert response.status == 503


@pytest.mark.parametrize("error", [BackendUnavailable("down"), TypeError("a bug")], ids=repr)
def test_a_pointer_that_cannot_be_written_is_reported(error: Exception) -> None:
    """O-14: the outcome of the view is kept all the same."""
    attempt, policy = attempt_of(), engine_of().policy
    caller = Caller(request_of(), "0123456789abcdef", policy, Identity("ada"), b"r" * 32)
    script = Script({Claim: [error]})
    script.run(follow(attempt, caller, Change(False, LOST), new_owner()))
    reported = [command.event for command in script.asked if isinstance(command, Emit)]
    assert [type(event) for event in reported] == [events.BackendFailed, events.CallerChanged]
    assert [event.followed for event in reported if isinstance(event, events.CallerChanged)] == [False]
