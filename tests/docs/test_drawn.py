"""What the docs draw from the code is what the code says now."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

from open_idempotency.decisions import TRANSITIONS, State
from tests.docs.pages import ROOT

DRAWN = ROOT / "docs" / "_ext" / "drawn.py"
REFERENCE = ROOT / "docs" / "reference"


def test_the_drawn_parts_are_up_to_date() -> None:
    """Tables of fields, problems, events, errors and states, and the picture; `python docs/_ext/drawn.py` mends it."""
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
    """One box a state, one arrow for each pair of states that some verb joins, and those that time draws."""
    svg = ElementTree.fromstring((REFERENCE / "states.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    labels = {text.text for text in svg.iter(f"{space}text")}
    joined = {(before, after) for row in TRANSITIONS.values() for before, after in row.items() if before != after}
    lines = list(svg.iter(f"{space}line"))
    assert {state.value for state in State} <= labels
    assert len([line for line in lines if "stroke-dasharray" not in line.attrib]) == len(joined)
    assert len(lines) > len(joined)


def test_the_state_table_has_a_row_for_each_verb() -> None:
    """B-03: what is refused is written down as well."""
    page = (REFERENCE / "states.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `\w+` \|", page, re.MULTILINE)) == len(TRANSITIONS)


def test_every_system_check_of_django_is_explained() -> None:
    """A person who is told `open_idempotency.W001` finds it on the page, and finds none that does not exist."""
    folder = ROOT / "src" / "open_idempotency" / "django"
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*checks.py"))
    page = (ROOT / "docs" / "frameworks" / "django.md").read_text(encoding="utf-8")
    pattern = re.compile(r"open_idempotency\.[EW]\d{3}")
    assert set(pattern.findall(page)) == set(pattern.findall(source)) != set()
