"""Each policy field has a heading with an example, and each problem has a page."""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from types import ModuleType

import pytest

from open_idempotency import IdempotencyPolicy
from open_idempotency.policy import FIELD_NAMES
from tests.docs.pages import ROOT, blocks, headings, links

_EXTENSIONS = ROOT / "docs" / "_ext"
POLICY = ROOT / "docs" / "reference" / "policy.md"
PROBLEMS = ROOT / "docs" / "problems"


@cache
def extension(name: str) -> ModuleType:
    """A module of ``docs/_ext``, which is in no package."""
    sys.path.insert(0, str(_EXTENSIONS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(_EXTENSIONS))


@pytest.mark.parametrize("field", sorted(FIELD_NAMES))
def test_each_policy_field_has_a_heading_with_an_example(field: str) -> None:
    """The examples are in `docs/_ext/policy_examples.py`; the failure names a field without one."""
    assert f"`{field}`" in headings(POLICY)
    shown = [block.text for block in blocks(POLICY) if block.heading == f"`{field}`" and block.language == "python"]
    assert len(shown) == 1, f"give EXAMPLES of docs/_ext/policy_examples.py an example of {field}"
    assert f"{field}=" in shown[0]


def test_no_example_is_of_a_field_that_does_not_exist() -> None:
    """Every example is of a current field."""
    assert set(extension("policy_examples").EXAMPLES) <= FIELD_NAMES


def test_each_problem_has_a_page_at_the_address_that_docs_url_makes() -> None:
    """`docs_url="…/problems/{type}.html"`: one page for each name of a problem, and no other page."""
    names = {page.stem for page in PROBLEMS.glob("*.md")} - {"index"}
    assert names == set(extension("drawn").problem_names())


@pytest.mark.parametrize("name", sorted(page.stem for page in PROBLEMS.glob("*.md") if page.stem != "index"))
def test_the_page_of_a_problem_begins_with_its_status_and_shows_a_request_that_gets_it(name: str) -> None:
    """Readers search for the number; the example prints it."""
    page = PROBLEMS / f"{name}.md"
    status = headings(page)[0].partition(" ")[0]
    assert re.fullmatch(r"[45]\d\d", status)
    *_, code, printed = blocks(page)
    assert (code.language, printed.language) == ("python", "text")
    assert status in printed.text


def test_the_documented_docs_url_leads_to_the_pages() -> None:
    """The documented address is that of the hosted docs, with the placeholder."""
    policy = next(block.text for block in blocks(PROBLEMS / "index.md") if block.language == "python")
    (url,) = re.findall(r'docs_url="([^"]+)"', policy)
    assert url.endswith("/problems/{type}.html")
    assert IdempotencyPolicy(docs_url=url).docs_url == url


def test_the_table_of_lines_and_tests_is_in_no_navigation_and_no_search() -> None:
    """Only the reference of behaviour links to it."""
    page = ROOT / "docs" / "reference" / "lines.md"
    assert page.read_text(encoding="utf-8").startswith("---\norphan: true\nno-search: true\n---\n")
    assert "lines.md" in {link.target for link in links((page.parent / "behaviour.md").read_text(encoding="utf-8"))}
    assert not re.search(r"^(reference/)?lines$", (page.parent / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
