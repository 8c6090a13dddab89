"""The runbook: each alert has a section, each section has an alert and commands, and each command exists."""

from __future__ import annotations

import re
import shlex

import pytest

from open_idempotency.cli.parser import parser_of
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "runbook.md"
ALERTS = ROOT / "src" / "open_idempotency" / "telemetry" / "alerts.yml"
_INLINE = re.compile(r"`(open-idempotency [^`]+)`")


def _sections() -> dict[str, str]:
    """The text of each section, by its heading."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8"))


def _commands(text: str) -> list[str]:
    """The commands of a text, on lines of their own and within sentences."""
    lines = [line for line in text.splitlines() if line.startswith("open-idempotency ")]
    return [*lines, *_INLINE.findall(text)]


@pytest.mark.parametrize("alert", _alerts())
def test_each_alert_has_a_section(alert: str) -> None:
    """The section names the alert, so a renamed or new alert fails here."""
    assert [heading for heading, text in _sections().items() if f"`{alert}`" in _alert_line(text)]


def _alert_line(text: str) -> str:
    """The alerts that a section names."""
    found = re.search(r"\*\*Alert\*\*: (.+?)\*\*Look at\*\*", text, re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize("heading", _sections())
def test_each_section_says_where_to_look_and_what_to_run(heading: str) -> None:
    """An existing alert, a place to look at, and a command."""
    text = _sections()[heading]
    named = re.findall(r"`(Idempotency\w+)`", _alert_line(text))
    assert named
    assert set(named) <= set(_alerts())
    assert "**Look at**: " in text
    assert _commands(text)


def test_the_runbook_has_a_section_for_each_thing_that_pages_someone() -> None:
    """Other pages link to these headings."""
    assert set(_sections()) >= {
        "A key is stuck",
        "Many 409",
        "Many 422",
        "503",
        "Redis is full",
        "The lease ended under a slow handler",
        "A deploy cut requests",
    }


@pytest.mark.parametrize("command", sorted(set(_commands(PAGE.read_text(encoding="utf-8")))))
def test_each_command_of_the_runbook_is_one(command: str) -> None:
    """The command line parses its name, options and arguments."""
    words = shlex.split(command, comments=True)[1:]
    assert parser_of().parse_args(words).name == words[0]


def test_a_command_that_does_not_exist_is_noticed() -> None:
    """The test above can fail."""
    with pytest.raises(SystemExit):
        parser_of().parse_args(["free", "3f9a6c01b2d4"])


def test_every_shell_block_of_the_runbook_is_looked_at() -> None:
    """Each of its lines begins with a known command, or would be skipped."""
    lines = [line for block in blocks(PAGE) if block.language == "sh" for line in block.text.splitlines() if line]
    assert [line for line in lines if not line.startswith("open-idempotency ")] == []
