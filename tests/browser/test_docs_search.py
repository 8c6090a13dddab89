"""The search of the built docs, in a browser: each query finds its page among the first three results."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.browser.tasks import TASKS
from tests.support.browser import Browser

# The heading changes when the last result is shown.
_FOUND = """
if (document.querySelector("#search-results h2")?.innerText !== "Search Results") return null;
const links = [...document.querySelectorAll("#search-results ul.search li a")];
return {hrefs: links.map(link => link.getAttribute("href"))};
"""


def found(browser: Browser, site: str, query: str) -> list[str]:
    """The pages that a query finds, without duplicates, the best first."""
    browser.show(f"{site}search.html?q={quote(query)}")
    links: list[str] = browser.wait_for(_FOUND)["hrefs"]
    return list(dict.fromkeys(link.partition("#")[0].removesuffix(".html") for link in links))


@pytest.mark.parametrize("query", TASKS)
def test_a_task_finds_its_page_among_the_first_three(query: str, browser: Browser, docs_site: str) -> None:
    """Queries of readers, including numbers and codes."""
    results = found(browser, docs_site, query)
    assert TASKS[query] in results[:3], results[:8]


def test_a_word_that_is_nowhere_finds_nothing(browser: Browser, docs_site: str) -> None:
    """The test above can fail."""
    assert found(browser, docs_site, "xylophone") == []


def test_the_table_of_lines_and_tests_is_never_found(browser: Browser, docs_site: str) -> None:
    """That table has every word of every test's name."""
    assert "reference/lines" not in found(browser, docs_site, "heartbeat")
    assert "reference/lines" not in found(browser, docs_site, "lines and their tests")
