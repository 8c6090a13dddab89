"""The helper ``idem``: each verb runs once over all attempts; names, keys and facts."""

from __future__ import annotations

from typing import Any

import pytest

from open_idempotency import idem
from open_idempotency.exceptions import (
    StageConflict,
    StageValueError,
)
from tests.unit.stages.postponed import Line, make_line
from tests.unit.stages.stage_client import Client, Counted


@pytest.fixture
def client() -> Client:
    """A client with its own backend."""
    return Client()


def test_a_stage_runs_once_over_all_attempts(client: Client) -> None:
    """``run``."""
    charge = Counted({"id": 7})
    values = []
    for _ in range(3):
        with client.request():
            values.append(idem.run("charge", charge))
    assert (values, charge.calls) == ([{"id": 7}] * 3, 1)


@pytest.mark.anyio
async def test_an_awaited_stage_runs_once_over_all_attempts(client: Client) -> None:
    """``arun``; with a coroutine function and with a sync function."""
    charge, reserve = Counted(1), Counted(2)
    for _ in range(2):
        with client.request():
            assert await idem.arun("charge", charge.awaited) == 1
            assert await idem.arun("reserve", reserve) == 2
    assert (charge.calls, reserve.calls) == (1, 1)


def test_arguments_reach_the_function(client: Client) -> None:
    """``idem.run(name, fn, *a, **k)``, also arguments with the names of the library's own parameters."""
    with client.request():
        assert idem.run("a", lambda *a, **k: [a, k], 1, 2, x=3, name="n", function="f") == [
            [1, 2],
            {"x": 3, "name": "n", "function": "f"},
        ]


def test_save_stage_returns_the_first_value_ever_saved(client: Client) -> None:
    """B-06."""
    with client.request():
        assert idem.save_stage("reserved", 1) == 1
    with client.request():
        assert idem.save_stage("reserved", 2) == 1


@pytest.mark.anyio
async def test_asave_stage_returns_the_first_value_ever_saved(client: Client) -> None:
    """B-06."""
    with client.request():
        assert await idem.asave_stage("reserved", 1) == 1
    with client.request():
        assert await idem.asave_stage("reserved", 2) == 1


def test_a_block_asks_done_and_hands_over_a_value(client: Client) -> None:
    """The block form of a stage."""
    seen = []
    for value in (1, 2):
        with client.request():
            with idem.stage("order", key="k") as stage:
                seen.append(stage.done)
                if not stage.done:
                    stage.save(value)
                assert stage.value == 1
            assert stage.value == 1
    assert seen == [False, True]


@pytest.mark.anyio
async def test_an_awaited_block_asks_done_and_hands_over_a_value(client: Client) -> None:
    """The async block form of a stage."""
    seen = []
    for value in (1, 2):
        with client.request():
            async with idem.stage("order") as stage:
                seen.append(stage.done)
                stage.save(value)
            assert stage.value == 1
    assert seen == [False, True]


def test_a_block_that_saves_nothing_is_done_with_none(client: Client) -> None:
    with client.request(), idem.stage("mark"):
        pass
    with client.request(), idem.stage("mark") as stage:
        assert (stage.done, stage.value) == (True, None)


def test_a_decorated_function_is_a_stage(client: Client) -> None:
    """The decorator form; the function keeps its name."""
    calls = []

    @idem.stage("charge")
    def charge(amount: int) -> int:
        calls.append(amount)
        return amount

    for _ in range(2):
        with client.request():
            assert charge(5) == 5
    assert (calls, charge.__name__) == ([5], "charge")


@pytest.mark.anyio
async def test_a_decorated_coroutine_function_is_a_stage(client: Client) -> None:
    calls = []

    @idem.stage("charge", key=lambda order, **_: order)
    async def charge(order: str, **_: object) -> str:
        calls.append(order)
        return order

    for _ in range(2):
        with client.request():
            assert [await charge("a"), await charge("b", x=1)] == ["a", "b"]
    assert calls == ["a", "b"]


def test_a_method_can_be_decorated(client: Client) -> None:
    """The ``key`` callable gets ``self``."""

    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        @idem.stage("open", key=lambda self: self.name)
        def open(self) -> str:
            return self.name

    with client.request():
        assert (Shop("a").open(), Shop("b").open()) == ("a", "b")


# Names, keys and conflicts


