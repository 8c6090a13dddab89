"""Fixtures of the proof: a Valkey server that may be flushed, and the server of workers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import make_url

from tests import mariadb_server
from tests.ledger.databases import Database
from tests.postgres_server import PostgresServer
from tests.proof.cells import Site
from tests.servers import Server


@pytest.fixture(scope="session")
def flushed_server() -> Iterator[Server]:
    """A server without records of other tests."""
    server = Server("valkey").start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def _running(records: Server, rows: Database) -> Iterator[Site]:
    made = Site(records, rows)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def site(flushed_server: Server, postgres18: PostgresServer) -> Iterator[Site]:
    """The servers of all forms, and the process that forks their workers."""
    with _running(flushed_server, Database(postgres18.create_database(f"proof_{secrets.token_hex(6)}"))) as site:
        yield site


@pytest.fixture(scope="session")
def site_on_mysql(flushed_server: Server) -> Iterator[Site]:
    """The same site with the rows in MariaDB or MySQL."""
    given = make_url(mariadb_server.url())
    name = f"{given.database}_proof_{secrets.token_hex(6)}"
    Database(mariadb_server.url()).query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    with _running(flushed_server, Database(given.set(database=name).render_as_string(hide_password=False))) as site:
        yield site
