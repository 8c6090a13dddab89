"""The index of the how-to guides: their titles, grouped by what a reader is about to do.

A guide is a page in ``docs/how-to``. It needs no entry here: one that no group names is listed at the end.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "how-to"

#: headings in the order of the page, each with the names of its guides; patterns are those of ``fnmatch``
GROUPS = {
    "Keys and callers": ("require-*", "send-*", "who-*", "change-*", "wait-*", "which-*"),
    "Requests and responses": ("file-*", "streaming-*", "cors", "compression", "graphql-*", "encrypt-*"),
    "Tests": ("test-*",),
    "Jobs and messages": ("celery-*", "webhooks", "agentic-*"),
    "Backends": ("sentinel-*", "postgresql-*", "alembic-*", "migrations*", "size-*"),
    "Operations": ("runbook", "deploy-*", "django-*", "metrics-*", "find-*", "stuck-*", "erase*", "upgrade*"),
    "Moving from another library": ("move-*",),
}
_REST = "More"
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


def guides() -> list[Path]:
    """Every guide, by name."""
    return sorted(page for page in FOLDER.glob("*.md") if page.stem != "index")


def title_of(page: Path) -> str:
    """The first heading of a page."""
    found = _TITLE.search(page.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page.name} has no title: begin it with a line such as '# Require a key'")
    return found[1].strip()


def _group_of(name: str) -> str:
    return next((group for group, names in GROUPS.items() if any(fnmatch(name, each) for each in names)), _REST)


def grouped() -> str:
    """A heading for each group that has guides, and a list of links below it."""
    found: dict[str, list[Path]] = {group: [] for group in [*GROUPS, _REST]}
    for page in guides():
        found[_group_of(page.stem)].append(page)
    return "\n".join(f"## {group}\n\n{_links(pages)}" for group, pages in found.items() if pages)


def _links(pages: list[Path]) -> str:
    return "".join(f"- [{title_of(page)}]({page.name})\n" for page in pages)
