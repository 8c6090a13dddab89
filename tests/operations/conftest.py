"""Fixtures for the tests of operators: every store in turn, and one in memory for what depends on none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import ManualClock
from tests.operations.stores import STORES, Maker, opened


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of each store in turn."""
    with opened(request.param, request) as url:
        yield url


@pytest.fixture
def stored(store: str) -> Iterator[Backend]:
    """The backend of each store in turn."""
    with open_backend(store) as backend:
        yield backend


@pytest.fixture
def clock() -> ManualClock:
    """The clock of ``backend``."""
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> Backend:
    """A backend in memory whose clock the test moves."""
    return MemoryBackend(clock=clock)


@pytest.fixture
def maker(backend: Backend) -> Maker:
    """Makes records in memory."""
    return Maker(backend)
