"""Fixtures of the crash tests: a shop for each test, on each backend that processes can share.

A test runs on every backend and at every moment, each time with another example; ``OI_TEST_CRASH=full`` runs it on
every example (``tests.matrix``).
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.crash.applications import APPLICATIONS, Site
from tests.matrix import thin_out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only the full form runs."""
    thin_out(config, items, "crash", "CRASH", _cell, every_column=False)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return None
    params = dict(item.callspec.params)
    # an example, or a queue's worker, which takes a minute
    application = params.pop("application", None) or params.pop("workers", None)
    return None if application is None else (str(sorted(params.items())), application, item.originalname)


@pytest.fixture(params=APPLICATIONS)
def application(request: pytest.FixtureRequest) -> str:
    """Each example on its server."""
    name: str = request.param
    return name


@pytest.fixture
def sqlite_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A shop whose records are in SQLite."""
    folder = tmp_path_factory.mktemp("shop")
    # Three times the timeout is the slowest call, which must be shorter than the lease.
    return Site(folder, f"sqlite:///{folder}/idempotency.db?timeout=0.9")


@pytest.fixture
def valkey_site(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Site:
    """A shop whose records are in Valkey."""
    mark = "&" if "?" in valkey_url else "?"
    # Keys of its own: other tests of this process leave records on that server.
    return Site(tmp_path_factory.mktemp("shop"), f"{valkey_url}{mark}timeout=0.5&prefix=crash-{uuid4().hex}:")


@pytest.fixture(params=["sqlite", "valkey"])
def site(request: pytest.FixtureRequest) -> Site:
    """A shop, on each backend in turn."""
    chosen: Site = request.getfixturevalue(f"{request.param}_site")
    return chosen
