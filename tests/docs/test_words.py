"""Words that must not occur in the code, with the standard term for each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = _ROOT / "src" / "open_idempotency"

#: what is searched for in every module of the package, and what to say instead
_WORDS = {
    r"\b[Cc]olou?r(s|ed|less)?\b": "sync, async",
    r"\bSPEC\b": "the number of the line in docs/reference/behaviour.md",
    # b"answer" is part of encrypted records, so it cannot change
    r"(?i)(?<!b\")answer": "response; reply of a server; result of a call",
    r"\bheader fields?\b|\bfield lines?\b": "header",
    r"\btold\b|\btells\b": "report, log, raise, say",
    r"(?<!in )\bplaces?\b|\bin place of\b": "slot, position, path; instead of",
    # to wait "without blocking" is what a call does, not what it is
    r"(?<!without )\b[Bb]locking\b": "sync",
    r"(?i)\b(an?|the|each|this|another|every|no|any|several|for|since|of) stores?\b|\bstore's\b": "backend, server",
    r"\b(can|cannot|could not|may) be kept\b(?! for)|\b(is|was) not kept\b(?! alive)": "stored",
}


@pytest.mark.parametrize("word", _WORDS)
def test_a_word_with_a_standard_term_stays_away(word: str) -> None:
    """The package uses standard terms only."""
    found = [
        f"{path.relative_to(_ROOT)}:{number}: {line.strip()}"
        for path in sorted(_PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert not found, f"say {_WORDS[word]!r} instead:\n" + "\n".join(found)


#: what is searched for in the tests, the examples and the benchmarks; data in quotes does not count
_IN_TESTS = {word: _WORDS[word] for word in _WORDS if "olou" in word or "told" in word} | {
    r"(?i)(?<![\"'.])answer": "response; reply of a server; result of a call",
}
#: lists of words, and what is drawn in colours
_NOT_SEARCHED = {"docs", "browser", "test_benchmarks.py", "browser.py", "terminal.py"}


@pytest.mark.parametrize("word", _IN_TESTS)
def test_a_word_with_a_standard_term_stays_out_of_the_tests(word: str) -> None:
    """Whoever reads a test to learn what the package does meets the same terms."""
    found = [
        f"{path.relative_to(_ROOT)}:{number}: {line.strip()}"
        for folder in ("tests", "examples", "benchmarks")
        for path in sorted((_ROOT / folder).rglob("*.py"))
        if not {path.name, path.parent.name} & _NOT_SEARCHED
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert not found, f"say {_IN_TESTS[word]!r} instead:\n" + "\n".join(found)


#: words in names of tests, and what to say instead
_IN_NAMES = {
    r"_answer(s|ed|ing)?(_|\b)": "response; reply of a server; result of a call",
    r"_told(_|\b)|_tells?(_|\b)": "reported, logged, raised, distinguished",
    r"_colours?(_|\b)": "sync, async",
    r"_surely(_|\b)|_riddle": "what happens",
}


@pytest.mark.parametrize("word", _IN_NAMES)
def test_names_of_tests_use_the_standard_terms(word: str) -> None:
    """The page of lines lists these names. Only drawings have colours."""
    found = [
        f"{path.relative_to(_ROOT)}: {name}"
        for path in sorted((_ROOT / "tests").rglob("*.py"))
        if path.parent.name not in ("docs", "browser")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
        if re.search(word, name)
    ]
    assert not found, f"say {_IN_NAMES[word]!r} instead:\n" + "\n".join(found)
