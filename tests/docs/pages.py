"""The documentation as the tests read it: pages, and the blocks, headings and links in them.

Knows Markdown as far as these pages use it: fenced blocks, ``#`` headings, inline links, and blocks that are hidden
in a comment (``<!-- hidden python … -->``), which set up or check what the visible ones show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
#: begins each link of the README to a file of the project, since a package index shows the README alone
REPOSITORY = "https://github.com/open-idempotency/open-idempotency/blob/main/"

OF_THE_PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")

_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_HIDDEN = re.compile(r"^<!-- hidden (\w+)\n(.*?)^-->[ \t]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!\\)!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"`[^`\n]*`")


class Block(NamedTuple):
    """One block: its language, its text, the line of the page where the text begins, and the heading above it."""

    language: str
    text: str
    line: int
    heading: str


class Link(NamedTuple):
    """An inline link, with its line."""

    text: str
    target: str
    line: int


def pages() -> list[Path]:
    """Every page that the project publishes."""
    found = [ROOT / name for name in ("README.md", *OF_THE_PROJECT)]
    found += sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
    return found


def name_of(page: Path) -> str:
    """A page's path as a test id."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order, hidden ones included."""
    return list(_blocks(page.read_text(encoding="utf-8")))


def _blocks(text: str) -> Iterator[Block]:
    fenced = [(m.start(3), m[2].strip(), m[3]) for m in _FENCE.finditer(text)]
    hidden = [(m.start(2), m[1], m[2]) for m in _HIDDEN.finditer(text)]
    heads = [(m.start(), m[2].strip()) for m in _HEADING.finditer(without_blocks(text))]
    for start, language, body in sorted(fenced + hidden):
        heading = next((title for at, title in reversed(heads) if at < start), "")
        yield Block(language, body, text.count("\n", 0, start) + 1, heading)


def without_blocks(text: str) -> str:
    """The prose alone: blocks are blanked out, and every character keeps its offset."""
    for pattern in (_FENCE, _HIDDEN):
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def headings(page: Path) -> list[str]:
    """The headings of a page in order."""
    return [m[2].strip() for m in _HEADING.finditer(without_blocks(page.read_text(encoding="utf-8")))]


def section(page: Path, title: str) -> str:
    """The prose under a heading, up to the next one of the same level or above."""
    text = without_blocks(page.read_text(encoding="utf-8"))
    match = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"{name_of(page)} has no section {title!r}"
    return match[2]


def links(text: str) -> list[Link]:
    """The inline links of a page's prose, without those in backquotes."""
    prose = without_blocks(text)
    outside = [(m.start(), m) for m in _LINK.finditer(prose)]
    quoted = [range(m.start(), m.end()) for m in _CODE.finditer(prose)]
    return [
        Link(m[1], m[2], prose.count("\n", 0, at) + 1) for at, m in outside if not any(at in code for code in quoted)
    ]


def anchor(title: str) -> str:
    """The anchor that GitHub and MyST derive from a heading."""
    return re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")
