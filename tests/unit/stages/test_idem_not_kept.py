"""Stages whose value cannot be stored (S-02a) through ``idem``, sync and async, on a real engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pydantic
import pytest

from open_idempotency import NOT_DONE, UNKNOWN, Found, OutcomeUnknown, StageConflict, StageValueError, events, idem
from open_idempotency._core.models import Stage
from open_idempotency._core.stored_response import StageKind, decode_stage, encode_stage
from open_idempotency._engine.engine import running
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from tests.unit.builders import Listener, attempt_of, engine_of
from tests.unit.stages.stage_client import Client, Counted


class Receipt:
    """An object of a client library."""


class Declined(Exception):
    """A result that is reported as an exception."""


UNKEEPABLE = [Receipt(), Decimal("1.10"), datetime(2026, 1, 1, tzinfo=timezone.utc), "x" * 70_000, {1: 2}, float("nan")]
IDS = ["object", "decimal", "datetime", "too long", "numbered members", "nan"]


@pytest.fixture
def listener() -> Listener:
    """Collects the events of ``client``."""
    return Listener()


@pytest.fixture
def client(listener: Listener) -> Client:
    """A client with its own backend."""
    return Client(on_event=listener)


def as_block(charge: Counted, **terms: Any) -> Any:
    """The stage as a block."""
    with idem.stage("charge", **terms) as stage:
        if not stage.done:
            stage.save(charge())
        assert terms or stage.value is charge.result
    return stage.value


def as_decorator(charge: Counted, **terms: Any) -> Any:
    """The stage as a decorator."""

    @idem.stage("charge", **terms)
    def charged() -> Any:
        return charge()

    return charged()


def as_call(charge: Counted, **terms: Any) -> Any:
    """The stage as a call."""
    return idem.run("charge", charge, **terms)


FORMS = [as_block, as_decorator, as_call]


async def as_block_awaited(charge: Counted, **terms: Any) -> Any:
    """The stage as an awaited block."""
    async with idem.stage("charge", **terms) as stage:
        if not stage.done:
            stage.save(await charge.awaited())
    return stage.value


async def as_decorator_awaited(charge: Counted, **terms: Any) -> Any:
    """The stage as a decorator of a coroutine function."""

    @idem.stage("charge", **terms)
    async def charged() -> Any:
        return await charge.awaited()

    return await charged()


async def as_call_awaited(charge: Counted, **terms: Any) -> Any:
    """The stage as an awaited call."""
    return await idem.arun("charge", charge.awaited, **terms)


AWAITED = [as_block_awaited, as_decorator_awaited, as_call_awaited]


@pytest.mark.parametrize("value", UNKEEPABLE, ids=IDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("terms", [{}, {"external": True}], ids=["plain", "external"])
def test_the_effect_is_not_repeated_and_the_first_attempt_goes_on(
    client: Client, listener: Listener, form: Callable[..., Any], value: Any, terms: dict[str, Any]
) -> None:
    """S-02a: the first attempt has the value itself; later attempts have none, and get 409."""
    charge = Counted(value)
    with client.request() as attempt:
        assert form(charge, **terms) is value
        assert idem.load("charge") is value
        assert attempt.interrupted is None
    for _ in range(2):
        with client.request() as attempt:
            with pytest.raises(OutcomeUnknown) as caught:
                form(charge, **terms)
            assert not caught.value.retryable
            assert attempt.interrupted is caught.value
    assert charge.calls == 1
    (reported,) = [event for event in listener.seen if isinstance(event, events.StageValueNotKept)]
    assert (reported.stage, reported.kind == "", reported.cure == "") == ("charge", False, False)


@pytest.mark.anyio
@pytest.mark.parametrize("value", UNKEEPABLE, ids=IDS)
@pytest.mark.parametrize("form", AWAITED)
async def test_the_same_awaited(client: Client, form: Callable[..., Any], value: Any) -> None:
    """S-02a: the async forms."""
    charge = Counted(value)
    with client.request():
        assert await form(charge) is value
    with client.request(), pytest.raises(OutcomeUnknown):
        await form(charge)
    assert charge.calls == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("default", [None, 0, Receipt()])
def test_a_default_is_what_later_attempts_get(
    client: Client, listener: Listener, form: Callable[..., Any], default: Any
) -> None:
    """S-02a: any default, also None; then nothing is reported."""
    charge = Counted(Receipt())
    with client.request():
        assert form(charge, default=default) is charge.result
    for _ in range(2):
        with client.request():
            assert form(charge, default=default) is default
    assert charge.calls == 1
    assert events.StageValueNotKept not in listener.kinds()
    assert [event.finding for event in listener.seen if isinstance(event, events.InDoubt)] == ["default"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("form", AWAITED)
async def test_a_default_is_what_later_attempts_get_awaited(client: Client, form: Callable[..., Any]) -> None:
    """S-02a: the async forms."""
    charge = Counted(Receipt())
    for expected in (charge.result, None, None):
        with client.request():
            assert await form(charge, default=None) is expected
    assert charge.calls == 1


def test_a_default_changes_nothing_where_the_value_is_kept(client: Client) -> None:
    """S-02: the recorded value counts."""
    for _ in range(2):
        with client.request():
            assert idem.run("charge", lambda: "ch_1", default="none") == "ch_1"


@pytest.mark.parametrize("form", FORMS)
def test_the_other_side_is_asked_for_the_value(client: Client, form: Callable[..., Any]) -> None:
    """S-02a, S-04: ``reconcile`` finds the value, each time that it is needed."""
    charge, asked = Counted(Receipt()), Counted(Found("ch_1"))
    with client.request():
        assert form(charge, reconcile=asked) is charge.result
    assert asked.calls == 0
    for _ in range(2):
        with client.request():
            assert form(charge, reconcile=asked) == "ch_1"
    assert (charge.calls, asked.calls) == (1, 2)


@pytest.mark.parametrize("outcome", [NOT_DONE, UNKNOWN])
def test_whatever_the_other_side_says_the_stage_does_not_run_again(client: Client, outcome: Any) -> None:
    """S-02a: the record says that the stage is done. A later retry may find the value."""
    charge = Counted(Receipt())
    with client.request():
        idem.run("charge", charge, reconcile=lambda: outcome)
    with client.request(), pytest.raises(OutcomeUnknown) as caught:
        idem.run("charge", charge, reconcile=lambda: outcome)
    assert (caught.value.retryable, charge.calls) == (True, 1)
    with client.request():
        assert idem.run("charge", charge, reconcile=lambda: outcome, default="none") == "none"


@pytest.mark.anyio
async def test_the_other_side_is_asked_in_coroutines(client: Client) -> None:
    """S-02a, S-08."""
    charge = Counted(Receipt())

    async def find() -> Found[str]:
        return Found("ch_1")

    with client.request():
        await idem.arun("charge", charge.awaited, reconcile=find)
    with client.request():
        assert await idem.arun("charge", charge.awaited, reconcile=find) == "ch_1"
    assert charge.calls == 1


@pytest.mark.parametrize("args", [(Receipt(),), ("x" * 70_000,), (Decimal(1), 2)])
def test_an_error_whose_arguments_cannot_be_kept_is_a_result_all_the_same(
    client: Client, listener: Listener, args: tuple[Any, ...]
) -> None:
    """S-02a, S-07: later attempts do not run the stage, and no default turns it into a success."""
    charge = Counted(Declined(*args))
    with client.request(), pytest.raises(Declined) as raised:
        idem.run("charge", charge, memo_errors=(Declined,), default="ok")
    assert raised.value is charge.result
    for _ in range(2):
        with client.request(), pytest.raises(OutcomeUnknown):
            idem.run("charge", charge, memo_errors=(Declined,), default="ok")
    assert charge.calls == 1
    assert listener.kinds().count(events.StageValueNotKept) == 1


@dataclass
class Bill:
    """A dataclass with a field that cannot be stored."""

    receipt: Receipt


def receipt() -> Receipt:
    """A function whose declared type cannot be stored."""
    raise AssertionError("it must not run")


async def receipt_awaited() -> Receipt:
    """The same as a coroutine function."""
    raise AssertionError("it must not run")


@pytest.mark.parametrize("key", [b"0123456789abcdef", b""])
@pytest.mark.parametrize("terms", [{}, {"external": True}, {"memo_errors": (Declined,)}])
def test_what_is_declared_and_cannot_be_kept_fails_before_the_effect(
    client: Client, key: bytes, terms: dict[str, Any]
) -> None:
    """S-02a: with and without a key, and nothing is recorded; ``returns=`` with a storable type works."""
    charge = Counted("ch_1")
    with client.request(key):
        for _ in range(2):
            with pytest.raises(StageValueError, match="stage 'charge': no value of the declared type Receipt"):
                idem.run("charge", receipt, **terms)
            with pytest.raises(StageValueError, match="Receipt"):
                idem.stage("charge", **terms)(receipt)()
            with pytest.raises(StageValueError, match="Receipt"), idem.stage("charge", returns=Bill, **terms):
                charge()
        assert idem.stages == ()
        assert charge.calls == 0
        assert idem.run("charge", charge, returns=Any, **terms) == "ch_1"


@pytest.mark.anyio
async def test_it_fails_before_the_effect_in_coroutines(client: Client) -> None:
    """S-02a, S-08."""
    with client.request(), pytest.raises(StageValueError, match="Receipt"):
        await idem.arun("charge", receipt_awaited)


def test_a_declared_type_that_cannot_be_kept_is_let_through_with_a_default(client: Client) -> None:
    """S-02a: a default shows that the author knows."""
    charge = Counted(Receipt())

    def charged() -> Receipt:
        made: Receipt = charge()
        return made

    for expected in (charge.result, None):
        with client.request():
            assert idem.run("charge", charged, default=None) is expected
    assert charge.calls == 1


def test_it_is_an_error_in_the_log_that_says_what_to_do(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """S-02a: the error has stage, type and cure, and nothing of the value."""
    with caplog.at_level(logging.ERROR, "open_idempotency"), client.request():
        idem.run("charge", lambda: {"card": Decimal("4111")})
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelno == logging.ERROR
    assert all(part in said for part in ("'charge'", "'Decimal'", "returns=Decimal", "409 outcome-unknown"))
    assert "4111" not in said


def test_without_a_key_it_is_reported_too(client: Client, listener: Listener) -> None:
    """S-02a, S-03: a developer who tries without a key sees it."""
    value = Receipt()
    with client.request(b""):
        assert idem.run("charge", lambda: value) is value
    assert [event.record for event in listener.seen if isinstance(event, events.StageValueNotKept)] == [""]


def test_a_saved_stage_whose_value_cannot_be_kept_is_on_record(client: Client) -> None:
    """S-02a: ``save_stage`` records that the view got this far, so ``load`` must not deny it."""
    value = Receipt()
    with client.request():
        assert idem.save_stage("charge", value) is value
        assert [(stage.name, stage.value) for stage in idem.stages] == [("charge", {"not_kept": "Receipt"})]
        with pytest.raises(StageConflict):
            idem.save_stage("charge")
    with client.request():
        with pytest.raises(OutcomeUnknown):
            idem.load("charge")
        with pytest.raises(OutcomeUnknown):
            idem.load("charge", default="none")
        assert idem.load("other", default="none") == "none"


def test_two_stages_with_keys_of_their_own_do_not_stand_for_each_other(client: Client) -> None:
    """S-01, S-02a: stages are identified by name and key."""
    with client.request():
        idem.run("charge", Receipt, returns=Any, key="a")
        idem.run("charge", lambda: 1, key="b")
    with client.request():
        assert idem.run("charge", Counted(), key="b") == 1
        with pytest.raises(OutcomeUnknown):
            idem.run("charge", Counted(), key="a")


def test_the_record_holds_the_type_and_nothing_of_the_value(client: Client) -> None:
    """S-02a, B-07."""
    with client.request() as attempt:
        idem.run("charge", lambda: {"card": Decimal("4111")})
        (frame,) = attempt.stages.values()
    assert decode_stage(frame) == (StageKind.NOT_KEPT, b'{"type": "Decimal", "raised": false}')


@pytest.mark.parametrize("payload", [b"", b"[]", b"3", b"{}", b'{"type":1}', b"[" * 100_000])
def test_a_hostile_record_is_a_typed_error(payload: bytes) -> None:
    """B-08b, S-02a."""
    attempt = attempt_of(Stage("charge", "", encode_stage(StageKind.NOT_KEPT, payload)))
    mark = running.set((attempt, engine_of()))
    try:
        with pytest.raises(RecordUnreadable):
            idem.run("charge", Counted())
        with pytest.raises(RecordUnreadable):
            idem.load("charge")
    finally:
        running.reset(mark)


def test_a_default_is_not_for_a_transaction() -> None:
    """S-02a, S-05: the transaction is rolled back instead."""
    with pytest.raises(TypeError, match="default="):
        idem.stage("charge", tx=object(), default=None)


def test_a_default_that_may_be_the_functions_is_asked_about(client: Client) -> None:
    """S-01: the argument may be meant for the function."""

    def charge(default: int = 0) -> int:
        return default

    with client.request(), pytest.raises(TypeError, match="default= is an argument of the stage"):
        idem.run("charge", charge, default=3)


class Sealer(EncryptionKeys):
    """Encrypts while it has its keys."""

    fails = False

    def seal(self, frame: bytes, place: bytes) -> bytes:
        """See ``EncryptionKeys``."""
        if self.fails:
            raise MemoryError
        return super().seal(frame, place)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("raises", [False, True])
def test_a_value_that_cannot_be_encrypted_is_not_kept(listener: Listener, form: Any, raises: bool) -> None:
    """S-02a, B-10a: the effect has happened; nothing of the value is stored in plain bytes."""
    sealer = Sealer({"2026": b"n" * 32})
    client = Client(on_event=listener, encryption=sealer, plain_records="accept")
    charge = Counted(Declined("card 4111") if raises else "card 4111")
    terms = {"memo_errors": (Declined,)} if raises else {}
    sealer.fails = True
    with client.request(), pytest.raises(Declined) if raises else nullcontext():
        assert form(charge, **terms) == charge.result
    sealer.fails = False
    assert not [record for record in client.engine.backend.scan() if b"4111" in str(record).encode()]
    for _ in range(2):
        with client.request(), pytest.raises(OutcomeUnknown):
            form(charge, **terms)
    assert charge.calls == 1
    assert listener.kinds().count(events.StageValueNotKept) == 1
    assert listener.kinds().count(events.HookFailed) == 1


def test_where_plain_records_are_refused_nothing_runs_after_that(listener: Listener) -> None:
    """S-02a, B-08b: 503, as the record cannot be trusted; the effect does not happen again."""
    sealer = Sealer({"2026": b"n" * 32})
    client = Client(on_event=listener, encryption=sealer)
    charge = Counted("ch_1")
    sealer.fails = True
    with client.request():
        assert idem.run("charge", charge) == "ch_1"
    sealer.fails = False
    assert [client.again().status for _ in range(2)] == [503, 503]
    assert charge.calls == 1


def test_an_intent_that_cannot_be_encrypted_keeps_the_effect_from_happening() -> None:
    """S-02a, S-04: the failure is known before the effect."""
    sealer = Sealer({"2026": b"n" * 32})
    client = Client(encryption=sealer)
    charge = Counted("ch_1")
    sealer.fails = True
    with client.request(), pytest.raises(BackendUnavailable, match="seal"):
        idem.run("charge", charge, external=True)
    assert charge.calls == 0


# Secrets that would be stored as asterisks


class Wallet(pydantic.BaseModel):
    """A model with an optional secret."""

    card: pydantic.SecretStr | None = None


class Card(pydantic.BaseModel):
    """A model with a required secret."""

    number: pydantic.SecretStr


CARD = pydantic.SecretStr("4111")
SECRETS = [(CARD, Any), (Wallet(card=CARD), Wallet)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("value", "declared"), SECRETS)
def test_a_resumed_request_gets_no_stars_as_its_secret(
    client: Client, listener: Listener, form: Callable[..., Any], value: Any, declared: Any
) -> None:
    """S-09, S-02a: the attempt has the secret, the log says what to do, and a retry gets 409."""
    charge = Counted(value)
    with client.request():
        assert form(charge, returns=declared) is value
    with client.request(), pytest.raises(OutcomeUnknown):
        form(charge, returns=declared)
    assert charge.calls == 1
    (reported,) = [event for event in listener.seen if isinstance(event, events.StageValueNotKept)]
    assert reported.stage == "charge"
    assert reported.kind == type(value).__name__
    assert "get_secret_value()" in reported.cure


@pytest.mark.anyio
@pytest.mark.parametrize("form", AWAITED)
@pytest.mark.parametrize(("value", "declared"), SECRETS)
async def test_a_resumed_request_gets_no_stars_as_its_secret_async(
    client: Client, form: Callable[..., Any], value: Any, declared: Any
) -> None:
    """S-09, S-02a: the async form."""
    charge = Counted(value)
    with client.request():
        assert await form(charge, returns=declared) is value
    with client.request(), pytest.raises(OutcomeUnknown):
        await form(charge, returns=declared)
    assert charge.calls == 1


@pytest.mark.parametrize("declared", [Card, pydantic.SecretStr, pydantic.SecretBytes, list[Card], Card | None])
def test_a_declared_type_with_a_hidden_secret_fails_before_the_effect(client: Client, declared: Any) -> None:
    """S-09: the error names the stage and the cure."""
    charge = Counted(Card(number=CARD))
    with client.request():
        with pytest.raises(StageValueError, match=r"stage 'charge': .* type Secret.*get_secret_value\(\)"):
            idem.run("charge", charge, returns=declared)
        assert idem.stages == ()
    assert charge.calls == 0


def test_a_saved_stage_with_a_hidden_secret_is_reported(client: Client, listener: Listener) -> None:
    """S-09: ``save_stage`` has no declared type, so the secret is found when it is saved."""
    with client.request():
        assert idem.save_stage("charge", CARD) is CARD
    assert listener.kinds().count(events.StageValueNotKept) == 1


@pytest.mark.parametrize("key", [b"0123456789abcdef", b""])
def test_a_plain_secret_is_a_value(client: Client, key: bytes) -> None:
    """S-09: the error advises to return it as plain text."""
    with client.request(key):
        assert idem.run("charge", lambda: CARD.get_secret_value()) == "4111"
