"""Settlement of an attempt whose response is in a ledger, as a list of commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, End, LedgerResponse, Watch
from open_idempotency._core.commands import Call, Complete, Fail, Get, Release
from open_idempotency._core.models import Completed, Response
from open_idempotency._core.settlement import Fate, abort, finish
from open_idempotency._core.stored_response import decode_response, encode_response
from open_idempotency.exceptions import AlreadyCommitted
from tests.unit.builders import Listener, Script, attempt_of

PLACED = Response(201, [(b"x", b"1")], b"placed")
FRAME = encode_response(PLACED)


def responded(end: End, proof: Callable[[], bool] | None = None, **policy: Any) -> Attempt:
    """An attempt that has put its response into a ledger, with what is known of its transaction."""
    attempt = attempt_of(**policy)
    attempt.in_ledger().put_response(LedgerResponse(PLACED, FRAME, True, None, Watch(lambda: end, proof)))
    return attempt


def seen(attempt: Attempt) -> list[type[events.Event]]:
    """The classes of the attempt's events."""
    assert isinstance(attempt.policy.on_event, Listener)
    return attempt.policy.on_event.kinds()


def away() -> bool:
    """A proof that fails: the database is down."""
    raise ConnectionError("away")


# Failures after the COMMIT


@pytest.mark.parametrize(
    "how",
    [
        lambda attempt: abort(attempt, ZeroDivisionError()),
        lambda attempt: finish(attempt, Response(500, [], b"error")),
        lambda attempt: finish(attempt, Response(429, [], b"later")),
    ],
    ids=["raised", "failed", "not kept"],
)
def test_a_committed_response_is_recorded_whatever_came_behind_it(how: Callable[[Attempt], Any]) -> None:
    """S-06b: the client gets what the view made of it."""
    attempt, script = responded(End.COMMITTED), Script({Complete: [Completed()]})
    assert script.run(how(attempt)) is Fate.NOT_KEPT
    assert script.names() == ["Complete"]
    (command,) = script.asked_for(Complete)
    assert decode_response(command.response) == PLACED


class Forgotten:
    """An entry of the attempt for a stage that was never awaited."""

    def end(self) -> tuple[str, ...]:
        """The name of the stage."""
        return ("charge",)


def test_a_committed_response_is_recorded_although_a_stage_was_not_awaited() -> None:
    """O-36, S-06b: its rows cannot be rolled back, so only the client of this attempt gets the 500."""
    attempt, script = responded(End.COMMITTED, on_event=Listener()), Script({Complete: [Completed()]})
    attempt.expect(Forgotten())
    response = script.run(finish(attempt, PLACED))
    assert isinstance(response, Response)
    assert response.status == 500
    assert seen(attempt)[0] is events.NotAwaited
    (command,) = script.asked_for(Complete)
    assert decode_response(command.response) == PLACED


@pytest.mark.parametrize("end", [End.UNREPORTED, End.DOUBTFUL])
@pytest.mark.parametrize("policy", [{"on_failed": "reject"}, {"on_abandoned": "reject"}, {"max_attempts": 3}])
def test_a_strict_policy_asks_the_database_where_the_library_does_not_know(end: End, policy: Any) -> None:
    """S-06b."""
    attempt, script = responded(end, lambda: True, **policy), Script({Complete: [Completed()]})
    script.run(abort(attempt, ZeroDivisionError()))
    assert script.names() == ["Call", "Complete"]


@pytest.mark.parametrize("proof", [lambda: False, away, None], ids=["not there", "away", "cannot be asked"])
def test_without_a_proof_the_attempt_has_failed(proof: Any) -> None:
    """S-06b: a response counts as committed only if that is proven."""
    attempt, script = responded(End.UNREPORTED, proof, on_failed="reject"), Script({Fail: [None]})
    script.run(abort(attempt, ZeroDivisionError()))
    assert script.names() == (["Fail"] if proof is None else ["Call", "Fail"])
    assert (events.BackendFailed in seen(attempt)) is (proof is away)


