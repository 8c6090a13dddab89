"""The short form of a matrix of tests leaves out repetitions, and neither a row nor a column."""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import pytest

from tests.matrix import _left_out

ROWS = ["asgi", "flask", "django"]
COLUMNS = ["memory", "sqlite", "redis", "postgres"]


def _cells(rows: list[str], columns: list[str]) -> dict[tuple[str, str], pytest.Item]:
    """Items that can be told apart, which is all that is asked of them."""
    return {cell: cast("Any", cell) for cell in product(rows, columns)}


def _kept(test: str, met: tuple[int, ...] = (0, 1)) -> set[tuple[str, str]]:
    cells = _cells(ROWS, COLUMNS)
    return set(cells) - cast("Any", _left_out(test, cells, met))


@pytest.mark.parametrize("test", ["test_a", "test_b", "test_c[201]"])
def test_a_test_meets_each_row_and_each_column(test: str) -> None:
    """And not every pair of them."""
    kept = _kept(test)
    assert {row for row, _ in kept} == set(ROWS)
    assert {column for _, column in kept} == set(COLUMNS)
    assert len(kept) < len(ROWS) * len(COLUMNS)


def test_where_columns_are_variants_a_test_meets_each_row_once() -> None:
    """As with the releases and drivers of one backend."""
    assert sorted(row for row, _ in _kept("test_a", (0,))) == sorted(ROWS)


def test_over_all_tests_each_cell_is_met() -> None:
    """So a mistake of one pair is found by some test."""
    assert {cell for number in range(50) for cell in _kept(f"test_{number}")} == set(_cells(ROWS, COLUMNS))


def test_it_is_the_same_in_each_process() -> None:
    """Workers that had collected different tests could not share them."""
    assert [_kept("test_a") for _ in range(3)] == [_kept("test_a")] * 3
    assert _left_out("test_a", _cells(["asgi"], ["memory"]), (0, 1)) == set()
