"""Links in the README and the docs have targets, and each guarantee links to the test that proves it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY, ROOT, anchor, headings, links, name_of, pages, section

README = ROOT / "README.md"
_ELSEWHERE = re.compile(r"^(https?|mailto):")
_TEST_NAME = re.compile(r"^`(test_\w+)`$")


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_a_link_leads_to_a_file_and_an_anchor_to_a_heading(page: Path) -> None:
    """No link within the project is dead."""
    for link in links(page.read_text(encoding="utf-8")):
        ours = link.target.startswith(REPOSITORY)
        if _ELSEWHERE.match(link.target) and not ours:
            continue
        name, _, fragment = link.target.removeprefix(REPOSITORY).partition("#")
        target = ((ROOT if ours else page.parent) / name).resolve() if name else page
        assert target.exists(), f"{name_of(page)}:{link.line}: {link.target} does not exist"
        if fragment and target.suffix == ".py":
            known = {f"L{n}" for n, _ in enumerate(target.read_text(encoding="utf-8").splitlines(), 1)}
            assert fragment in known, f"{name_of(page)}:{link.line}: {link.target}: no such line"
        elif fragment:
            known = {anchor(title) for title in headings(target)}
            assert fragment in known, f"{name_of(page)}:{link.line}: {link.target}: no such heading"


def guarantees() -> list[tuple[str, str]]:
    """The tests that the README's guarantees name, each with its file."""
    found = [(_TEST_NAME.match(link.text), link.target) for link in links(section(README, "Guarantees"))]
    return [(match[1], target.removeprefix(REPOSITORY)) for match, target in found if match]


@pytest.mark.parametrize(("test", "path"), guarantees(), ids=lambda value: str(value).rpartition("/")[2])
def test_a_guarantee_links_to_an_existing_test(test: str, path: str) -> None:
    """The linked file has a test of that name."""
    source = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(async )?def {test}\(", source, re.MULTILINE), f"{path} has no {test}"


def test_every_guarantee_has_its_test() -> None:
    """Each row of the table names at least one test."""
    rows = [line for line in section(README, "Guarantees").splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        assert any(_TEST_NAME.match(link.text) for link in links(row)), row


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    """Examples use relative paths, or directories that every reader can have."""
    assert not re.search(r"(?<![\w.])/(work|tmp|home|root|Users)/", page.read_text(encoding="utf-8"))
