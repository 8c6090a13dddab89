"""The page of common mistakes: a test proves each row, and each quoted message is that of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "if-i-forget.md"
SOURCES = ROOT / "src" / "open_idempotency"
#: when a mistake is noticed, from the earliest on, as the page explains it
MOMENTS = ("written", "start", "check", "command", "test", "first request", "request", "retry", "never")

_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| `(tests/[\w/]+\.py)::(test_\w+)` \|$", re.MULTILINE)
_QUOTED = re.compile(r'(?<![`=\w])"((?:[^"|]|"(?=[\w.]+" ))+)"')


class Row(NamedTuple):
    """One misuse."""

    moment: str
    misuse: str
    said: str
    file: str
    test: str


def _text() -> str:
    return PAGE.read_text(encoding="utf-8")


def _rows() -> list[Row]:
    return [Row(*found) for found in _ROW.findall(_text())]


def _order(row: Row) -> tuple[int, str]:
    return MOMENTS.index(row.moment), row.misuse.strip("`").lower()


def test_each_line_of_the_table_is_a_row() -> None:
    """Every line can be parsed, so that none goes unchecked."""
    table = _text().partition("| When | Misuse |")[2].splitlines()[2:]
    assert len(table) == len(_rows()) > 90


def test_the_page_explains_each_moment() -> None:
    """In chronological order, and no other one."""
    legend = _text().partition("| When | Meaning |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| ([a-z ]+) \|", legend, re.MULTILINE)) == MOMENTS


def test_rows_are_sorted_and_no_misuse_is_there_twice() -> None:
    """By moment, then by misuse."""
    rows = _rows()
    assert rows == sorted(rows, key=_order)
    assert len({row.misuse for row in rows}) == len(rows)


@cache
def _tests_of(file: str) -> frozenset[str]:
    """The tests that pytest collects from a file: functions of the module and methods of its ``Test`` classes."""
    path = ROOT / file
    if not path.is_file() or not path.name.startswith("test_"):
        return frozenset()
    module = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")]
    bodies = [module.body, *(node.body for node in classes)]
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for body in bodies for node in body if isinstance(node, functions))


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row.misuse)
def test_the_test_of_a_row_exists(row: Row) -> None:
    """In the file that the row names."""
    assert row.test in _tests_of(row.file)


def _literals(node: ast.AST) -> Iterator[str]:
    """The string literals of a module, with an ellipsis for each interpolated value."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif isinstance(each, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in each.values]
            yield "".join(str(part) for part in parts)


@cache
def _said_by_the_package() -> str:
    modules = [path.read_text(encoding="utf-8") for path in sorted(Path(SOURCES).rglob("*.py"))]
    literals = [literal for module in modules for literal in _literals(ast.parse(module))]
    return "\n".join(" ".join(literal.split()) for literal in literals)


def _quotes() -> list[tuple[str, str]]:
    return [(row.misuse, quote) for row in _rows() for quote in _QUOTED.findall(row.said)]


def test_messages_are_quoted() -> None:
    """The pattern of a quotation finds some."""
    assert len(_quotes()) > 40


@pytest.mark.parametrize(("misuse", "quote"), _quotes())
def test_a_quoted_message_is_what_the_package_says(misuse: str, quote: str) -> None:
    """Word for word; an ellipsis stands for a value."""
    assert quote in _said_by_the_package()


def test_what_is_never_noticed_says_what_to_do() -> None:
    """A row for "nothing" says how to stay safe."""
    never = [row for row in _rows() if row.moment == "never"]
    assert never
    assert [row.misuse for row in never if len(row.said) < 50] == []


def test_each_check_that_is_named_exists() -> None:
    """The ids of Django's system checks."""
    named = set(re.findall(r"\b[EW]0\d\d\b", _text()))
    assert named
    known = set(re.findall(r"open_idempotency\.([EW]0\d\d)", _said_by_the_package()))
    assert named <= known
