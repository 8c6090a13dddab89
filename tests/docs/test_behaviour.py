"""The reference of behaviour has every numbered line once, so that tests and users mean the same by a number."""

from __future__ import annotations

import inspect
import re

import pytest

from open_idempotency import IdempotencyPolicy, idem
from open_idempotency._core.keys import caller_scope
from open_idempotency._core.models import Identity, Request
from open_idempotency.django import idempotent
from open_idempotency.exceptions import KeyRejected
from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "reference" / "behaviour.md"


def _numbers(last: int, *between: str) -> list[str]:
    """The numbers from 01 to the last one, and later additions in between."""
    return [*(f"{n:02}" for n in range(1, last + 1)), *between]


LINES = {
    "B": _numbers(27, "08a", "08b", "08c", "10a", "10b", "11a", "11b", "14a"),
    "H": _numbers(24),
    "O": _numbers(41, "18a", "18b", "18c", "19a", "19b", "20a", "21a"),
    "L": _numbers(14, "05a"),
    "R": _numbers(15, "05a"),
    "N": _numbers(31),
    "S": _numbers(9, "02a", "06a", "06b", "06c"),
    "P": _numbers(7, *map(str, range(10, 38)), "18a", *map(str, range(40, 47))),
    "T": _numbers(14),
}


@pytest.mark.parametrize("number", [f"{letter}-{n}" for letter, numbers in LINES.items() for n in numbers])
def test_a_line_of_behaviour_is_described_once(number: str) -> None:
    """One row of one table begins with the number."""
    page = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(rf"^\| {number} \|", page, re.MULTILINE)) == 1


def test_the_reference_numbers_nothing_else() -> None:
    """Every numbered row is a known line of behaviour."""
    page = PAGE.read_text(encoding="utf-8")
    known = {f"{letter}-{n}" for letter, numbers in LINES.items() for n in numbers}
    assert set(re.findall(r"^\| ([A-Z]-\d\w*) \|", page, re.MULTILINE)) == known


def test_the_problem_of_a_short_key_says_what_the_documents_say() -> None:
    """H-12: README, behaviour and security quote the problem."""
    with pytest.raises(KeyRejected) as refused:
        caller_scope(Request("POST", b"/", b"", [], None), Identity(None), "k" * 15, IdempotencyPolicy())
    said = str(refused.value).partition(";")[0]
    assert said == "without credentials a key needs at least 16 characters"
    for page in ("README.md", "docs/reference/behaviour.md", "docs/security.md"):
        assert said in (ROOT / page).read_text(encoding="utf-8").replace("Without", "without"), page


# What a user writes to get what the line describes, and the callables that have to take it.
ASKED_FOR_BY = {
    "S-04": ({"external", "reconcile", "on_doubt"}, [idem.run, idem.arun, idem.stage]),
    "S-05": ({"tx"}, [idem.run, idem.arun, idem.stage, idem.atomic]),
    "S-06": ({"atomic"}, [idempotent]),
}


@pytest.mark.parametrize("number", ASKED_FOR_BY)
def test_what_is_called_built_can_be_asked_for(number: str) -> None:
    """A line counts as built if and only if all its arguments exist."""
    (row,) = re.findall(rf"^\| {number} \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    arguments, callables = ASKED_FOR_BY[number]
    built = all(arguments <= set(inspect.signature(function).parameters) for function in callables)
    assert row.endswith("| not yet |") is not built


def test_every_line_says_whether_it_is_built() -> None:
    """Yes, not yet, or partly, with what is missing."""
    rows = re.findall(r"^\| [A-Z]-\d\w* \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for row in rows:
        assert re.search(r"\| (yes|not yet|partly: .+) \|$", row), row
