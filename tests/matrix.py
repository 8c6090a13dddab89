"""Which cells of a matrix run: by default enough that each test meets each row and each column, else all.

A matrix has a test for each adapter and each backend, for example, or each server and each adapter. Most mistakes
affect one row or one column, and any cell of it finds those. So a test runs once in each row, in a column that depends
on the test, and in the columns that this leaves out. Over all tests each cell is met. ``OI_TEST_HTTP=full`` and so on
run every cell of a suite, as ``tox -e full`` does.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from zlib import crc32

import pytest

#: those with a matrix; each has a variable, ``OI_TEST_HTTP`` and so on
SUITES = ("CONTRACT", "CRASH", "FORMATS", "HTTP", "ONCE", "OPERATIONS", "PAGES", "WIRE")

#: a row and a column
Pair = tuple[str, str]
#: the row and the column of a test, and the rest of its id; None for a test in no matrix
Cell = Callable[[pytest.Item], tuple[str, str, str] | None]


def below(folder: str, items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests of a folder in ``tests``, by their names, which is ten times as fast as by their paths."""
    start = f"tests/{folder}/"
    return [item for item in items if item.nodeid.startswith(start)]


def is_full(suite: str) -> bool:
    """Whether every cell of this suite was asked for."""
    return os.environ.get(f"OI_TEST_{suite}") == "full"


def thin_out(
    config: pytest.Config, items: list[pytest.Item], folder: str, suite: str, cell: Cell, *, every_column: bool = True
) -> None:
    """Deselect what the short form leaves to the full one; pytest reports their number.

    ``folder``: of the tests that have a cell. ``every_column``: whether a test runs in each column too, and not only in
    each row.
    """
    if is_full(suite):
        return
    matrices: dict[str, dict[Pair, pytest.Item]] = defaultdict(dict)
    for item in below(folder, items):
        if found := cell(item):
            row, column, test = found
            matrices[test][row, column] = item
    out = set()
    for test, cells in matrices.items():
        kept = short_form(test, list(cells), every_column=every_column)
        out |= {item for pair, item in cells.items() if pair not in kept}
    if out:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=sorted(out, key=lambda item: item.nodeid))


def share_out(config: pytest.Config, items: list[pytest.Item], folder: str, suite: str, *names: str) -> None:
    """For a test with values besides its cells, run each value in some cells, and some values in each cell.

    ``names``: of the parameters that make the cell. ``OI_TEST_...=full`` runs each value in each cell.
    """
    if is_full(suite):
        return
    tests: dict[str, dict[Pair, pytest.Item]] = defaultdict(dict)
    for item in below(folder, items):
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and set(names) < set(item.callspec.params):
            cell = " ".join(str(item.callspec.params[name]) for name in names)
            tests[item.nodeid.partition("[")[0]][apart_from(item, *names), cell] = item
    out = set()
    for found in tests.values():
        kept = diagonals(list(found))
        out |= {item for pair, item in found.items() if pair not in kept}
    if out:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=sorted(out, key=lambda item: item.nodeid))


def diagonals(cells: Sequence[Pair]) -> set[Pair]:
    """Every fourth pair of values and cells: each value and each cell occurs, not each combination."""
    places = [sorted({cell[place] for cell in cells}) for place in (0, 1)]
    step = min(4, *map(len, places))
    return {(one, two) for one, two in cells if (places[0].index(one) + places[1].index(two)) % step == 0}


def short_form(test: str, cells: Sequence[Pair], *, every_column: bool = True) -> set[Pair]:
    """The cells of a test in the short form: one in each row and, if ``every_column``, in each column."""
    kept: set[Pair] = set()
    for place in (0, 1) if every_column else (0,):
        for name in dict.fromkeys(cell[place] for cell in cells):
            if name not in {cell[place] for cell in kept}:
                kept.add(_one_of([cell for cell in cells if cell[place] == name], test + name))
    return kept


def _one_of(cells: list[Pair], name: str) -> Pair:
    """One item, which is the same in each process and each run."""
    return cells[crc32(name.encode()) % len(cells)]


def apart_from(item: pytest.Function, *names: str) -> str:
    """The id of a test without these parameters: its function, and the other parameters."""
    others = item.callspec.id
    for name in names:
        others = others.replace(str(item.callspec.params[name]), "", 1)
    return f"{item.originalname}[{others.strip('-')}]"
