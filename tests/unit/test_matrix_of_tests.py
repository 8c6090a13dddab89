"""The short form of a test matrix drops repetitions, and neither a row nor a column."""

from __future__ import annotations

from itertools import product

import pytest

from tests.matrix import diagonals, short_form

ROWS = ["asgi", "flask", "django"]
COLUMNS = ["memory", "sqlite", "redis", "postgres"]


CELLS = list(product(ROWS, COLUMNS))


@pytest.mark.parametrize("test", ["test_a", "test_b", "test_c[201]"])
def test_a_test_meets_each_row_and_each_column(test: str) -> None:
    """The short form does not run every pair."""
    kept = short_form(test, CELLS)
    assert {row for row, _ in kept} == set(ROWS)
    assert {column for _, column in kept} == set(COLUMNS)
    assert len(kept) < len(CELLS)


def test_where_columns_are_variants_a_test_meets_each_row_once() -> None:
    """Such as the releases and drivers of one backend."""
    assert sorted(row for row, _ in short_form("test_a", CELLS, every_column=False)) == sorted(ROWS)


def test_over_all_tests_each_cell_is_met() -> None:
    """An error in one pair is found by some test."""
    assert {cell for number in range(50) for cell in short_form(f"test_{number}", CELLS)} == set(CELLS)


def test_it_is_the_same_in_each_process() -> None:
    """pytest-xdist requires that all workers collect the same tests."""
    assert [short_form("test_a", CELLS) for _ in range(3)] == [short_form("test_a", CELLS)] * 3
    assert short_form("test_a", [("asgi", "memory")]) == {("asgi", "memory")}


@pytest.mark.parametrize("values", [["a"], ["a", "b"], ["a", "b", "c", "d", "e", "f", "g"]])
def test_of_a_test_with_many_values_each_value_and_each_cell_is_met(values: list[str]) -> None:
    """With two values or more, not every value runs in every cell."""
    pairs = list(product(values, ROWS))
    kept = diagonals(pairs)
    assert {value for value, _ in kept} == set(values)
    assert {row for _, row in kept} == set(ROWS)
    assert (len(kept) < len(pairs)) == (len(values) > 1)


def test_diagonals_do_not_depend_on_the_order() -> None:
    """Tests are shuffled before they are collected."""
    pairs = list(product("abcd", ROWS))
    assert diagonals(pairs) == diagonals(pairs[::-1])