def test_stages_are_known_by_name_and_key_and_not_by_position(client: Client) -> None:
    """S-01."""
    with client.request():
        idem.run("a", lambda: 1)
        idem.run("b", lambda: 2, key="x")
        idem.run("b", lambda: 3, key=4)
    with client.request():
        assert idem.run("b", Counted(0), key="4") == 3
        assert idem.run("b", Counted(0), key="x") == 2
        assert idem.run("a", Counted(0)) == 1
        assert idem.run("new", lambda: 5) == 5


def test_one_stage_twice_in_one_attempt_is_a_conflict(client: Client) -> None:
    """S-01: also if the stage is on record already."""
    for _ in range(2):
        with client.request():
            idem.run("a", lambda: 1)
            with pytest.raises(StageConflict, match="stage 'a' was used already"):
                idem.run("a", lambda: 2)


def test_a_stage_that_failed_may_be_run_again_within_the_attempt(client: Client) -> None:
    """S-07: nothing was recorded."""
    with client.request():
        with pytest.raises(OSError):
            idem.run("a", Counted(OSError()))
        assert idem.run("a", lambda: 2) == 2


def test_a_stage_whose_value_was_not_kept_was_used_all_the_same(client: Client) -> None:
    """S-01, S-02a: the stage is done."""
    with client.request():
        idem.save_stage("a", object())
        with pytest.raises(StageConflict):
            idem.save_stage("a", 1)


@pytest.mark.parametrize("name", ["", None, 3, "x" * 201, "a\n", "\ud800"])
def test_a_name_that_cannot_be_one_is_refused(client: Client, name: Any) -> None:
    """S-01, I11."""
    with client.request(), pytest.raises(StageValueError):
        idem.save_stage(name)


@pytest.mark.parametrize("key", ["", "x" * 201, "a\x00"])
def test_a_key_that_cannot_be_one_is_refused(client: Client, key: str) -> None:
    """S-01, I11."""
    with client.request(), pytest.raises(StageValueError):
        idem.save_stage("a", key=key)


def test_a_block_is_for_one_use(client: Client) -> None:
    block = idem.stage("a")
    with client.request():
        with block:
            pass
        with pytest.raises(RuntimeError, match="entered already"), block:
            pass


def test_a_block_outside_of_with_has_nothing_to_say() -> None:
    with pytest.raises(RuntimeError, match="is not entered"):
        _ = idem.stage("a").done


def test_a_callable_key_is_for_decorators(client: Client) -> None:
    with client.request(), pytest.raises(TypeError, match="decorators"), idem.stage("a", key=lambda: "k"):
        pass


def test_nested_stages_are_recorded_each_for_itself(client: Client) -> None:
    """S-07: the inner one stays recorded even if the outer one fails."""
    inner = Counted(1)

    def outer(fail: bool) -> int:
        value: int = idem.run("inner", inner)
        if fail:
            raise OSError
        return value + 1

    with client.request(), pytest.raises(OSError):
        idem.run("outer", outer, True)
    with client.request():
        assert idem.run("outer", outer, False) == 2
        assert [stage.name for stage in idem.stages] == ["inner", "outer"]
    assert inner.calls == 1


def test_the_facts_of_a_first_and_of_a_later_attempt(client: Client) -> None:
    with client.request():
        assert (idem.attempt, idem.resumed, idem.active, idem.stages) == (1, False, True, ())
        idem.save_stage("a", {"x": 1})
    with client.request():
        assert (idem.attempt, idem.resumed, idem.active) == (2, True, True)
        assert idem.load("a") == {"x": 1}
        assert idem.load("a", key="other", default="none") == "none"


def test_load_builds_a_declared_type(client: Client) -> None:
    """S-02: ``load`` takes a declared type."""
    with client.request():
        idem.run("line", make_line)
        assert idem.load("line", returns=Line) == Line("a", 2)


def test_key_for_is_the_same_on_every_attempt_and_differs_by_name_and_request(client: Client) -> None:
    keys = []
    for request in (b"0123456789abcdef", b"0123456789abcdef", b"another-key-of-16"):
        with client.request(request):
            keys.append((idem.key_for("charge"), idem.key_for("refund")))
    assert keys[0] == keys[1]
    assert len({*keys[0], *keys[2]}) == 4


def test_key_for_without_a_key_is_the_same_within_the_request_only(client: Client) -> None:
    """S-03: another request gets another key."""
    keys = []
    for _ in range(2):
        with client.request(b""):
            keys.append(idem.key_for("charge"))
            assert idem.key_for("charge") == keys[-1]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(("verb", "wish"), [("keep", True), ("discard", False)])
def test_keep_and_discard_decide_about_the_response(client: Client, verb: str, wish: bool) -> None:
    with client.request() as attempt:
        getattr(idem, verb)()
        assert attempt.keep is wish
