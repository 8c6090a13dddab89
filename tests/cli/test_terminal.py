"""Manners of a command: it asks on a terminal, fits it, and ends well where nobody reads on or somebody interrupts."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

import pytest

from open_idempotency.backend import Backend, Get
from open_idempotency.cli.output import fitted, printable
from tests.cli.running import SECONDS, Done, command, environment, run
from tests.operations.stores import Maker

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals on Windows", allow_module_level=True)

import fcntl
import pty
import termios

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ASKED = b"[y/N] "


def _on_terminal(
    arguments: list[str], *, says: bytes = b"", interrupt: bool = False, columns: int = 200, **env: str
) -> Done:
    """Run a command on a terminal of its own.

    ``says``: what its user types once he was asked. ``interrupt``: he interrupts the command instead.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    given = environment(TERM="xterm", **env)
    for name in {"NO_COLOR", "COLUMNS"} - set(env):
        given.pop(name, None)
    process = subprocess.Popen(
        command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=given, start_new_session=True
    )
    os.close(theirs)
    said, until = b"", time.monotonic() + SECONDS
    try:
        while select.select([ours], [], [], max(0.0, until - time.monotonic()))[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other end is closed: the command has ended
                break
            if says and _ASKED in said:
                os.write(ours, says)
                says = b""
            if interrupt and _ASKED in said:
                process.send_signal(signal.SIGINT)
                interrupt = False
        return Done(process.wait(SECONDS), said.decode(), "")
    finally:
        process.kill()
        process.wait(SECONDS)
        os.close(ours)


@pytest.mark.parametrize(("says", "code"), [(b"y\n", 0), (b"yes\n", 0), (b"n\n", 10), (b"\n", 10), (b"\x04", 10)])
def test_a_question_is_asked_on_a_terminal(
    file_url: str, backend: Backend, maker: Maker, says: bytes, code: int
) -> None:
    """P-21: anything but yes changes nothing."""
    lease = maker.in_doubt()
    done = _on_terminal(["forget", lease.record_id.hex(), "--backend", file_url], says=says)
    assert done.code == code, done.out
    assert (backend.get(Get(lease.record_id)) is None) is (code == 0)


def test_a_release_asks_whether_the_worker_is_dead(file_url: str, maker: Maker) -> None:
    """P-14, P-21: and names it."""
    lease = maker.alive()
    done = _on_terminal(["release", lease.record_id.hex(), "--backend", file_url], says=b"n\n")
    assert "held by attempt 1 (web-3:812)" in done.out
    assert "known to be dead" in done.out
    assert "nothing was done" in done.out


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_a_table_fits_the_terminal(file_url: str, maker: Maker, columns: int) -> None:
    """P-21: the record is never cut; without a terminal nothing is, however narrow COLUMNS says that one is."""
    lease = maker.in_doubt()
    done = _on_terminal(["list", "--backend", file_url], columns=columns)
    lines = _COLOUR.sub("", done.out).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].startswith(lease.record_id.hex()[:12])
    assert "web-3:812" in run(["list", "--backend", file_url], env=environment(COLUMNS="20")).out


def test_a_terminal_of_ten_columns_keeps_what_it_can() -> None:
    """P-21: the record is never cut; columns that do not fit at all are left out."""
    assert fitted([12, 20, 6, 1], 10) == [12]
    assert fitted([12, 20, 6, 1], 30) == [12, 8, 6]
    assert fitted([12, 20, 6, 1], None) == [12, 20, 6, 1]


@pytest.mark.parametrize(
    ("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)], ids=["", "1", "empty"]
)
def test_colours_are_for_terminals_that_want_them(
    file_url: str, maker: Maker, more: dict[str, str], coloured: bool
) -> None:
    """P-21: as no-color.org has it; never in a pipe."""
    maker.in_doubt()
    arguments = ["list", "--backend", file_url]
    assert bool(_COLOUR.search(_on_terminal(arguments, **more).out)) is coloured
    assert not _COLOUR.search(run(arguments).out)


def test_a_reader_that_leaves_is_no_error_of_ours(file_url: str, maker: Maker) -> None:
    """P-21: as in ``| head -1``: not a word on standard error; 141, unless the system took everything first."""
    maker.completed(b"x" * 5_000_000)  # more than any pipe holds
    (listed,) = maker.backend.scan()
    arguments = command("show", listed.record_id.hex(), "--body", "--backend", file_url)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"record")
    process.stdout.close()
    errors = process.stderr.read()
    assert errors == b""
    assert process.wait(SECONDS) in (0, 141)
    process.stderr.close()


def test_a_reader_that_never_reads_is_no_error_of_ours(file_url: str) -> None:
    """P-21: the output is short, and written when the command ends."""
    reads, writes = os.pipe()
    os.close(reads)
    process = subprocess.Popen(
        command("stats", "--backend", file_url), stdout=writes, stderr=subprocess.PIPE, env=environment()
    )
    os.close(writes)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (141, b"")


def test_an_interrupt_is_130_and_no_traceback(file_url: str, maker: Maker, backend: Backend) -> None:
    """P-21: Ctrl-C at the question; nothing was done."""
    lease = maker.in_doubt()
    done = _on_terminal(["forget", lease.record_id.hex(), "--backend", file_url], interrupt=True)
    assert done.code == 130
    assert "Traceback" not in done.out
    assert backend.get(Get(lease.record_id)) is not None


def test_what_cannot_be_encoded_is_escaped() -> None:
    """P-21: a route has any character, a terminal of ASCII has few."""
    assert printable("/caf\u00e9/\x1b[31m", "ascii") == "/caf\\xe9/\\x1b[31m"
