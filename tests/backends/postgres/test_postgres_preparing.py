"""Statements that a connection sends often are prepared, and nothing depends on that (B-11a)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from open_idempotency.backend import Lease, Leased, SaveStage, Stage
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.postgres.connections import OFTEN
from open_idempotency.backends.postgres.verbs import SAVE_STAGE, Statement
from open_idempotency.conformance.support import claim_of
from tests.postgres_server import PostgresServer

PREPARED = "SELECT convert_to(name, 'UTF8'), convert_to(statement, 'UTF8') FROM pg_prepared_statements"
SENT = SAVE_STAGE.statement


@pytest.fixture
def backend(postgres18: PostgresServer) -> Iterator[PostgresBackend]:
    """A backend with one connection."""
    backend = PostgresBackend(postgres18.url(), timeout=10)
    yield backend
    backend.close()


def use(backend: PostgresBackend) -> None:
    """Send one statement often."""
    result = backend.claim(claim_of(secrets.token_bytes(32)))
    assert isinstance(result, Leased)
    lease: Lease = result.lease
    for number in range(2 * OFTEN):
        assert backend.save_stage(SaveStage(lease, Stage(f"{number}", "", b"frame"))).frame == b"frame"


def asked(backend: PostgresBackend, statement: str) -> list[Any]:
    """The rows of a statement on the backend's connection."""
    return backend._executor._of_process.get().connections.rows(Statement(statement), ())


def test_what_is_sent_often_is_prepared_under_a_name_of_its_own(backend: PostgresBackend) -> None:
    """The name depends on the text, so another client of this session prepares the same text under it."""
    use(backend)
    assert asked(backend, PREPARED) == [(SENT.name, SENT.text)]


def test_nothing_is_prepared_where_it_is_not_wanted(postgres18: PostgresServer) -> None:
    """With ``prepare=no``."""
    backend = PostgresBackend(f"{postgres18.url()}?prepare=no", timeout=10)
    use(backend)
    assert asked(backend, PREPARED) == []
    backend.close()


def test_a_statement_that_the_session_does_not_know_is_sent_plainly(backend: PostgresBackend) -> None:
    """A pooler may give the next transaction another session; then preparing stops."""
    use(backend)
    asked(backend, "DEALLOCATE ALL")
    use(backend)
    assert asked(backend, PREPARED) == []


def test_a_statement_that_another_client_has_prepared_is_sent_plainly(backend: PostgresBackend) -> None:
    """A pooler may give a session in which another client has prepared it."""
    asked(backend, f"PREPARE {SENT.name.decode()} AS {SENT.text.decode()}")
    use(backend)
    asked(backend, "DEALLOCATE ALL")
    use(backend)
    assert asked(backend, PREPARED) == []


def test_a_statement_with_other_results_since_a_migration_is_sent_plainly(backend: PostgresBackend) -> None:
    """The server refuses a prepared statement whose result type has changed."""
    asked(backend, "CREATE TEMPORARY TABLE changing (a integer)")
    asked(backend, "INSERT INTO changing VALUES (1)")
    statement = Statement("SELECT * FROM changing")
    connections = backend._executor._of_process.get().connections
    for _ in range(2 * OFTEN):
        assert connections.rows(statement, ()) == [(1,)]
    asked(backend, "ALTER TABLE changing ADD b integer")
    assert connections.rows(statement, ()) == [(1, None)]
