"""Forks of a process that has used its backend (gunicorn --preload), with real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from open_idempotency import open_backend
from tests.postgres_server import PostgresServer

SCRIPT = Path(__file__).parent / "scripts" / "fork_script.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")


def _run(scenario: str, argument: str) -> None:
    # Python 3.12 and later warn of any fork beside threads; one scenario is about just that.
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(SCRIPT), scenario, argument]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_memory_goes_on_in_both_processes() -> None:
    """B-11: each has its own table from then on."""
    _run("after_use", "memory://")


def test_sqlite_goes_on_in_both_processes(tmp_path: Path) -> None:
    """B-11: an inherited connection is never used."""
    _run("after_use", f"sqlite:///{tmp_path}/records.db?timeout=20&synchronous=normal")


def test_the_loops_of_both_processes_go_on(tmp_path: Path) -> None:
    """B-11: nor is a thread of the parent's loop used."""
    _run("on_loops", f"sqlite:///{tmp_path}/records.db?timeout=20&synchronous=normal")


def test_redis_goes_on_in_both_processes(valkey_url: str) -> None:
    """B-11: an inherited connection is never used."""
    _run("after_use", f"{valkey_url}?prefix=fork:")


def test_redis_forked_while_somebody_waits(valkey_url: str) -> None:
    """B-11, O-04: the listening thread does not survive a fork, so the child starts its own."""
    _run("while_waiting", f"{valkey_url}?prefix=waiting:")


def test_postgres_goes_on_in_both_processes(postgres18: PostgresServer) -> None:
    """B-11: an inherited connection is never used."""
    url = postgres18.create_database("forked")
    open_backend(url).migrate()
    _run("after_use", f"{url}?timeout=20&max_connections=2")


def test_memory_forked_in_the_middle_of_a_write() -> None:
    """B-11: the child inherits no held lock."""
    _run("while_locked", "memory://")


def test_sqlite_forked_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """B-11: nor SQLite's locks, whose memory a child would inherit."""
    _run("while_locked", f"sqlite:///{tmp_path}/records.db?timeout=20&synchronous=normal")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux only")
def test_a_child_inherits_no_open_database(tmp_path: Path) -> None:
    """B-11: POSIX locks do not survive a fork, so no file handle may be inherited."""
    _run("no_file_inherited", str(tmp_path / "records.db"))
