"""No figure that is published was typed by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report, results
from tests.docs.pages import name_of


@pytest.mark.parametrize("page", report.PAGES, ids=name_of)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path) -> None:
    """What ``python -m benchmarks.report`` writes."""
    text = page.read_text(encoding="utf-8")
    assert report.written(text, results.FOLDER) == text


@pytest.mark.parametrize("page", report.PAGES, ids=name_of)
def test_a_page_has_no_table_without_results(page: Path) -> None:
    """A page that is published says what was measured."""
    assert "Not measured yet" not in page.read_text(encoding="utf-8")
    assert re.search(r"<!-- results: [a-z-]+ -->\n(\||Measured on )", page.read_text(encoding="utf-8"))
