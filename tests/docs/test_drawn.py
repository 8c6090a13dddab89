"""The generated parts of the docs agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from open_idempotency.decisions import TRANSITIONS, State
from tests.docs.pages import ROOT
from tests.docs.test_reference_pages import extension

DRAWN = ROOT / "docs" / "_ext" / "drawn.py"
REFERENCE = ROOT / "docs" / "reference"


def test_the_drawn_parts_are_up_to_date() -> None:
    """Tables and the picture; `python docs/_ext/drawn.py` updates them."""
    script = "import drawn; raise SystemExit(', '.join(path.name for path in drawn.outdated()))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=DRAWN.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.strip() == "", f"behind the code: {done.stderr}"


def test_the_diagram_shows_every_state_and_every_change() -> None:
    """One box for each state, one arrow for each pair of states that a verb or time joins."""
    picture = ElementTree.fromstring((REFERENCE / "states.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    labels = {text.text for text in picture.iter(f"{space}text")}
    joined = {(before, after) for row in TRANSITIONS.values() for before, after in row.items() if before != after}
    lines = list(picture.iter(f"{space}line"))
    assert {state.value for state in State} <= labels
    assert len([line for line in lines if "stroke-dasharray" not in line.attrib]) == len(joined)
    assert len(lines) > len(joined)


def test_no_label_of_the_diagram_covers_a_box_an_arrow_or_another_label() -> None:
    """Labels, as wide as they are drawn, overlap nothing."""
    states = extension("states")
    arrows = [states.arrow(edge) for edge in states.edges()]
    labels = states.place_labels(arrows)
    assert len(labels) == len(arrows)
    for label in labels:
        others = [other.area for other in labels if other is not label] + [states.box_of(state) for state in State]
        assert not any(label.area.overlaps(other) for other in others), label
        assert not any(arrow.crosses(label.area) for arrow in arrows if arrow.edge != label.edge), label


@pytest.mark.parametrize("with_key", [False, True])
def test_the_accident_and_the_cure_are_drawn_from_a_real_run(with_key: bool) -> None:
    """O-02: without a key the card is charged twice; with a key once, and the retry is a replay."""
    accident = extension("accident")
    messages = accident.run(with_key)
    assert sum(message.receiver == accident.CARD for message in messages) == (1 if with_key else 2)
    assert [message.lost for message in messages].count(True) == 1
    assert messages[-1].replayed is with_key


def test_a_drawing_has_the_colours_of_the_page_and_none_of_its_own() -> None:
    """Each shape has a CSS class for its role, so that dark mode applies."""
    for path in (REFERENCE / "states.svg", *(ROOT / "docs" / "pictures").glob("*.svg")):
        picture = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        for element in picture.iter():
            if element.tag.rpartition("}")[2] in ("rect", "line", "path", "text"):
                assert element.get("class"), f"{path.name}: {element.tag} without a role"
                assert not {"fill", "stroke"} & set(element.attrib), f"{path.name}: {element.attrib}"


def test_the_state_table_has_a_row_for_each_verb() -> None:
    """B-03: refusals included."""
    page = (REFERENCE / "states.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `\w+` \|", page, re.MULTILINE)) == len(TRANSITIONS)


def test_every_system_check_of_django_is_explained() -> None:
    """The page explains each check, such as `open_idempotency.W001`, and no other one."""
    folder = ROOT / "src" / "open_idempotency" / "django"
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*checks.py"))
    page = (ROOT / "docs" / "frameworks" / "django.md").read_text(encoding="utf-8")
    pattern = re.compile(r"open_idempotency\.[EW]\d{3}")
    assert set(pattern.findall(page)) == set(pattern.findall(source)) != set()
