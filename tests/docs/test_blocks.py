"""Every Python block of the README and the docs runs, in order, and its assertions hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import blocks, name_of, pages
from tests.support.prepared import Prepared

SECONDS = 90
#: lists that are generated or only link, reasons, and what is written for people who work on the project
WITHOUT_PYTHON = {
    "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md", "docs/changelog.md",
    "docs/design/choices.md", "docs/design/finding.md", "docs/design/house.md", "docs/how-to/index.md",
    "docs/reference/index.md", "docs/reference/lines.md",
}  # fmt: skip


def _with_python() -> list[Path]:
    return [page for page in pages() if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", _with_python(), ids=name_of)
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path, prepared: Prepared) -> None:
    """A page is one program: each block sees the names of the blocks above it."""
    done = prepared.run("tests.docs.execute", [str(page)], tmp_path, SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len([b for b in blocks(page) if b.language == 'python'])} blocks" in done.stdout


def test_every_page_shows_something_that_runs() -> None:
    """Every page has a block that runs."""
    without = {name_of(page) for page in pages()} - {name_of(page) for page in _with_python()}
    assert without - WITHOUT_PYTHON == set()


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_no_block_hides_from_the_tests(page: Path) -> None:
    """Every block has a language that the tests know, so that a misspelt one does not go unchecked."""
    known = {"python", "console", "sh", "json", "http", "text", "ini", "toml", "lua", "js"}
    directives = {"{toctree}", "{eval-rst}", "{include} ../CHANGELOG.md", "{image} states.svg"}
    for block in blocks(page):
        assert block.language in known | directives, f"{name_of(page)}:{block.line}: {block.language!r}"
