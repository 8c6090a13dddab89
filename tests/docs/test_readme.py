"""The README is short, the same on a package index as in the repository, and its table is what the docs execute."""

from __future__ import annotations

import re

from readme_renderer import markdown

from tests.docs.pages import ROOT, blocks, headings, section

README = ROOT / "README.md"
LANDING = ROOT / "docs" / "index.md"


def test_it_is_short() -> None:
    """At most 250 lines."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250
    assert headings(README)[:6] == [
        "open-idempotency",
        "The problem",
        "Quick start",
        "Try it and test it",
        "Frameworks",
        "Guarantees",
    ]
    assert headings(README)[-1] == "Links"


def test_a_package_index_renders_it_with_absolute_links() -> None:
    """With the renderer of PyPI; hidden blocks stay hidden."""
    rendered = markdown.render(README.read_text(encoding="utf-8"))
    assert rendered is not None
    assert rendered.count("<table") >= 3
    links = re.findall(r'(?:href|src)="([^"]+)"', rendered)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "hidden python" not in rendered
    assert "tests.docs.checks" not in rendered


def _added() -> dict[str, list[str]]:
    """For each framework, the code in the table's column for added lines."""
    rows = [row.split(" | ") for row in section(README, "Frameworks").splitlines() if row.startswith("| ")][2:]
    return {row[0].removeprefix("| "): re.findall(r"`([^`]+)`", row[2]) for row in rows}


def test_each_line_to_add_is_one_that_the_landing_page_executes() -> None:
    """The lines of the table run in a block of the landing page."""
    executed = {
        line.strip().partition("  #")[0]
        for block in blocks(LANDING)
        if block.language == "python"
        for line in block.text.splitlines()
    }
    added = {code for codes in _added().values() for code in codes if code != "MIDDLEWARE"}
    assert len(added) >= 5
    assert added <= executed


def test_the_landing_page_installs_in_at_most_six_lines() -> None:
    """In each tab: the visible Python lines, without blank ones."""
    shown = re.sub(r"^<!-- hidden .*?^-->", "", LANDING.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    tabs = re.findall(r"^:{3,}\{tab-item\} (\w+)\n(.*?)^:{3,}$", shown, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in tabs] == ["FastAPI", "Starlette", "Django", "DRF", "Flask", "ASGI", "WSGI", "Once"]
    for name, content in tabs:
        code = "".join(re.findall(r"^```python\n(.*?)^```$", content, re.MULTILINE | re.DOTALL))
        lines = [line for line in code.splitlines() if line.strip() and not line.startswith("# settings.py")]
        assert 2 <= len(lines) <= 6, (name, lines)
