"""The page about commands has every command and option, and shows what each command prints."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency.cli import main
from open_idempotency.cli.context import VARIABLE
from open_idempotency.cli.parser import parser_of
from open_idempotency.operations import FILTERS, ExitCode
from tests.docs.pages import ROOT, blocks, headings
from tests.operations.stores import Maker, begun, value

PAGE = ROOT / "docs" / "reference" / "cli.md"
#: what differs from run to run: durations, sizes, versions, and the widths of columns that follow from them
_VARIES = re.compile(
    r"(\d+(\.\d+)?(ms|d|h|m|s)\b)( \d+[hms]\b)?|\d+(\.\d+)? (MB|ms)|\bahead of\b|\bbehind\b(?= this)|\d+\.\d+\.\d+"
)
_SPACES = re.compile(r"  +")


def _commands() -> dict[str, argparse.ArgumentParser]:
    (names,) = [each for each in parser_of()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(names.choices)


def _plain(text: str) -> list[str]:
    return [_SPACES.sub("  ", _VARIES.sub("#", line)).rstrip() for line in text.strip().splitlines()]


def _shown() -> list[tuple[str, str]]:
    """Each command on the page, and what the page says that it prints."""
    text = "".join(block.text for block in blocks(PAGE) if block.language == "console")
    parts = re.split(r"^\$ open-idempotency (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _make(url: str) -> None:
    """The records that the page tells of."""
    with open_backend(url) as backend:
        backend.migrate()
        maker = Maker(backend)
        lease = maker.lease(0.001, record_id=bytes.fromhex(("3f9a6c01b2d4" * 6)[:64]))
        maker.save(lease, value("reserve", '{"seat": 12}'))
        maker.save(lease, begun("charge"))
        maker.await_end(lease)
        alive = maker.lease(record_id=bytes.fromhex("7c41d09be5aa" + "0" * 52))
        maker.save(alive, value("reserve", '{"seat": 12}'))


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-10 to P-18: in the order of the page, on one database; durations and versions may differ."""
    url = f"sqlite:///{tmp_path}/records.db"
    _make(url)
    monkeypatch.setenv(VARIABLE, url)
    shown = _shown()
    assert len(shown) >= 9
    for command, printed in shown:
        capsys.readouterr()
        assert main(shlex.split(command)) == 0, command
        assert _plain(capsys.readouterr().out) == _plain(printed), command


def test_every_command_has_a_section() -> None:
    """P-18: some share one."""
    titles = [name for title in headings(PAGE) for name in title.split(", ")]
    assert set(_commands()) <= set(titles)


def test_every_option_is_on_the_page() -> None:
    """P-18."""
    page = PAGE.read_text(encoding="utf-8")
    options = {
        option
        for parser in _commands().values()
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }
    assert {option for option in options if option not in page} == set()
    assert {name for name in FILTERS if f"`{name}`" not in page} == set()


def test_every_exit_code_is_on_the_page() -> None:
    """P-19."""
    rows = re.findall(r"^\| (\d+) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]
