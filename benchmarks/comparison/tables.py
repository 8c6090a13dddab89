"""The measured behaviour as tables, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.comparison.scenarios import SCENARIOS

#: the parts of the page, by their names
PARTS = tuple(dict.fromkeys(scenario.table for scenario in SCENARIOS))


def lines(part: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    """The head and a line for each subject."""
    scenarios = [scenario for scenario in SCENARIOS if scenario.table == part]
    yield "Package, framework, backend", *(scenario.title for scenario in scenarios)
    for row in rows:
        yield subject(row), *(row["verdicts"][scenario.name] for scenario in scenarios)


def subject(row: Mapping[str, Any]) -> str:
    """The first cell."""
    return f"{row['package']}, {row['framework']}, {row['backend'].partition('-')[0]}"
