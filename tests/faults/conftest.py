"""The pytest hooks of the fault tests: marks are checked, and a run ends with a table.

Without ``OI_TEST_FAULTS=full`` tests marked ``full_form`` are deselected. ``OI_TEST_FAULTS_REPORT`` names a file for
the table. The table is printed if pytest was given this folder, as ``tox -e faults`` does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FULL
from tests.faults.effects import Effects
from tests.faults.proxy import FaultProxy
from tests.faults.records import POSTGRES, OnFile, OnPostgres, OnRedis, OnServer, Records
from tests.faults.report import LIST_VARIABLE, PROPERTY, Report, as_plain, from_plain, proofs_of
from tests.matrix import below

REPORT_FILE = os.environ.get("OI_TEST_FAULTS_REPORT")

_report = Report()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Read each mark once, so that a wrong one ends the run at collection; deselect the long forms."""
    ours = below("faults", items)
    for item in ours:
        item.user_properties += [(PROPERTY, as_plain(proof)) for proof in proofs_of(item)]
    if not FULL:
        left_out = {item for item in ours if item.get_closest_marker("full_form")}
        config.hook.pytest_deselected(items=[item for item in ours if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    if LIST_VARIABLE in os.environ:
        Path(os.environ[LIST_VARIABLE]).write_text(json.dumps(_listed(items)), encoding="utf-8")


def _listed(items: list[pytest.Item]) -> list[dict[str, Any]]:
    return [
        {"test": getattr(item, "originalname", item.name), **plain}
        for item in items
        for name, plain in item.user_properties
        if name == PROPERTY and isinstance(plain, dict)
    ]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take the outcome, in the process that prints."""
    proofs = [from_plain(plain) for name, plain in report.user_properties if name == PROPERTY]
    if report.when == "call" or report.outcome != "passed":
        _report.add(report.nodeid, proofs, report.outcome)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write it to a file if one is named."""
    if not _report:
        return
    terminalreporter.section("faults")
    for line in _report.text():
        terminalreporter.line(line)
    if REPORT_FILE:
        Path(REPORT_FILE).write_text(_report.markdown(), encoding="utf-8")
        terminalreporter.line(f"written to {REPORT_FILE}")


@pytest.fixture(params=["wsgi", pytest.param("asgi", marks=pytest.mark.full_form)])
def interface(request: pytest.FixtureRequest) -> str:
    """WSGI and ASGI in the full form; quick tests use ``wsgi_and_asgi``, which has both in the short form too."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    """The effects that happened, outside of the system under test."""
    return Effects(tmp_path / "effects.txt")


@pytest.fixture
def records(backend_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Records]:
    """Records of this test alone; ``backend_kind`` is a parameter of the test."""
    records: Records
    if backend_kind == "sqlite":
        records = OnFile(tmp_path)
    elif backend_kind in POSTGRES:
        records = OnPostgres(request.getfixturevalue(POSTGRES[backend_kind]))
    else:
        records = OnRedis(request.getfixturevalue(f"{backend_kind}_url"))
    yield records
    records.close()


@pytest.fixture
def proxy(records: OnServer) -> Iterator[FaultProxy]:
    """A proxy before the server of ``records``, on which each verb is one command."""
    records.prepare()
    with FaultProxy(records.port) as proxy:
        yield proxy
