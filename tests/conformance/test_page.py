"""The page of the docs matches the statements and scenes of the runner."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_idempotency.conformance.http import Target
from open_idempotency.conformance.http.cli import PROFILES, STATEMENTS
from open_idempotency.conformance.http.observations import LIMITS, limits_of

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_lists_every_statement() -> None:
    """With level, section and sentence, in order."""
    shown = [[f"`{each.id}`", each.level.value, each.section, each.sentence] for each in STATEMENTS]
    assert _rows("The statements") == shown


def test_the_page_lists_every_scene() -> None:
    """With the maximal number of its requests, and the total in the text."""
    assert [row[:2] for row in _rows("The requests")] == [[scene, str(number)] for scene, number in LIMITS.items()]
    assert f"up to {sum(LIMITS.values())} times" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["acp", "ucp"])
def test_the_page_lists_every_statement_of_a_protocol(name: str) -> None:
    """O-40: with level, section and sentence, in order."""
    shown = [[f"`{each.id}`", each.level.value, each.section, each.sentence] for each in PROFILES[name].statements]
    assert _rows(f"Statements of {name.upper()}") == shown


def test_the_page_lists_the_scenes_of_the_protocols() -> None:
    """O-40: scenes that the draft's run lacks, and the total in the text."""
    limits = limits_of(Target(url="http://127.0.0.1:1", profile="acp"))
    more = [[scene, str(number)] for scene, number in limits.items() if scene not in LIMITS]
    assert [row[:2] for row in _rows("Agentic commerce")] == more
    assert f"At most {sum(limits.values())} requests" in PAGE.read_text(encoding="utf-8")
