"""A later test command runs the tests that an earlier one left out, that failed, and that search; nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import os
from tests.passed_before import PassedBefore

def pytest_configure(config):
    before = PassedBefore(os.environ.get("OI_TEST_PASSED_IN"), os.environ.get("OI_TEST_PASSED_TO"))
    config.pluginmanager.register(before)
"""
TESTS = """
import pytest
from hypothesis import given, settings, strategies

@pytest.fixture
def torn():
    yield
    assert False

def test_passes(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip()
def test_fails_in_its_tear_down(torn): pass

@settings(max_examples=1, database=None)
@given(strategies.none())
def test_searches(value): pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with tests that do not belong to this suite."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\n")
    return tmp_path


def _run(project: Path, *arguments: str, **env: str) -> str:
    """Run the tests in a worker of pytest-xdist, without unneeded plugins, which load slowly."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OI_TEST_"))}
    plugins = ("-p", "xdist", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *arguments, "test_it.py"],
        cwd=project,
        env={**variables, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def test_what_has_passed_is_left_out(project: Path) -> None:
    """A test that was skipped, or failed in any phase, runs again, and so does a test that searches."""
    names = project / "passed.txt"
    _run(project, "-n", "1", OI_TEST_PASSED_TO=str(names))
    assert sorted(names.read_text().split()) == ["test_it.py::test_passes", "test_it.py::test_searches"]
    again = _run(project, "-n", "1", "-rA", OI_TEST_PASSED_IN=str(names))
    reported = [line.split("::")[1].split()[0] for line in again.splitlines() if re.match("PASSED|FAILED|ERROR", line)]
    assert {*reported} == {"test_fails", "test_fails_in_its_tear_down", "test_searches"}
    assert "1 skipped" in again
    assert "test_passes" not in again


def test_a_file_that_is_missing_is_an_error(project: Path) -> None:
    """Otherwise everything or nothing would run, without a message."""
    done = _run(project, OI_TEST_PASSED_IN=str(project / "nothing.txt"))
    assert "OI_TEST_PASSED_IN: there is no file" in done
    assert " passed" not in done
