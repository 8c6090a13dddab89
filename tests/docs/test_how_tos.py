"""The how-to guides: each is found by a query, is executed, and has an entry on the index."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.tasks import TASKS
from tests.docs.pages import ROOT, blocks, links

FOLDER = ROOT / "docs" / "how-to"
GUIDES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "index")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_each_guide_has_a_query_that_the_search_is_held_against(page: Path) -> None:
    """tests/browser/tasks.py; a guide that nobody finds helps nobody."""
    assert f"how-to/{page.stem}" in TASKS.values()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_each_guide_has_code_that_runs(page: Path) -> None:
    """The Python blocks of every page are executed; a guide has one at least."""
    assert any(block.language == "python" for block in blocks(page))


def test_the_index_lists_each_guide_once() -> None:
    """`python docs/_ext/drawn.py` writes it."""
    listed = [link.target for link in links((FOLDER / "index.md").read_text(encoding="utf-8"))]
    assert sorted(listed) == [page.name for page in GUIDES]


def test_each_task_names_a_page_that_exists() -> None:
    """A page that is renamed takes its queries along."""
    assert [page for page in TASKS.values() if not (ROOT / "docs" / f"{page}.md").exists()] == []
