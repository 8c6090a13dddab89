"""The README's two commands: one line each, and what they call exists."""

from __future__ import annotations

import configparser
import re

from tests.docs.pages import ROOT, blocks
from tests.docs.test_lines import collector
from tests.docs.test_links import guarantees

README = ROOT / "README.md"


def _commands() -> list[str]:
    return [block.text for block in blocks(README) if block.language == "sh" and block.heading == "Two commands"]


def test_there_are_two_commands_of_one_line_each() -> None:
    """Each can be copied as it is."""
    assert [command.count("\n") for command in _commands()] == [1, 1]


def _tox() -> configparser.ConfigParser:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    return tox


def test_the_commands_call_what_tox_knows() -> None:
    """The first runs the demo; the second runs all that tox runs by itself: the checks and the tests."""
    tox = _tox()
    demo, everything = (command.strip().rpartition(" && ")[2] for command in _commands())
    assert demo == "tox -e demo"
    assert tox.has_section("testenv:demo")
    assert everything == "tox"
    assert tox["tox"]["env_list"] == "all"
    assert all(part in tox["testenv:all"]["commands"] for part in ("{[checks]commands}", "{[tests]short}"))
    assert "{[checks]commands}" in tox["testenv:lint"]["commands"]
    assert "{[tests]short}" in tox["testenv"]["commands"]


def _ignored() -> list[str]:
    return re.findall(r"--ignore (tests/[\w/.]+)", _tox()["tests"]["short"])


def test_what_the_command_ignores_runs_in_full() -> None:
    """Nothing is left out everywhere."""
    ignored = _ignored()
    assert ignored
    assert all((ROOT / path).exists() for path in ignored)
    full = re.findall(r"tests/[\w/.]+", _tox()["testenv:full"]["commands"])
    assert [path for path in ignored if not any(f"{path}/".startswith(f"{run}/") for run in full)] == []


def test_every_line_of_behaviour_is_proved_by_what_the_command_runs() -> None:
    """What it ignores proves no line that nothing else proves, and none of the README's guarantees."""
    ignored = tuple(_ignored())
    proofs = collector().proofs()
    assert {proof.line for proof in proofs} == {proof.line for proof in proofs if not proof.test.startswith(ignored)}
    assert [path for _, path in guarantees() if path.startswith(ignored)] == []
