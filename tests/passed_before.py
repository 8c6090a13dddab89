"""Skips tests that an earlier command has passed: CI runs ``tox``, and then ``tox -e full``.

``OI_TEST_PASSED_TO=FILE`` adds the names of the tests that pass to a file. ``OI_TEST_PASSED_IN=FILE`` leaves out the
tests that a file names. Searching tests run again: how long they search depends on the command (``tests.effort``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: folders of ``tests`` whose tests search, in some of their parts without Hypothesis
SEARCHING = ("fuzz", "history", "property", "simulation")


def searches(item: pytest.Item) -> bool:
    """Whether a test takes longer with a higher ``OI_TEST_EFFORT``."""
    folders = tuple(f"tests/{folder}/" for folder in SEARCHING)
    return item.nodeid.startswith(folders) or item.get_closest_marker("hypothesis") is not None


class PassedBefore:
    """The plugin. Raises ``pytest.UsageError`` if the file to read does not exist."""

    def __init__(self, source: str | None, target: str | None) -> None:
        self._source = Path(source) if source else None
        self._target = Path(target) if target else None
        self._called: set[str] = set()
        if self._source is not None and not self._source.is_file():
            raise pytest.UsageError(f"OI_TEST_PASSED_IN: there is no file {self._source}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect what passed before."""
        if self._source is not None:
            passed = set(self._source.read_text(encoding="utf-8").splitlines())
            out = [item for item in items if item.nodeid in passed and not searches(item)]
            items[:] = [item for item in items if item.nodeid not in passed or searches(item)]
            config.hook.pytest_deselected(items=out)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test after its tear-down has passed."""
        if (
            self._target is None or "PYTEST_XDIST_WORKER" in os.environ
        ):  # the controller of pytest-xdist gets the reports of all workers
            return
        if report.when == "teardown" and report.passed and report.nodeid in self._called:
            with self._target.open("a", encoding="utf-8") as lines:
                lines.write(report.nodeid + "\n")
        elif report.when == "call" and report.passed:
            self._called.add(report.nodeid)
