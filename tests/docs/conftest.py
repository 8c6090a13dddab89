"""The contract of the backend that the docs write: sync and awaited, each test on asyncio or on trio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from open_idempotency.conformance import BackendContract
from tests.matrix import apart_from, thin_out
from tests.support.prepared import WAYS, Prepared


@pytest.fixture(scope="session", params=WAYS)
def prepared(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    """What runs pages, each in a process of its own."""
    runner = Prepared(request.param)
    yield runner
    runner.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what the full form alone runs."""
    thin_out(config, items, "docs", "CONTRACT", _cell, every_column=False)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    if not isinstance(item, pytest.Function) or item.cls is None or not issubclass(item.cls, BackendContract):
        return None
    colour = item.callspec.params["colour"]
    return "blocking" if colour == "sync" else "awaited", colour, apart_from(item, "colour")
