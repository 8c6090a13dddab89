"""Commands on a terminal: they ask, fit its width, and end cleanly on an interrupt or a closed pipe."""

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

from open_idempotency._core.keys import About
from open_idempotency.backend import Backend, Claim, Fail, Get, Leased, SaveStage
from open_idempotency.cli.context import fitted, printable
from tests.cli.running import SECONDS, Done, command, environment, run
from tests.operations.stores import Maker, begun, value

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals on Windows", allow_module_level=True)

import fcntl
import pty
import termios

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_ASKED = b"[y/N] "
_UTF8 = {"LC_ALL": "C.UTF-8"}


def _on_terminal(
    arguments: list[str], *, says: bytes = b"", interrupt: bool = False, columns: int = 200, **env: str
) -> Done:
    """Run a command on a pseudo-terminal.

    ``says``: what the user types at the question. ``interrupt``: the user interrupts the command instead.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    given = environment(TERM="xterm", **env)
    for name in {"NO_COLOR", "COLUMNS"} - set(env):
        given.pop(name, None)
    process = subprocess.Popen(
        command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=given,
        start_new_session=True,
        # A shell that starts the tests in the background ignores SIGINT, and each process below inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
    """P-21: any input but yes changes nothing."""
    lease = maker.in_doubt()
    done = _on_terminal(["forget", lease.record_id.hex(), "--backend", file_url], says=says)
    assert done.code == code, done.out
    assert (backend.get(Get(lease.record_id)) is None) is (code == 0)


def test_a_release_asks_whether_the_worker_is_dead(file_url: str, maker: Maker) -> None:
    """P-14, P-21: the question names the worker."""
    lease = maker.alive()
    done = _on_terminal(["release", lease.record_id.hex(), "--backend", file_url], says=b"n\n")
    assert "held by attempt 1 (web-3:812)" in done.out
    assert "known to be dead" in done.out
    assert "nothing was done" in done.out


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_a_table_fits_the_terminal(file_url: str, maker: Maker, columns: int) -> None:
    """P-21: record ids are never cut; without a terminal no column is, whatever COLUMNS says."""
    lease = maker.in_doubt()
    done = _on_terminal(["list", "--backend", file_url], columns=columns)
    lines = _STYLE.sub("", done.out).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].startswith(lease.record_id.hex()[:12])
    assert "web-3:812" in run(["list", "--backend", file_url], env=environment(COLUMNS="20")).out


def test_a_terminal_of_ten_columns_keeps_what_it_can() -> None:
    """P-21: record ids are never cut; columns without room are left out."""
    assert fitted([12, 20, 6, 1], 10) == [12]
    assert fitted([12, 20, 6, 1], 30) == [12, 8, 6]
    assert fitted([12, 20, 6, 1], None) == [12, 20, 6, 1]


@pytest.mark.parametrize(
    ("more", "styled"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)], ids=["", "1", "empty"]
)
def test_styles_are_for_terminals_that_want_them(
    file_url: str, maker: Maker, more: dict[str, str], styled: bool
) -> None:
    """P-21: NO_COLOR is respected; a pipe never gets styles."""
    maker.in_doubt()
    arguments = ["list", "--backend", file_url]
    assert bool(_STYLE.search(_on_terminal(arguments, **more).out)) is styled
    assert not _STYLE.search(run(arguments).out)


def test_a_reader_that_leaves_is_no_error_of_ours(file_url: str, maker: Maker) -> None:
    """P-21: ``| head -1`` leaves standard error empty; 141, unless the pipe took all output before."""
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
    """P-21: the output is short, and is flushed when the command ends."""
    reads, writes = os.pipe()
    os.close(reads)
    process = subprocess.Popen(
        command("stats", "--backend", file_url), stdout=writes, stderr=subprocess.PIPE, env=environment()
    )
    os.close(writes)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (141, b"")


def test_an_interrupt_is_130_and_no_traceback(file_url: str, maker: Maker, backend: Backend) -> None:
    """P-21: Ctrl-C at the question changes nothing."""
    lease = maker.in_doubt()
    done = _on_terminal(["forget", lease.record_id.hex(), "--backend", file_url], interrupt=True)
    assert done.code == 130
    assert "Traceback" not in done.out
    assert backend.get(Get(lease.record_id)) is not None


def test_what_cannot_be_encoded_is_escaped() -> None:
    """P-21: a route may have any character; a terminal may only support ASCII."""
    assert printable("/caf\u00e9/\x1b[31m", "ascii") == "/caf\\xe9/\\x1b[31m"


#: sets the window's title, moves the cursor up, turns the text around, begins a line of its own
_HOSTILE = "\x1b]0;owned\x07\x1b[2A\u202e\x9b2J\nopen-idempotency: all is well"


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("show", "ab63"),
        ("show", "ab63", "--body"),
        ("stats",),
        ("resolve", "ab63", "--stage", "other", "--not-done", "--yes"),
        ("release", "ab63"),
    ],
    ids=" ".join,
)
def test_no_part_of_a_record_does_anything_to_the_terminal(
    file_url: str, backend: Backend, words: tuple[str, ...]
) -> None:
    """P-18a: clients control the route, holder, names, keys and values of stages."""
    owner = os.urandom(16)
    about = About("POST", f"/{_HOSTILE}", b"c" * 16, f"host{_HOSTILE}", b"k" * 8).encode(owner)
    claimed = backend.claim(Claim(b"\xabcd" + bytes(28), b"f" * 33, owner, 600.0, 600.0, about=about))
    assert isinstance(claimed, Leased)
    for stage in (begun(f"charge{_HOSTILE}", f"key{_HOSTILE}"), value(f"mail{_HOSTILE}", '"sent"')):
        backend.save_stage(SaveStage(claimed.lease, stage))
    if words[0] in ("show", "resolve"):  # they name the stage in doubt
        backend.fail(Fail(claimed.lease))
    done = _on_terminal([words[0], "--backend", file_url, *words[1:]], says=b"n\n")
    said = _STYLE.sub("", done.out).replace("\r\n", "\n")
    assert not [each for each in said if not each.isprintable() and each != "\n"]
    assert "\nopen-idempotency: all is well" not in said


def test_a_stage_with_such_a_name_is_resolved_by_the_line_that_is_shown(file_url: str, backend: Backend) -> None:
    """P-18a: the line can be pasted into a shell that supports ``$'…'``."""
    owner, name = os.urandom(16), "it's a\\b \x1b\u00e9\u202e\n"
    claimed = backend.claim(Claim(b"\xabcd" + bytes(28), b"f" * 33, owner, 600.0, 600.0))
    assert isinstance(claimed, Leased)
    backend.save_stage(SaveStage(claimed.lease, begun(name)))
    backend.fail(Fail(claimed.lease))
    shown = run(["show", "--backend", file_url, "ab63"]).out
    quoted = re.search(r" --stage (.*) --found JSON", shown)
    assert quoted is not None
    line = f"printf %s {quoted[1]}"
    said = subprocess.run(["bash", "-c", line], capture_output=True, timeout=SECONDS, check=True, env=_UTF8)
    assert said.stdout.decode() == name
