"""The checker itself: it accepts possible histories and refuses impossible ones."""

from __future__ import annotations

import pytest

from tests.history.checker import NEVER, NotLinearizable, Operation, Result, check_linearizable, check_token_order

RAN, REPLAYED, FAILED, BUSY = Result.RAN, Result.REPLAYED, Result.FAILED, Result.BUSY
MISMATCH, UNKNOWN = Result.MISMATCH, Result.UNKNOWN


def op(
    name: str, called: float, returned: float, result: Result, *, response: int = 0, run: int = 0, request: str = "mug"
) -> Operation:
    """An operation whose run begins when it is called."""
    return Operation(name, request, called, returned, result, response, run, called if run else NEVER)


GOOD = {
    "nothing": [],
    "one": [op("a", 0, 1, RAN, response=5, run=5)],
    "a replay afterwards": [op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, REPLAYED, response=5)],
    "a replay that returns first": [op("a", 0, 9, RAN, response=5, run=5), op("b", 1, 3, REPLAYED, response=5)],
    "busy meanwhile": [op("a", 0, 5, RAN, response=5, run=5), op("b", 1, 2, BUSY), op("c", 6, 7, REPLAYED, response=5)],
    "busy before the owner's client called": [op("a", 1, 5, RAN, response=5, run=5), op("b", 0, 2, BUSY)],
    "a mismatch": [op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, MISMATCH, request="cup")],
    "a death and a takeover": [
        op("a", 0, NEVER, UNKNOWN, run=5), op("b", 1, 2, BUSY), op("c", 3, 4, RAN, response=9, run=9),
    ],
    "a death after the completion": [op("a", 0, NEVER, UNKNOWN, run=5), op("b", 1, 2, REPLAYED, response=5)],
    "a death before the claim": [op("a", 0, NEVER, UNKNOWN), op("b", 1, 2, RAN, response=5, run=5)],
    "a claim without a run": [op("a", 0, NEVER, UNKNOWN), op("b", 1, 2, BUSY), op("c", 3, 4, RAN, response=5, run=5)],
    "a failure and another attempt": [op("a", 0, 1, FAILED, run=5), op("b", 2, 3, RAN, response=9, run=9)],
    "a stale owner": [
        op("a", 0, 9, REPLAYED, response=7, run=5), op("b", 1, 2, BUSY), op("c", 3, 4, RAN, response=7, run=7),
    ],
    "two deaths": [
        op("a", 0, NEVER, UNKNOWN, run=3), op("b", 1, NEVER, UNKNOWN, run=4), op("c", 2, 3, RAN, response=6, run=6),
        op("d", 2, 9, BUSY), op("e", 4, 5, REPLAYED, response=6),
    ],
}  # fmt: skip

BAD = {
    "two runs": [op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, RAN, response=9, run=9)],
    "two runs at once": [op("a", 0, 5, RAN, response=5, run=5), op("b", 1, 4, RAN, response=9, run=9)],
    "two responses": [op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, REPLAYED, response=6)],
    "a replay of nothing": [op("a", 0, 1, REPLAYED, response=5)],
    "a replay before the run was called": [op("b", 0, 1, REPLAYED, response=5), op("a", 2, 3, RAN, response=5, run=5)],
    "busy with nobody there": [op("a", 0, 1, BUSY)],
    "busy after the response": [op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, BUSY)],
    "busy before anybody called": [op("b", 0, 1, BUSY), op("a", 2, 3, RAN, response=5, run=5)],
    "busy with itself": [op("a", 0, 1, BUSY, run=5)],
    "a mismatch with nothing": [op("a", 0, 1, MISMATCH)],
    "a mismatch with the same": [op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, MISMATCH)],
    "another request's response": [
        op("a", 0, 1, RAN, response=5, run=5), op("b", 2, 3, REPLAYED, response=5, request="cup"),
    ],
    "two requests": [op("a", 0, 1, FAILED, run=5), op("b", 2, 3, RAN, response=9, run=9, request="cup")],
    "a smaller token": [op("a", 0, 1, FAILED, run=9), op("b", 2, 3, RAN, response=5, run=5)],
    "a run after a death that was replayed": [
        op("a", 0, NEVER, UNKNOWN, run=5), op("b", 1, 2, REPLAYED, response=5), op("c", 3, 4, RAN, response=9, run=9),
    ],
    "the response of a failure": [op("a", 0, 1, FAILED, run=5), op("b", 2, 3, REPLAYED, response=5)],
    "a response that a takeover has overruled": [
        op("a", 0, 9, RAN, response=5, run=5), op("b", 1, NEVER, UNKNOWN, run=7), op("c", 3, 4, REPLAYED, response=7),
    ],
}  # fmt: skip

#: the bad histories that the order of tokens refuses too
BY_TOKENS = [
    "two runs",
    "two runs at once",
    "a replay of nothing",
    "two responses",
    "two requests",
    "a run after a death that was replayed",
]


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_possible_history_passes(history: list[Operation]) -> None:
    """O-01 to O-10: the checker accepts what the behaviour allows."""
    check_linearizable(history)
    check_token_order(history)


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_an_impossible_history_is_refused(history: list[Operation]) -> None:
    """I1, I2, I4, I6, I7: the checker can fail."""
    with pytest.raises(NotLinearizable):
        check_linearizable(history)


@pytest.mark.parametrize("name", BY_TOKENS)
def test_tokens_alone_show_some_of_them(name: str) -> None:
    """I2, I4: the quick check for large histories."""
    with pytest.raises(NotLinearizable):
        check_token_order(BAD[name])


def test_eight_clients_at_once_are_searched_quickly() -> None:
    """I11: states that were seen are not searched again."""
    storm = [op(f"busy-{number}", 0, 5, BUSY) for number in range(7)]
    replays = [op(f"replay-{number}", 4, 9, REPLAYED, response=5) for number in range(8)]
    check_linearizable([op("a", 0, 6, RAN, response=5, run=5), *storm, *replays])
