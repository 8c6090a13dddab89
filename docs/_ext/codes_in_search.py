"""Sphinx's search in English, with numbers and codes: ``409``, ``O-02``, ``key-reused``.

Sphinx leaves numbers out of its index and out of queries, and takes the numbers of the lines of behaviour and the names
of problems apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.search.en import SearchEnglish

_PROBLEMS = "|".join(sorted(page.stem for page in (Path(__file__).parents[1] / "problems").glob("*-*.md")))
#: a line of behaviour or a problem is one word, and so are its parts; ``_SPLITTER`` is the same in the browser
_CODE = re.compile(rf"\b(?:[A-Z]-\d\d\w*|(?:{_PROBLEMS})\b)")

# Search._parseQuery is private to Sphinx. Where it is gone, queries work as Sphinx makes them: without numbers.
_SPLITTER = r"""
var splitQuery = (query) =>
  query
    .split(/(?<![\p{L}\p{N}_])([a-z]-\d\d\w*|PROBLEMS)(?![\p{L}\p{N}_])|[^\p{L}\p{N}_]+/giu)
    .filter((term) => term);

if (typeof Search !== "undefined" && Search._parseQuery) {
  const parseWithoutNumbers = Search._parseQuery;
  Search._parseQuery = (query) => {
    const parsed = parseWithoutNumbers(query);
    const [, searchTerms, , highlightTerms] = parsed;
    for (const term of splitQuery(query).filter((each) => /^\d+$/.test(each))) {
      searchTerms.add(term);
      highlightTerms.add(term);
    }
    return parsed;
  };
}
""".replace("PROBLEMS", _PROBLEMS)


class EnglishWithCodes(SearchEnglish):
    """English, where numbers count as words."""

    js_splitter_code = _SPLITTER

    def split(self, input: str) -> list[str]:
        """The words of a text, and each code as a word of its own."""
        return [*super().split(input), *_CODE.findall(input)]

    def word_filter(self, word: str) -> bool:
        """Whether a word belongs to the index: numbers do, stop words do not."""
        return word.isdigit() or super().word_filter(word)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx: index and search with this language."""
    app.add_search_language(EnglishWithCodes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
