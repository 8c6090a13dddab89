"""The page of the docs says what the runner does."""

from __future__ import annotations

from pathlib import Path

from open_idempotency.conformance.http.cli import STATEMENTS
from open_idempotency.conformance.http.observations import LIMITS

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def _rows(heading: str) -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_lists_every_statement() -> None:
    """With its level, section and sentence, in order."""
    shown = [[f"`{each.id}`", each.level.value, each.section, each.sentence] for each in STATEMENTS]
    assert _rows("The statements") == shown


def test_the_page_lists_every_scene() -> None:
    """With the number of requests that it sends at most, and the sum in the text."""
    assert [row[:2] for row in _rows("The requests")] == [[scene, str(number)] for scene, number in LIMITS.items()]
    assert f"up to {sum(LIMITS.values())} times" in PAGE.read_text(encoding="utf-8")
