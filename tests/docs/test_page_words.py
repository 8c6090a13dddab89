"""Words that must not occur on the pages, with the standard term for each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, name_of, pages, without_blocks

#: what is searched for in the prose of every page, without blocks and code, and what to say instead
_WORDS = {
    r"\bcolou?rs?\b": "sync, async",
    r"\bSPEC\b": "the number of the line in docs/reference/behaviour.md",
    r"\bheader fields?\b": "header",
    r"\b(an|stored|atomic|whole|view's|owner's|whose) answers?\b": "response",
    r"\bplaces\b|\bin place of\b": "slots, positions, points; instead of",
    r"\b(an?|the|each|this|another|every|no|several|one|unavailable) stores?\b": "backend, server",
    r"\b(cannot|could not|can) be kept\b|\bvalue not kept\b": "stored",
    r"\bawaited (ones?|verbs?|connections?|sessions?|transactions?)\b": "async",
    r"\bblocking (ones?|verbs?|calls?|code|views?|transactions?|connections?|clients?)\b": "sync",
    r"\b(is|are) told\b(?! apart)": "reported, logged, raised or notified",
    r"\b(is|are) answered \d{3}\b": "the request gets the status",
    r"\b_perform\b": "_runtime, _engine, _stages or _routes",
    r"\bbehind (the (last|stages?|recorded)|its|those|this|these|each|all|it|them)\b": "after",
    r"\b(anew|all the same)\b": "again; still",
    r"\bas ever\b": "as usual",
    r"\bfrom then on\b": "then, afterwards",
    r"\b(keys|records|bytes|requests|calls) a (second|day|minute)\b": "per second",
    r"\bnothing to write\b": "No configuration is necessary",
    r"\bsays? so\b": "report, log or raise, and what",
    r"\b(theirs|of yours|of mine|the like)\b": "the name of what it is",
    r"\b(out|in)side of (the|this|that|all|it)\b": "outside, inside",
    r"\bwithout a word\b": "no warning reports it",
    r"\b(of ours|of one's own)\b": "of this package, this middleware; your own",
    r"\bfor ever\b": "forever",
    r"\b(goes|went|go) out\b": "is sent",
    r"\b(hand|hands|handed) (on|over)\b|\bg[ia]ve(s|n)? back\b": "pass, return, release",
    r"\bsomebody else\b|\bwhom nothing is known\b": "another attempt, caller or process; unknown",
    r"\bknown of\b": "known",
    r"\bput back\b": "set back, returned",
    r"\b(is|are) asked (for|whether)\b": "queried, checked",
    r"\bmeanwhile\b": "while, in between",
}
_LINK_TARGET = re.compile(r"\]\([^()\s]+\)")
_CODE = re.compile(r"`[^`\n]*`")
#: tables that are drawn from the code or from measurements: their words are those of the package
_DRAWN = re.compile(r"<!-- (?:drawn|results): .*?<!-- end -->", re.DOTALL)
_PAGES = [*pages(), ROOT / "examples" / "README.md", ROOT / "benchmarks" / "README.md"]
#: what people read to get something done, and what to say there instead
_GUIDES = [ROOT / "docs" / folder for folder in ("how-to", "problems", "frameworks", "callers")]
_IN_GUIDES = {
    r"\bbeside\b": "in addition to, next to, concurrent",
    r"\b(goes|went|go|going) on\b": "continues",
    r"\b(nobody|whoever|of which)\b": "name who or what it is",
}


@pytest.mark.parametrize("word", _WORDS)
def test_a_word_with_a_standard_term_stays_out_of_the_pages(word: str) -> None:
    """Pages use standard terms only.

    Code that the prose quotes may have any name, except a package that no longer exists.
    """
    found = _uses(word, _PAGES)
    assert not found, f"say {_WORDS[word]!r} instead:\n" + "\n".join(found)


@pytest.mark.parametrize("word", _IN_GUIDES)
def test_an_unusual_phrase_stays_out_of_the_guides(word: str) -> None:
    """Guides are written for readers in a hurry, and in simple English."""
    found = _uses(word, [page for page in _PAGES if page.parent in _GUIDES])
    assert not found, f"say {_IN_GUIDES[word]!r} instead:\n" + "\n".join(found)


def _uses(word: str, searched: Iterable[Path]) -> list[str]:
    """The places of a word, each with page and line."""
    pattern = re.compile(word.replace(" ", r"\s+"), re.IGNORECASE if word != r"\bSPEC\b" else 0)
    found: list[str] = []
    for page in searched:
        text = without_blocks(page.read_text(encoding="utf-8"))
        text = _DRAWN.sub(lambda drawn: "\n" * drawn[0].count("\n"), text)
        prose = text if "_perform" in word else _CODE.sub("", _LINK_TARGET.sub("]", text))
        found += [
            f"{name_of(page)}:{prose.count(chr(10), 0, m.start()) + 1}: {m[0]!r}" for m in pattern.finditer(prose)
        ]
    return found
