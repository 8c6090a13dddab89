"""The demo runs as its users run it: it exits with 0 if every claim that it prints holds, and only then."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from examples.demo import APPLICATIONS
from examples.terminal import use_colour
from examples.workers import ROOT


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The exit code and the output of the demo."""
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


def assert_printed(done: subprocess.CompletedProcess[str], application: str) -> None:
    """Check that the demo printed all its scenes for this application, and succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    printed = " ".join(done.stdout.lower().split())
    for expected in (
        f"{application} on ",
        f"examples/payments_{application}.py, lines ",
        "http/1.1 201 created",
        "idempotent-replayed: true",
        "http/1.1 409 conflict",
        "http/1.1 422 unprocessable",
        f"before it writes the receipt: examples/payments_{application}.py, line ",
        "curl: (52) empty reply from server",
        "carla's card was charged once",
    ):
        assert expected in printed


def test_the_story_is_true() -> None:
    """O-01, O-02, O-03, O-05, L-02: a card is charged once, whatever happens."""
    done = run_demo()

    assert_printed(done, "fastapi")
    assert "\x1b[" not in done.stdout, "styles without a terminal"


@pytest.mark.parametrize("application", [name for name in APPLICATIONS if name != "fastapi"])
def test_the_story_is_true_of_each_framework(application: str) -> None:
    """O-01, O-02, O-03, O-05, L-02: the same for the payments API of each framework."""
    assert_printed(run_demo(application), application)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_code_that_the_story_shows_has_the_stages(name: str) -> None:
    """It shows the charge, which is not repeated, and the receipt, before which the worker dies."""
    listings = APPLICATIONS[name].listings()

    shown = "\n".join(line for listing in listings for line in listing.lines)
    assert 'idem.key_for("charge")' in shown
    assert len([place for listing in listings for place in listing.places_of("write_receipt")]) == 1


def test_a_framework_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    """No server starts, and no scene is printed."""
    done = run_demo("rails")

    assert done.returncode == 2
    assert done.stdout == ""
    error = done.stderr.splitlines()[-1]
    assert "rails" in error
    assert all(name in error for name in ("fastapi", "starlette", "django", "flask"))


def test_where_the_key_is_dropped_the_story_is_not_true() -> None:
    """O-02: the demo notices that the repeated request runs again. FORCE_COLOR replaces a terminal."""
    done = run_demo("--serve", "tests.crash.unprotected", FORCE_COLOR="1")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT TRUE: 201, and Idempotent-Replayed: true" in done.stdout
    assert "\x1b[1;32mHTTP/1.1 201 Created\x1b[0m" in done.stdout


def test_with_records_that_die_with_their_worker_the_story_is_not_true() -> None:
    """L-02: the demo notices that the retry did not wait for the dead worker's lease."""
    done = run_demo("--backend", "memory://")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT TRUE: 409 while the lease lasts" in done.stdout


def test_a_server_that_does_not_start_is_reported() -> None:
    """The demo prints the server's output."""
    done = run_demo("--serve", "tests.crash.no_such_module")

    assert done.returncode == 1
    assert "No module named tests.crash.no_such_module" in done.stdout


def test_no_color_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is respected on a terminal too."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert use_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour()
