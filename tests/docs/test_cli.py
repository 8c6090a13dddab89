"""The page about commands has every command and option; transcripts on pages show the real output."""

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
from tests.docs.pages import ROOT, blocks, headings, name_of, pages
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


def _shown(page: Path) -> list[tuple[str, str]]:
    """Each command on a page, with its output on the page."""
    text = "".join(block.text for block in blocks(page) if block.language == "console")
    parts = re.split(r"^\$ open-idempotency (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _make(url: str) -> None:
    """Make the records that the pages show."""
    with open_backend(url) as backend:
        backend.migrate()
        maker = Maker(backend)
        lease = maker.lease(0.001, record_id=bytes.fromhex(("3f9a6c01b2d4" * 6)[:64]))
        maker.save(lease, value("reserve", '{"seat": 12}'))
        maker.save(lease, begun("charge"))
        maker.await_end(lease)
        alive = maker.lease(record_id=bytes.fromhex("7c41d09be5aa" + "0" * 52))
        maker.save(alive, value("reserve", '{"seat": 12}'))


@pytest.mark.parametrize("page", [page for page in pages() if _shown(page)], ids=name_of)
def test_the_commands_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-10 to P-18: in the order of the page, on one database; durations and versions may differ."""
    url = f"sqlite:///{tmp_path}/records.db"
    _make(url)
    monkeypatch.setenv(VARIABLE, url)
    for command, printed in _shown(page):
        capsys.readouterr()
        assert main(shlex.split(command)) == 0, command
        assert _plain(capsys.readouterr().out) == _plain(printed), command


def test_the_pages_of_operators_have_transcripts() -> None:
    """Otherwise the test above would check nothing."""
    guides = PAGE.parent.parent / "how-to"
    assert len(_shown(PAGE)) >= 9
    assert len(_shown(guides / "stuck-keys.md")) >= 3
    assert _shown(guides / "runbook.md")


def test_every_command_has_a_section() -> None:
    """P-18: some commands share one."""
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
