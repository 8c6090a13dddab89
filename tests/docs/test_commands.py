"""The README's two commands: one line each, and what they call exists."""

from __future__ import annotations

import configparser

from tests.docs.pages import ROOT, blocks

README = ROOT / "README.md"


def _commands() -> list[str]:
    return [block.text for block in blocks(README) if block.language == "sh" and block.heading == "Two commands"]


def test_there_are_two_commands_of_one_line_each() -> None:
    """Each can be copied as it is."""
    assert [command.count("\n") for command in _commands()] == [1, 1]


def test_the_commands_call_what_tox_knows() -> None:
    """The first runs the demo; the second runs all that tox runs by itself, the tests among it."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    demo, everything = (command.strip().rpartition(" && ")[2] for command in _commands())
    assert demo == "tox -e demo"
    assert tox.has_section("testenv:demo")
    assert everything == "tox"
    assert "py" in [name.strip() for name in tox["tox"]["env_list"].split(",")]