def test_a_lenient_policy_does_not_ask() -> None:
    """S-06: the retry asks the ledger."""
    attempt, script = responded(End.DOUBTFUL, away), Script({Fail: [None]})
    script.run(abort(attempt, ZeroDivisionError()))
    assert script.names() == ["Fail"]


@pytest.mark.parametrize("end", [End.OPEN, End.ROLLED_BACK])
def test_what_is_known_not_to_be_committed_is_not_asked_for(end: End) -> None:
    """S-06b: the database is not asked."""
    attempt, script = responded(end, away, on_failed="reject"), Script({Fail: [None]})
    script.run(abort(attempt, ZeroDivisionError()))
    assert script.names() == ["Fail"]


def test_a_question_that_is_cancelled_leaves_the_attempt_ended() -> None:
    """L-04: the end of the attempt is recorded, and then the cancellation continues."""
    attempt = responded(End.UNREPORTED, lambda: True, on_failed="reject")
    script = Script({Call: [asyncio.CancelledError()], Fail: [None]})
    with pytest.raises(asyncio.CancelledError):
        script.run(abort(attempt, ZeroDivisionError()))
    assert script.names() == ["Call", "Fail"]


# A view meets its own response again


def test_its_own_response_is_sent_again_once_it_is_committed() -> None:
    """S-06a."""
    attempt, script = responded(End.COMMITTED), Script({Complete: [Completed()]})
    attempt.interrupted = AlreadyCommitted(FRAME)
    response = script.run(finish(attempt, Response(500, [], b"error")))
    assert (response.status, response.body) == (201, b"placed")


@pytest.mark.parametrize("end", [End.OPEN, End.ROLLED_BACK, End.DOUBTFUL, End.UNREPORTED])
def test_its_own_response_is_not_sent_before(end: End) -> None:
    """S-06a: before the commit the response is neither sent nor recorded."""
    attempt, script = responded(end), Script({Fail: [None]})
    attempt.interrupted = AlreadyCommitted(FRAME)
    response = script.run(finish(attempt, Response(500, [], b"error")))
    assert (response.status, script.names()) == (500, ["Fail"])
    assert events.Uncommitted in seen(attempt)


# A stale owner


@pytest.mark.parametrize("end", [End.COMMITTED, End.UNREPORTED])
def test_a_stale_owner_that_returns_its_response_sends_it(end: End) -> None:
    """S-06c: a view that returns normally is believed, as it is while it owns the record."""
    attempt, script = responded(end), Script({Get: [None]})
    attempt.lost = True
    assert script.run(finish(attempt, PLACED)) is Fate.KEPT


@pytest.mark.parametrize(
    ("end", "proof", "status"),
    [
        (End.COMMITTED, None, 201),
        (End.UNREPORTED, lambda: True, 201),
        (End.DOUBTFUL, lambda: True, 201),
        (End.DOUBTFUL, lambda: False, 409),
        (End.UNREPORTED, away, 409),
        (End.UNREPORTED, None, 409),
        (End.ROLLED_BACK, None, 409),
        (End.OPEN, None, 409),
    ],
)
def test_a_stale_owner_that_raises_sends_what_is_known_to_be_committed(end: End, proof: Any, status: int) -> None:
    """S-06c, L-03: without a proof of the commit it is not sent."""
    attempt, script = responded(end, proof), Script({Get: [None]})
    attempt.lost = True
    assert script.run(abort(attempt, ZeroDivisionError())).status == status


def test_a_released_attempt_without_a_ledger_asks_nothing() -> None:
    """S-06b: views without a ledger are not affected."""
    attempt, script = attempt_of(on_failed="reject"), Script({Release: [None]})
    script.run(finish(attempt, Response(429, [], b"later")))
    assert script.names() == ["Release"]
