"""What stages record: values by declared type, and memoised errors."""

from __future__ import annotations

import functools

import pytest

from open_idempotency import idem
from open_idempotency._core.models import Stage
from open_idempotency._core.stored_response import StageKind, encode_stage
from open_idempotency._engine.engine import running
from open_idempotency.exceptions import OutcomeUnknown, RecordUnreadable, StageValueError
from tests.unit.builders import attempt_of, engine_of
from tests.unit.stages.postponed import ORDER, Line, Order, make_line
from tests.unit.stages.stage_client import Client, Counted


@pytest.fixture
def client() -> Client:
    """A client with its own backend."""
    return Client()


def test_a_declared_dataclass_is_the_same_on_the_first_attempt_and_later(client: Client) -> None:
    """S-02."""
    for _ in range(2):
        with client.request():
            assert idem.run("line", make_line) == Line("a", 2)
            assert idem.run("order", lambda: ORDER, returns=Order) == ORDER
            assert idem.run("class", Line, "c") == Line("c")
            assert idem.run("partial", functools.partial(make_line)) == Line("a", 2)


def test_the_first_attempt_sees_the_value_as_json_has_it(client: Client) -> None:
    """S-02: a tuple becomes a list at once, and not only after a crash."""
    for _ in range(2):
        with client.request():
            assert idem.run("a", lambda: (1, (2,))) == [1, [2]]


def test_a_value_that_could_not_be_read_back_is_not_recorded(client: Client) -> None:
    """S-02, S-02a: a saved value never changes, so it must be readable."""
    with client.request():
        assert idem.run("a", lambda: [1, 2, 3], returns=tuple[int, int]) == [1, 2, 3]
        assert [stage.value for stage in idem.stages] == [{"not_kept": "list"}]


# Errors


class CardDeclined(Exception):
    """An outcome, reported as an exception."""


class Expired(CardDeclined):
    """A subclass of the error."""


def test_an_error_is_not_memoised_unless_asked(client: Client) -> None:
    """S-07."""
    charge = Counted(CardDeclined("51"))
    for _ in range(2):
        with client.request(), pytest.raises(CardDeclined):
            idem.run("charge", charge)
    assert charge.calls == 2


def test_a_memoised_error_is_raised_again(client: Client) -> None:
    """S-07: with its arguments."""
    charge = Counted(CardDeclined("51", 7))
    for _ in range(2):
        with client.request(), pytest.raises(CardDeclined) as caught:
            idem.run("charge", charge, memo_errors=(CardDeclined,))
        assert caught.value.args == ("51", 7)
    assert charge.calls == 1


@pytest.mark.anyio
async def test_a_memoised_error_is_raised_again_awaited(client: Client) -> None:
    """S-07."""
    charge = Counted(CardDeclined("51"))
    for _ in range(2):
        with client.request(), pytest.raises(CardDeclined):
            await idem.arun("charge", charge.awaited, memo_errors=(CardDeclined,))
    assert charge.calls == 1


def test_a_memoised_error_of_a_subclass_comes_back_as_the_class_that_was_named(client: Client) -> None:
    """S-07: no class is looked up by a stored name."""
    charge = Counted(Expired("54"))
    with client.request(), pytest.raises(Expired):
        idem.run("charge", charge, memo_errors=(CardDeclined,))
    with client.request(), pytest.raises(CardDeclined) as caught:
        idem.run("charge", charge, memo_errors=(CardDeclined,))
    assert (type(caught.value), caught.value.args, charge.calls) == (CardDeclined, ("54",), 1)


def test_an_error_of_another_class_is_not_memoised(client: Client) -> None:
    """S-07."""
    charge = Counted(OSError())
    for _ in range(2):
        with client.request(), pytest.raises(OSError):
            idem.run("charge", charge, memo_errors=(CardDeclined,))
    assert charge.calls == 2


def test_a_recorded_error_that_is_not_named_any_more_is_a_clear_error(client: Client) -> None:
    """S-07: the code changed between two attempts."""
    with client.request(), pytest.raises(CardDeclined):
        idem.run("charge", Counted(CardDeclined()), memo_errors=(CardDeclined,))
    with client.request(), pytest.raises(StageValueError, match="recorded a CardDeclined"):
        idem.run("charge", Counted())


class Picky(Exception):
    """An error that cannot be constructed from its ``args``."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def test_an_error_that_could_not_be_made_again_is_not_recorded(client: Client) -> None:
    """S-07, S-02a: the stage does not run again all the same."""
    charge = Counted(Picky("a", "b"))
    with client.request(), pytest.raises(Picky):
        idem.run("charge", charge, memo_errors=(Picky,))
    with client.request(), pytest.raises(OutcomeUnknown, match="Picky"):
        idem.run("charge", charge, memo_errors=(Picky,))
    assert charge.calls == 1


def test_a_recorded_error_that_cannot_be_made_again_any_more_is_a_clear_error(client: Client) -> None:
    """S-07: its class has changed since."""
    attempt = attempt_of(Stage("charge", "", encode_stage(StageKind.ERROR, b'["Picky",["a: b"]]')))
    mark = running.set((attempt, engine_of()))
    try:
        with pytest.raises(StageValueError, match="Picky cannot be rebuilt"):
            idem.run("charge", Counted(), memo_errors=(Picky,))
    finally:
        running.reset(mark)


def test_a_memoised_error_is_among_the_stages(client: Client) -> None:
    """``idem.stages`` still lists the other stages."""
    with client.request():
        idem.save_stage("a", 1, key="k")
        with pytest.raises(CardDeclined):
            idem.run("charge", Counted(CardDeclined("51")), memo_errors=(CardDeclined,))
        facts = [(stage.name, stage.key, stage.value) for stage in idem.stages]
    assert facts == [("a", "k", 1), ("charge", None, {"error": "CardDeclined", "arguments": ["51"]})]


@pytest.mark.parametrize("payload", [b"", b"[]", b"3", b'["a"]', b"[1,[]]", b'["a",{}]', b"[" * 100_000])
def test_a_hostile_recorded_error_is_a_typed_error(payload: bytes) -> None:
    """B-08b."""
    attempt = attempt_of(Stage("charge", "", encode_stage(StageKind.ERROR, payload)))
    mark = running.set((attempt, engine_of()))
    try:
        with pytest.raises(RecordUnreadable):
            idem.run("charge", Counted(), memo_errors=(CardDeclined,))
    finally:
        running.reset(mark)
