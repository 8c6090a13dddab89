"""The README's two commands are one line each, and what they call exists."""

from __future__ import annotations

import configparser
import re

from tests.docs.pages import ROOT, blocks, name_of, pages
from tests.docs.test_lines import collector
from tests.docs.test_links import guarantees

README = ROOT / "README.md"


def _commands() -> list[str]:
    return [block.text for block in blocks(README) if block.language == "sh" and block.heading == "Try it and test it"]


def test_there_are_two_commands_of_one_line_each() -> None:
    """Each can be copied as it is."""
    assert [command.count("\n") for command in _commands()] == [1, 1]


def _tox() -> configparser.ConfigParser:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    return tox


def test_the_commands_call_what_tox_knows() -> None:
    """The first runs the demo; the second the default environments of tox: the tests and ``lint``."""
    tox = _tox()
    demo, everything = (command.strip().rpartition(" && ")[2] for command in _commands())
    assert demo == "tox -e demo"
    assert tox.has_section("testenv:demo")
    assert everything == "tox"
    assert tox["tox"]["env_list"] == "all"
    assert all(part in tox["testenv:all"]["commands"] for part in ("{[checks]quick}", "{[tests]short}"))
    assert "{[checks]quick} {[checks]slow}" in tox["testenv:lint"]["commands"]
    assert "tox run -e lint" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "{[tests]short}" in tox["testenv"]["commands"]


def _ignored() -> list[str]:
    return re.findall(r"--ignore (tests/[\w/.]+)", _tox()["tests"]["short"])


def test_what_the_command_ignores_runs_in_full() -> None:
    """Tests that the command ignores run in ``tox -e full``."""
    ignored = _ignored()
    assert ignored
    assert all((ROOT / path).exists() for path in ignored)
    full = re.findall(r"tests/[\w/.]+", _tox()["testenv:full"]["commands"])
    assert [path for path in ignored if not any(f"{path}/".startswith(f"{run}/") for run in full)] == []


def test_every_line_of_behaviour_is_proved_by_what_the_command_runs() -> None:
    """No line of behaviour or guarantee of the README is proved only by a test that the command ignores."""
    ignored = tuple(_ignored())
    proofs = collector().proofs()
    assert {proof.line for proof in proofs} == {proof.line for proof in proofs if not proof.test.startswith(ignored)}
    assert [path for _, path in guarantees() if path.startswith(ignored)] == []


def test_each_environment_that_a_page_names_exists() -> None:
    """``tox -e compare``, ``tox -e bench`` and so on, on every page."""
    tox = _tox()
    named = {
        (name_of(page), name)
        for page in [*pages(), ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "peers" / "README.md"]
        for name in re.findall(r"\btox -e (\w+)", page.read_text(encoding="utf-8"))
    }
    assert {name for _, name in named} >= {"bench", "compare", "demo", "faults"}
    pythons = re.compile(r"py\d*$")
    assert sorted(one for one in named if not pythons.match(one[1]) and f"testenv:{one[1]}" not in tox) == []
