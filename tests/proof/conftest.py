"""Fixtures of the proof: a Valkey that may be flushed, and the server of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres_server import PostgresServer
from tests.proof.cells import Site
from tests.servers import Server


@pytest.fixture(scope="session")
def flushed_server() -> Iterator[Server]:
    """No other test has records there."""
    server = Server("valkey").start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def site(flushed_server: Server, postgres18: PostgresServer) -> Iterator[Site]:
    """The servers of all forms, and what forks their workers."""
    made = Site(flushed_server, postgres18)
    try:
        yield made
    finally:
        made.close()
