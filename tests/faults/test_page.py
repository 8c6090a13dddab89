"""The page of faults agrees with the tests: the same rows and losses, and tests that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import section
from tests.faults.report import LIST_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
#: the rows of the list of faults
ROWS = range(1, 39)
_FILE = re.compile(r"`([\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)")
LOST = "**Lost:**"
HERE = "tests/faults/"


def _rows(title: str) -> dict[int, str]:
    """The numbered lines of the table under a heading."""
    lines = [line for line in section(PAGE, title).splitlines() if re.match(r"\| \d+ \|", line)]
    rows = {int(line.split("|")[1]): line for line in lines}
    assert len(rows) == len(lines), "a row twice"
    return rows


def _tests() -> set[tuple[int, str, str]]:
    """Row, file and name of each test that the page names."""
    return {
        (row, path if "/" in path else HERE + path, name)
        for row, line in _rows("Tests").items()
        for path, names in _FILE.findall(line)
        for name in re.findall(r"test_\w+", names)
    }


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The marks of the full form, as pytest collects them."""
    listed = tmp_path_factory.mktemp("marks") / "marks.json"
    environment = {**os.environ, "OI_TEST_FAULTS": "full", LIST_VARIABLE: str(listed), "PYTHONPATH": _path()}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/faults"]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=110, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    marks: list[dict[str, Any]] = json.loads(listed.read_text())
    return marks


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def test_the_page_has_every_fault_and_what_shows_it() -> None:
    """Each fault has one row."""
    assert list(_rows("What happens")) == list(ROWS)
    assert list(_rows("Tests")) == list(ROWS)
    assert {row for row, _, _ in _tests()} == set(ROWS)


def test_each_test_that_the_page_names_exists() -> None:
    """In the file that the page names."""
    for row, path, name in _tests():
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"row {row}: {path}: {name}"


def test_the_page_names_the_tests_that_are_marked(marks: list[dict[str, Any]]) -> None:
    """A row names exactly the tests that are marked for it."""
    marked = {(mark["row"], mark["test"]) for mark in marks}
    assert {(row, name) for row, path, name in _tests() if path.startswith(HERE)} == marked


def test_a_row_speaks_of_a_loss_where_a_test_shows_one(marks: list[dict[str, Any]]) -> None:
    """A row describes a loss if and only if a test shows one."""
    said = {row for row, line in _rows("What happens").items() if LOST in line}
    assert said == {mark["row"] for mark in marks if mark["kind"] == "documented"}
