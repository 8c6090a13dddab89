"""Fixtures: a command-line shell on a new SQLite file, and on every backend in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend
from tests.cli.running import Shell
from tests.matrix import thin_out
from tests.operations.conftest import cell, store, stored
from tests.operations.stores import Maker

__all__ = ["store", "stored"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that only ``OI_TEST_OPERATIONS=full`` runs."""
    thin_out(config, items, "cli", "OPERATIONS", cell, every_column=False)


@pytest.fixture(autouse=True)
def _no_backend_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the backend of the developer's environment."""
    monkeypatch.delenv("OPEN_IDEMPOTENCY_BACKEND", raising=False)


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """The URL of an SQLite file with its tables."""
    url = f"sqlite:///{tmp_path}/records.db?synchronous=normal"
    with open_backend(url) as backend:
        backend.migrate()
    return url


@pytest.fixture
def backend(file_url: str) -> Iterator[Backend]:
    """The backend of that file."""
    with open_backend(file_url) as backend:
        yield backend


@pytest.fixture
def maker(backend: Backend) -> Maker:
    """Makes records in that file."""
    return Maker(backend)


@pytest.fixture
def shell(file_url: str, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs commands on that file."""
    return Shell(file_url, capsys)
