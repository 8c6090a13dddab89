"""Runs commands in this process, in a process of their own, and on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from open_idempotency.cli import main

SECONDS = 60
SRC = Path(__file__).resolve().parents[2] / "src"


@dataclass
class Done:
    """The outcome of a command."""

    code: int
    out: str
    err: str


@dataclass
class Shell:
    """Runs ``open-idempotency`` on one backend, in this process."""

    url: str
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Done:
        """Run one command, with the backend as an option."""
        self.capsys.readouterr()
        code = main([arguments[0], "--backend", self.url, *arguments[1:]])
        out, err = self.capsys.readouterr()
        return Done(code, out, err)


def command(*arguments: str) -> list[str]:
    """The command line for a separate process."""
    return [sys.executable, "-m", "open_idempotency", *arguments]


def environment(**more: str) -> dict[str, str]:
    """The environment of a separate process."""
    return {**os.environ, "PYTHONPATH": str(SRC), **more}


def run(arguments: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Done:
    """Run a command in a separate process, without a terminal."""
    done = subprocess.run(
        command(*arguments),
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=dict(env or environment()),
    )
    return Done(done.returncode, done.stdout, done.stderr)
