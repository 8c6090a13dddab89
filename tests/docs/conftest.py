"""Fixtures of the docs tests, and the matrix of the contract for the backend that the docs write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from open_idempotency.conformance import BackendContract
from tests.matrix import apart_from, thin_out
from tests.support.prepared import WAYS, Prepared


@pytest.fixture(scope="session", params=WAYS)
def prepared(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    """Runs pages, each in a separate process."""
    runner = Prepared(request.param)
    yield runner
    runner.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only the full form runs."""
    thin_out(config, items, "docs", "CONTRACT", _cell, every_column=False)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    if not isinstance(item, pytest.Function) or item.cls is None or not issubclass(item.cls, BackendContract):
        return None
    mode = item.callspec.params["mode"]
    return "blocking" if mode == "sync" else "awaited", mode, apart_from(item, "mode")
