"""The demo, run as a newcomer runs it: it ends with 0 where its story is true, and only there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from examples.terminal import use_colour
from examples.workers import ROOT


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The demo's end and what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        env={**inherited, "PYTHONIOENCODING": "utf-8", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


def test_the_story_is_true() -> None:
    """O-01, O-02, O-03, O-05, L-02: a card is charged once, whatever happens."""
    done = run_demo()

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for expected in (
        "HTTP/1.1 201 Created",
        "idempotent-replayed: true",
        "HTTP/1.1 409 Conflict",
        "HTTP/1.1 422 Unprocessable",
        "curl: (52) Empty reply from server",
        "Carla's card was charged ONCE",
    ):
        assert expected in done.stdout
    assert "\x1b[" not in done.stdout, "colours, though there is no terminal"


def test_where_the_key_is_dropped_the_story_is_not_true() -> None:
    """O-02: the demo notices that the repeated request runs again; in colours, as FORCE_COLOR stands for a terminal."""
    done = run_demo("tests.crash.unprotected", FORCE_COLOR="1")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT TRUE: 201, and Idempotent-Replayed: true" in done.stdout
    assert "\x1b[1;32mHTTP/1.1 201 Created\x1b[0m" in done.stdout


def test_with_records_that_die_with_their_worker_the_story_is_not_true() -> None:
    """L-02: the demo notices that the retry after the crash was not held back by the dead worker's lease."""
    done = run_demo("--backend", "memory://")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT TRUE: 409 while the lease lasts" in done.stdout


def test_a_server_that_does_not_start_is_reported() -> None:
    """The demo says what the server said."""
    done = run_demo("tests.crash.no_such_module")

    assert done.returncode == 1
    assert "No module named tests.crash.no_such_module" in done.stdout


def test_no_color_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is respected on a terminal too."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour()
