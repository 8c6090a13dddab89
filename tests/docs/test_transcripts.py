"""The output of `curl -i` in the README and the tutorial is that of a real server."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from tests.docs.pages import ROOT, Block, blocks
from tests.docs.served import SECONDS, Exchange, await_ready, exchanges, listening, perform, start, stop, undated

README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"


def _blocks(page: Path, heading: str, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language and block.heading == heading]


def _exchanges(page: Path, heading: str) -> list[Exchange]:
    shown = [each for block in _blocks(page, heading, "console") for each in exchanges(block.text)]
    assert shown, f"{page.name} shows no request under {heading!r}"
    return shown


def _write_app(directory: Path, page: Path, heading: str) -> None:
    (app,) = _blocks(page, heading, "python")
    (directory / "app.py").write_text(app.text, encoding="utf-8")


def test_the_quick_start_of_the_readme_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """O-01, O-02: the same response twice, the second one marked; the view ran once."""
    _write_app(tmp_path, README, "Quick start")
    shown = _exchanges(README, "Quick start")
    assert len(shown) == 2
    with listening() as listener:
        server = start(tmp_path, listener)
        try:
            for command, printed in shown:
                assert undated(perform(command, listener)) == undated(printed)
        finally:
            stop(server)


def test_the_tutorials_first_application_responds_as_shown(tmp_path: Path) -> None:
    """O-01, O-02, O-05, O-06: the requests of the tutorial's second step."""
    _write_app(tmp_path, TUTORIAL, "One application")
    with listening() as listener:
        server = start(tmp_path, listener)
        try:
            for heading in ("A first request", "A retry", "A key reused for another request"):
                for command, printed in _exchanges(TUTORIAL, heading):
                    assert undated(perform(command, listener)) == undated(printed), heading
        finally:
            stop(server)


def test_the_tutorials_crash_is_resumed_as_shown(tmp_path: Path) -> None:
    """O-09, L-02: a killed worker sends no response; 409 until its lease ends; then attempt 2 reuses the stage."""
    _write_app(tmp_path, TUTORIAL, "Two stages, and a crash between them")
    crash, busy, resumed = _exchanges(TUTORIAL, "The crash")
    # The second server is up before the crash: the lease must not end while it starts.
    with listening() as doomed, listening() as next_one:
        first, second = start(tmp_path, doomed), start(tmp_path, next_one)
        try:
            await_ready(doomed)
            await_ready(next_one)
            assert perform(crash.command, doomed) == []
            assert first.wait(SECONDS) == -signal.SIGKILL
            assert undated(perform(busy.command, next_one)) == undated(busy.printed)
            assert _once_the_lease_ends(resumed, next_one) == undated(resumed.printed)
        finally:
            stop(first)
            stop(second)


def _once_the_lease_ends(exchange: Exchange, listener: socket.socket) -> list[str]:
    deadline = time.monotonic() + SECONDS
    while True:
        lines = perform(exchange.command, listener)
        if " 409 " not in lines[0] or time.monotonic() > deadline:
            return undated(lines)
        time.sleep(0.2)
