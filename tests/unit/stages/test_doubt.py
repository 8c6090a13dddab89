"""Stages in doubt (S-04) through ``idem``, sync and async, on a real engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from open_idempotency import NOT_DONE, UNKNOWN, Found, OutcomeUnknown, SyncAsyncMismatch, events, idem
from open_idempotency._core.commands import SaveStage
from open_idempotency._core.intents import begin
from open_idempotency._core.models import Stage, StageSaved
from open_idempotency._core.stored_response import StageKind, encode_stage
from open_idempotency.exceptions import BackendUnavailable
from tests.unit.builders import Listener, Script, attempt_of
from tests.unit.stages.stage_client import Client, Counted


class Died(BaseException):
    """The worker dies: nothing after this exception is recorded."""


class Declined(Exception):
    """The other system refused, so nothing happened."""


@pytest.fixture
def listener() -> Listener:
    """Collects the events of ``client``."""
    return Listener()


@pytest.fixture
def client(listener: Listener) -> Client:
    """A client with its own backend."""
    return Client(on_event=listener)


def die() -> None:
    """An effect whose worker dies before the stage is recorded."""
    raise Died


def interrupted(client: Client, effect: Callable[..., Any] = die, **terms: Any) -> None:
    """One attempt that ends within the external stage ``charge``."""
    terms = terms or {"external": True}
    with pytest.raises((Died, Declined)), client.request():
        idem.run("charge", effect, **terms)


def doubts(listener: Listener) -> list[tuple[str, str]]:
    """The reported doubts: the stage, and the outcome of each."""
    return [(e.stage, e.finding) for e in listener.seen if isinstance(e, events.InDoubt)]


def test_the_intent_is_on_record_before_the_effect(client: Client) -> None:
    """S-04."""
    with client.request() as attempt:
        before: list[dict[Any, bytes]] = []
        idem.run("charge", lambda: before.append(dict(attempt.stages)), external=True)
        (seen,) = before
        assert [frame[1] for frame in seen.values()] == [StageKind.BEGUN]


def test_a_stage_that_is_not_external_records_no_intent(client: Client) -> None:
    """S-04: it costs no further round trip."""
    with client.request() as attempt:
        seen = []
        idem.run("charge", lambda: seen.append(dict(attempt.stages)))
        assert seen == [{}]


def test_an_intent_is_no_stage_of_the_view(client: Client) -> None:
    """``stages`` and ``load`` show only the stages that views recorded."""
    interrupted(client)
    with client.request():
        assert idem.stages == ()
        assert idem.load("charge", default="none") == "none"


def test_a_doubt_is_raised_unless_something_else_is_asked_for(client: Client, listener: Listener) -> None:
    """S-04: ``on_doubt="raise"`` is the default."""
    interrupted(client)
    effect = Counted()
    with client.request(), pytest.raises(OutcomeUnknown) as caught:
        idem.run("charge", effect, external=True)
    assert (effect.calls, caught.value.retryable, caught.value.code) == (0, False, "ERR_OUTCOME_UNKNOWN")
    assert doubts(listener) == [("charge", "raise")]


def test_a_stage_that_may_be_repeated_is_and_is_in_doubt_again(client: Client, listener: Listener) -> None:
    """S-04: ``on_doubt="rerun"``; the second attempt may die as well."""
    interrupted(client)
    interrupted(client, on_doubt="rerun", external=True)
    with client.request():
        assert idem.run("charge", Counted("third"), external=True, on_doubt="rerun") == "third"
    assert doubts(listener) == [("charge", "rerun")] * 2


def test_what_the_other_side_found_is_recorded(client: Client, listener: Listener) -> None:
    """S-04: ``reconcile`` returns Found; the next attempt does not call it."""
    interrupted(client)
    with client.request():
        assert idem.run("charge", Counted(), reconcile=lambda: Found({"id": "ch_1"})) == {"id": "ch_1"}
    asked = Counted(NOT_DONE)
    with client.request():
        assert idem.run("charge", Counted(), reconcile=asked) == {"id": "ch_1"}
    assert asked.calls == 0
    assert doubts(listener) == [("charge", "found")]


def test_what_is_found_need_not_be_a_value_that_can_be_kept(client: Client) -> None:
    """S-02a: the stage is done, and the next attempt calls ``reconcile`` again."""
    interrupted(client)
    for _ in range(2):
        effect, found = Counted(), object()
        with client.request():
            assert idem.run("charge", effect, reconcile=lambda: Found(found)) is found  # noqa: B023 (called at once)
        assert effect.calls == 0


def test_the_other_side_is_asked_with_the_arguments_of_the_stage(client: Client) -> None:
    """S-04: ``reconcile`` gets them, to find what the stage would have made."""
    asked: list[Any] = []

    def find(*args: Any, **kwargs: Any) -> Found[str]:
        asked.append((args, kwargs))
        return Found("found")

    @idem.stage("charge", reconcile=find, key=lambda order, **_: order)
    def charge(order: str, *, amount: int) -> str:
        raise Died

    with pytest.raises(Died), client.request():
        charge("o-1", amount=5)
    with client.request():
        assert charge("o-1", amount=5) == "found"
    assert asked == [(("o-1",), {"amount": 5})]


def test_a_stage_of_another_key_is_not_in_doubt(client: Client) -> None:
    """S-01, S-04."""
    interrupted(client, external=True, key="a")
    with client.request():
        assert idem.run("charge", Counted("b"), external=True, key="b") == "b"


def test_unknown_may_be_asked_again(client: Client, listener: Listener) -> None:
    """S-04: ``reconcile`` returns UNKNOWN; nothing runs until it returns something else."""
    interrupted(client)
    effect = Counted()
    with client.request(), pytest.raises(OutcomeUnknown) as caught:
        idem.run("charge", effect, reconcile=lambda: UNKNOWN)
    assert (effect.calls, caught.value.retryable) == (0, True)
    with client.request():
        assert idem.run("charge", effect, reconcile=lambda: NOT_DONE) == "done"
    assert [outcome for _, outcome in doubts(listener)] == ["unknown", "not_done"]


def test_another_result_of_reconcile_is_an_error_and_runs_nothing(client: Client) -> None:
    """S-04: a function that forgot to return gives None, which must not mean "not done"."""
    interrupted(client)
    effect = Counted()
    with client.request(), pytest.raises(TypeError, match="returned NoneType, not Found"):
        idem.run("charge", effect, reconcile=lambda: None)
    assert effect.calls == 0


def test_an_error_of_reconcile_is_the_views_and_leaves_the_doubt(client: Client) -> None:
    """S-04: the other system is down as well."""
    interrupted(client)
    with client.request(), pytest.raises(Declined):
        idem.run("charge", Counted(), reconcile=Counted(Declined()))
    with client.request(), pytest.raises(OutcomeUnknown):
        idem.run("charge", Counted(), external=True)


def test_an_exception_leaves_the_stage_in_doubt(client: Client) -> None:
    """S-04: a timeout does not say that nothing happened; this holds within the same attempt too."""
    with client.request():
        with pytest.raises(Declined):
            idem.run("charge", Counted(Declined()), external=True)
        with pytest.raises(OutcomeUnknown):
            idem.run("charge", Counted(), external=True)


def test_an_exception_that_says_so_withdraws_the_intent(client: Client, listener: Listener) -> None:
    """S-04: with ``not_done=``; the stage may begin and be withdrawn any number of times."""
    for _ in range(3):
        interrupted(client, Counted(Declined()), external=True, not_done=(Declined,))
    with client.request():
        assert idem.run("charge", Counted("at last"), external=True) == "at last"
    assert doubts(listener) == []


def test_after_a_withdrawal_it_can_be_in_doubt_again(client: Client) -> None:
    """S-04."""
    interrupted(client, Counted(Declined()), external=True, not_done=(Declined,))
    interrupted(client)
    with client.request(), pytest.raises(OutcomeUnknown):
        idem.run("charge", Counted(), external=True)


def test_a_memoised_error_ends_the_doubt(client: Client) -> None:
    """S-07 beside S-04: a recorded error is a result."""
    for _ in range(2):
        with pytest.raises(Declined), client.request():
            idem.run("charge", Counted(Declined()), external=True, memo_errors=(Declined,))


def test_a_block_is_done_where_the_other_side_found_it(client: Client) -> None:
    """S-04: the block form."""
    with pytest.raises(Died), client.request(), idem.stage("charge", external=True):
        raise Died
    with client.request():
        with idem.stage("charge", reconcile=lambda: Found("ch_1")) as stage:
            assert (stage.done, stage.value) == (True, "ch_1")
        assert stage.value == "ch_1"


def test_a_block_in_doubt_may_be_entered_again(client: Client) -> None:
    """S-04: the refused stage does not count as used."""
    interrupted(client)
    with client.request():
        with pytest.raises(OutcomeUnknown), idem.stage("charge", external=True):
            raise AssertionError("not reached")
        with idem.stage("charge", external=True, on_doubt="rerun") as stage:
            stage.save("again")


def test_without_a_key_nothing_is_recorded_and_nothing_is_in_doubt(client: Client) -> None:
    """S-03, S-04."""
    for _ in range(2):
        with client.request(key=b"") as attempt:
            for effect in (Counted(Declined()), Counted()):
                with contextlib.suppress(Declined):
                    idem.run("charge", effect, external=True, not_done=(Declined,))
            assert attempt.stages == {}


@pytest.mark.anyio
async def test_the_async_form_records_asks_and_withdraws(client: Client) -> None:
    """S-04, S-08: an async function, and a sync or async ``reconcile``."""

    async def found(order: str) -> Found[str]:
        return Found(f"found {order}")

    async def not_done(order: str) -> Any:
        return NOT_DONE

    async def dying(order: str) -> None:
        raise Died

    async def declined(order: str) -> None:
        raise Declined

    async def attempt(effect: Callable[[str], Awaitable[Any]], **terms: Any) -> Any:
        return await idem.arun("charge", effect, "o-1", **terms)

    with pytest.raises(Declined), client.request():
        await attempt(declined, external=True, not_done=(Declined,))
    with pytest.raises(Died), client.request():
        await attempt(dying, reconcile=found)
    with pytest.raises(Died), client.request():
        await attempt(dying, reconcile=not_done)
    with client.request(), pytest.raises(OutcomeUnknown):
        await attempt(dying, reconcile=lambda order: UNKNOWN)
    with client.request():
        assert await attempt(dying, reconcile=found) == "found o-1"


def test_a_coroutine_cannot_be_asked_by_a_blocking_stage(client: Client) -> None:
    """S-08: the error is raised before the stage is recorded."""

    async def find() -> Found[str]:
        return Found("never")

    with client.request() as attempt:
        with pytest.raises(SyncAsyncMismatch, match="reconcile"):
            idem.run("charge", Counted(), reconcile=find)
        assert attempt.stages == {}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"external": True, "on_doubt": "explode"}, "'raise' or 'rerun'"),
        ({"on_doubt": "rerun"}, "external=True"),
        ({"not_done": (Declined,)}, "external=True"),
        ({"reconcile": "find"}, "callable"),
        ({"reconcile": Counted(NOT_DONE), "on_doubt": "rerun"}, "not both"),
    ],
)
def test_terms_that_contradict_each_other_are_refused(client: Client, terms: dict[str, Any], message: str) -> None:
    """S-04: nothing runs before the error."""
    effect = Counted()
    with client.request(), pytest.raises(TypeError, match=message):
        idem.run("charge", effect, **terms)
    assert effect.calls == 0


def test_a_resumed_doubt_asks_for_nothing_but_the_response() -> None:
    """S-04: the intent stays on record, so running again costs no further round trip."""
    intent = Stage("charge", "\x1f1", encode_stage(StageKind.BEGUN, b"1"))
    script = Script()
    assert script.run(begin(attempt_of(intent), ("charge", ""), "rerun", None)) is None
    assert script.names() == []


def test_an_intent_whose_recording_is_interrupted_is_taken_back() -> None:
    """S-04, L-04: it may be on record although nothing has begun; every retry would be in doubt without a reason."""
    cancelled = asyncio.CancelledError()
    script = Script({SaveStage: [cancelled, StageSaved(b""), StageSaved(b"")]})
    with pytest.raises(asyncio.CancelledError):
        script.run(begin(attempt_of(), ("charge", ""), "raise", None))
    saved = [(c.stage.key, c.stage.frame[1]) for c in script.asked if isinstance(c, SaveStage)]
    # sent, sent once more because a cancelled write may have been lost, and withdrawn
    assert saved == [("\x1f1", StageKind.BEGUN)] * 2 + [("\x1f2", StageKind.WITHDRAWN)]


def test_an_intent_that_follows_an_interrupted_one_counts() -> None:
    """S-04: the first intent was not recorded, its withdrawal was; the next intent counts, and is in doubt once the
    effect begins.
    """
    attempt = attempt_of(Stage("charge", "\x1f2", encode_stage(StageKind.WITHDRAWN, b"1")))
    begun = encode_stage(StageKind.BEGUN, b"1")
    script = Script({SaveStage: [StageSaved(begun)]})
    assert script.run(begin(attempt, ("charge", ""), "raise", None)) is None
    assert [c.stage.key for c in script.asked if isinstance(c, SaveStage)] == ["\x1f3"]
    with pytest.raises(OutcomeUnknown):
        Script().run(begin(attempt, ("charge", ""), "raise", None))


def test_after_an_interrupted_intent_the_same_attempt_may_begin_again() -> None:
    """S-04: the backend was unavailable, and the view tries once more."""
    attempt, down = attempt_of(), BackendUnavailable("down")
    impatient = attempt.policy.replace(record_within=0.001)
    attempt.policy = impatient
    script = Script({SaveStage: [down, down, StageSaved(encode_stage(StageKind.BEGUN, b"1"))]})
    with pytest.raises(BackendUnavailable):
        script.run(begin(attempt, ("charge", ""), "raise", None))
    assert script.run(begin(attempt, ("charge", ""), "raise", None)) is None
    assert [c.stage.key for c in script.asked if isinstance(c, SaveStage)] == ["\x1f1", "\x1f2", "\x1f3"]
