"""The how-to guides: the search finds each of them, its code runs, and the index lists it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.tasks import TASKS
from tests.docs.pages import ROOT, blocks, links

FOLDER = ROOT / "docs" / "how-to"
GUIDES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "index")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_each_guide_has_a_query_that_the_search_is_held_against(page: Path) -> None:
    """Queries are in tests/browser/tasks.py."""
    assert f"how-to/{page.stem}" in TASKS.values()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_each_guide_has_code_that_runs(page: Path) -> None:
    """Each guide has a Python block; the blocks of every page run."""
    assert any(block.language == "python" for block in blocks(page))


def test_the_index_lists_each_guide_once() -> None:
    """`python docs/_ext/drawn.py` writes the index."""
    listed = [link.target for link in links((FOLDER / "index.md").read_text(encoding="utf-8"))]
    assert sorted(listed) == [page.name for page in GUIDES]


def test_each_task_names_a_page_that_exists() -> None:
    """A renamed page needs new queries."""
    assert [page for page in TASKS.values() if not (ROOT / "docs" / f"{page}.md").exists()] == []
