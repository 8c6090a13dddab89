"""Conventions of the code: a test file says what it holds, and an exception to a check gives its reason."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
SOURCES = [path for folder in ("src", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]

#: a comment that turns off a check, up to where its reason begins
_TURNS_OFF = re.compile(r"# (?:(?:ruff: )?noqa\b|type: ignore\b|pyright: ignore\b|pragma: no )")
#: what each of them may name, and then the reason: in brackets, or as a comment of its own
_WITH_REASON = re.compile(
    r"# (?:ruff: )?noqa: [A-Z]+\d+(?:, [A-Z]+\d+)* \(.+\)$"
    r"|# pragma: no (?:cover|branch) \(.+\)$"
    r"|(?:# (?:type|pyright): ignore\[[\w, -]+\]  )+# (?!noqa|type:|pyright:).+$"
)


def without_reason(comment: str) -> bool:
    """Whether this comment turns off a check without a reason."""
    found = _TURNS_OFF.search(comment)
    return found is not None and _WITH_REASON.match(comment, found.start()) is None


@pytest.mark.parametrize(
    ("comment", "bare"),
    [
        ("# noqa: B023", True),
        ("# noqa", True),
        ("# noqa: B023 (called at once)", False),
        ("# ruff: noqa: E402 (Django has to be set up first)", False),
        ("# type: ignore[override]", True),
        ("# type: ignore  # theirs", True),
        ("# type: ignore[override]  # read at the claim", False),
        ("# type: ignore[a]  # pyright: ignore[b]", True),
        ("# type: ignore[a]  # pyright: ignore[b]  # a proxy", False),
        ("# pragma: no cover", True),
        ("# pragma: no cover (Windows)", False),
        ("# a plain comment", False),
    ],
)
def test_a_reason_is_distinguished_from_none(comment: str, bare: bool) -> None:
    """The test below can fail."""
    assert without_reason(comment) is bare


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def test_whatever_turns_off_a_check_gives_its_reason_on_the_line() -> None:
    """In the package, and in the tests, whose types are not checked."""
    bare = [
        f"{path.relative_to(ROOT)}:{line}: {comment}"
        for path in SOURCES
        # a fast search first: few files have these words
        if _TURNS_OFF.search(path.read_text(encoding="utf-8")) and path != Path(__file__)
        for line, comment in _comments(path)
        if without_reason(comment)
    ]
    assert not bare, "give the reason, or take it out:\n" + "\n".join(bare)


def _skips(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "pytest.skip",
            "pytest.mark.skip",
            "pytest.mark.skipif",
        ):
            yield node


def test_every_skip_gives_its_reason() -> None:
    """As its argument, which pytest reports."""
    bare = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if ".skip" not in text:
            continue
        for call in _skips(ast.parse(text)):
            given = call.args[:1] if ast.unparse(call.func) == "pytest.skip" else []
            given += [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
            if not given:
                bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not bare, "give the reason:\n" + "\n".join(bare)


def _says_what_it_holds(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        first = file.readline().rstrip()
    return first.startswith('"""') and first.removesuffix('"""').endswith((".", ":"))


def test_every_test_file_says_in_one_line_what_it_holds() -> None:
    """Its docstring begins with one sentence on its own line."""
    unsaid = [str(path.relative_to(ROOT)) for path in TEST_FILES if not _says_what_it_holds(path)]
    assert not unsaid, "let the docstring's first line be one sentence:\n" + "\n".join(unsaid)
