"""Fixtures that all suites share: event loop libraries and real servers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.servers import CAN_EXIST, Server

#: on a machine that brings its own server; it is used in place of the Valkey one, and never flushed
ADDRESS = os.environ.get("OI_TEST_REDIS_URL")
SERVER_KINDS = [kind for kind, can_exist in CAN_EXIST.items() if can_exist]


def pytest_report_header() -> list[str]:
    """Say which servers are tested, and which cannot exist here, so that none is missing silently."""
    missing = [kind for kind, can_exist in CAN_EXIST.items() if not can_exist]
    notes = [f"servers: {', '.join(SERVER_KINDS)}"]
    return notes + [f"servers without a wheel for this Python, deselected: {', '.join(missing)}"] * bool(missing)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Asynchronous tests run on both libraries."""
    library: str = request.param
    return library


@contextmanager
def _running(kind: str) -> Iterator[str]:
    server = Server(kind).start()
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey server for this test process; start it once, and keep to keys of your own."""
    if ADDRESS:
        yield ADDRESS
        return
    with _running("valkey") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The oldest Redis that is supported, for this test process."""
    with _running("redis") as url:
        yield url


@pytest.fixture(params=SERVER_KINDS)
def server_url(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
