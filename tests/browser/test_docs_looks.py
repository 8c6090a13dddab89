"""The look of the built docs: on a phone and on a wide screen, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, headings
from tests.support.browser import Browser

PHONE, WIDE = 390, 1440
_WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
# The elements that are wider than the window, for the message.
_CULPRITS = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll("article *")]
  .filter(each => each.getBoundingClientRect().right > width + 1 && !each.closest("pre, .drawing-frame"))
  .slice(0, 5).map(each => each.outerHTML.slice(0, 120));
"""
_LUMINANCE = """
const probe = document.createElement("canvas").getContext("2d");
return arguments[0].map(([selector, property]) => {
  probe.fillStyle = getComputedStyle(document.querySelector(selector))[property];
  const [r, g, b] = probe.fillStyle.match(/[0-9a-f]{2}/g).map(part => parseInt(part, 16) / 255);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
});
"""
PAGES = sorted(
    page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in (ROOT / "docs").rglob("*.md")
)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_scrolls_sideways(page: str, browser: Browser, docs_site: str) -> None:
    """Tables, code and long names fit or scroll by themselves, light and dark; the console has no error."""
    browser.show(f"{docs_site}{page}")
    for width in (PHONE, WIDE):
        for dark in (False, True):
            browser.look(width, dark=dark)
            assert browser.run(_WIDER) <= 0, (width, browser.run(_CULPRITS))
    assert browser.errors() == []


@pytest.mark.parametrize("page", ["index.html", "reference/states.html"])
@pytest.mark.parametrize("dark", [False, True])
def test_drawings_follow_the_colours_of_the_page(page: str, dark: bool, browser: Browser, docs_site: str) -> None:
    """Text and lines contrast with the background, which is the page's."""
    browser.show(f"{docs_site}{page}", WIDE, dark=dark)
    probes = [("body", "backgroundColor"), (".drawing .ground", "fill"), (".drawing .ink", "fill")]
    background, ground, ink = browser.run(_LUMINANCE, probes)
    assert abs(background - ground) < 0.05
    assert (background < 0.2) is dark
    assert abs(ink - ground) > 0.6


def test_drawings_follow_the_choice_of_the_reader(browser: Browser, docs_site: str) -> None:
    """They follow the theme's switch, and not only the system's setting."""
    browser.show(f"{docs_site}reference/states.html", WIDE, dark=False)
    browser.run("document.body.dataset.theme = 'dark'")
    background, ink = browser.run(_LUMINANCE, [("body", "backgroundColor"), (".drawing .ink", "fill")])
    assert background < 0.2 < 0.6 < ink


def test_the_landing_page_says_what_it_is_in_one_screen(browser: Browser, docs_site: str) -> None:
    """Promise, picture, installation, guarantees, and when not to use it, without scrolling."""
    browser.show(f"{docs_site}index.html", WIDE, 900)
    bottoms = browser.run(
        "return [...document.querySelectorAll('article h1, .drawing, .sd-tab-set .highlight, article strong')]"
        ".filter(each => each.offsetParent !== null || each instanceof SVGElement)"
        ".map(each => [each.textContent.slice(0, 40).trim(), each.getBoundingClientRect().bottom])"
    )
    assert any("What it guarantees" in text for text, _ in bottoms)
    assert [text for text, bottom in bottoms if bottom > 900] == []


def test_each_tab_shows_its_own_installation(browser: Browser, docs_site: str) -> None:
    """A click on a tab shows its block of code, and hides the others."""
    browser.show(f"{docs_site}index.html")
    labels = browser.run("return [...document.querySelectorAll('.sd-tab-label')].map(each => each.innerText)")
    assert labels == ["FastAPI", "Starlette", "Django", "DRF", "Flask", "ASGI", "WSGI", "Once"]
    shown: set[str] = set()
    for number in range(len(labels)):
        browser.run("document.querySelectorAll('.sd-tab-label')[arguments[0]].click()", number)
        texts = browser.run(
            "return [...document.querySelectorAll('.sd-tab-content')].filter(each => each.offsetParent !== null)"
            ".map(each => each.innerText)"
        )
        assert len(texts) == 1
        shown.add(texts[0])
    assert len(shown) == len(labels)


def test_a_table_is_a_list_of_cards_on_a_phone(browser: Browser, docs_site: str) -> None:
    """Each cell shows its column's heading, and is as wide as the screen."""
    browser.show(f"{docs_site}guarantees.html", PHONE)
    label, width = browser.run(
        "const cell = document.querySelector('table.cards td');"
        "return [getComputedStyle(cell, '::before').content, cell.getBoundingClientRect().width]"
    )
    assert label == '"Technique"'
    assert width > PHONE * 0.7


def test_pages_link_to_the_repository_and_to_their_source(browser: Browser, docs_site: str) -> None:
    """For readers who want to edit a page."""
    browser.show(f"{docs_site}stages.html")
    links = browser.run("return [...document.querySelectorAll('a')].map(link => link.href)")
    repository = "https://github.com/open-idempotency/open-idempotency"
    assert repository in {link.rstrip("/") for link in links}
    assert f"{repository}/edit/main/docs/stages.md" in links


def test_language_models_get_all_pages_without_the_hidden_checks(built_docs: Path) -> None:
    """llms.txt lists the pages, and llms-full.txt has their text."""
    listed = (built_docs / "llms.txt").read_text(encoding="utf-8")
    whole = (built_docs / "llms-full.txt").read_text(encoding="utf-8")
    for page in ("tutorial", "how-to/require-a-key", "problems/in-progress", "reference/policy"):
        assert f"_sources/{page}.md.txt" in listed
        assert f"# {headings(ROOT / 'docs' / f'{page}.md')[0]}\n" in whole
    assert "reference/lines" not in listed
    assert not re.search(r"<!-- (hidden|drawn)|^```\{toctree", whole, re.MULTILINE)
