"""Fixtures for the operators' tests: every backend in turn, and a memory backend for tests that depend on none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import ManualClock
from tests.matrix import apart_from, thin_out
from tests.operations.stores import STORES, Maker, opened

#: what the stores of one server share is tested on one of them, depending on the test
SERVERS = {
    "sqlite": "files",
    "sqlalchemy-sqlite": "files",
    "django-sqlite": "files",
    "valkey": "redis",
    "cluster": "redis",
    "sentinel": "redis",
    "postgres": "postgres",
    "sqlalchemy-postgres": "postgres",
    "django-postgres": "postgres",
}
#: on every backend, always
STORY = "test_a_stuck_client_is_freed_in_three_commands"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only ``OI_TEST_OPERATIONS=full`` runs."""
    thin_out(config, items, "operations", "OPERATIONS", cell, every_column=False)


def cell(item: pytest.Item) -> tuple[str, str, str] | None:
    """The server, the store and the rest of the id, for a test that runs on every store; None for any other test."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec") or item.originalname == STORY:
        return None
    store = item.callspec.params.get("store")
    return None if store is None else (SERVERS[store], store, apart_from(item, "store"))


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of each backend in turn."""
    with opened(request.param, request) as url:
        yield url


@pytest.fixture
def stored(store: str) -> Iterator[Backend]:
    """Each backend in turn."""
    with open_backend(store) as backend:
        yield backend


@pytest.fixture
def clock() -> ManualClock:
    """The clock of ``backend``."""
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> Backend:
    """A memory backend with a manual clock."""
    return MemoryBackend(clock=clock)


@pytest.fixture
def maker(backend: Backend) -> Maker:
    """Makes records in memory."""
    return Maker(backend)
