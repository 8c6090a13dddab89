"""What ``tx=`` refuses: each time with what to do, and before any effect."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from open_idempotency import ConfigurationError, idem
from tests.postgres_server import PostgresServer
from tests.unit.stage_client import Client


def refuses(client: Client, tx: Any, message: str) -> None:
    """The stage is not entered."""
    with client.request(), pytest.raises(ConfigurationError, match=message), idem.stage("order", tx=tx):
        raise AssertionError("not reached")


@pytest.mark.parametrize("tx", [object(), 5, b"default", sqlite3])
def test_a_transaction_of_an_unknown_kind(client: Client, tx: Any) -> None:
    """Bad input: S-05."""
    refuses(client, tx, "takes a SQLAlchemy Session")


def test_an_alias_that_django_does_not_know(client: Client) -> None:
    """Bad input: S-05."""
    refuses(client, "nowhere", "DATABASES has no 'nowhere'")


def test_an_alias_that_is_in_no_atomic_block(client: Client) -> None:
    """Bad input: S-05; another database than the view's is in none either."""
    refuses(client, "default", r"with transaction.atomic\('default'\)")


def test_a_sqlite3_connection_that_commits_each_statement(client: Client, tmp_path: Path) -> None:
    """Bad input: S-05; it is taken inside of BEGIN."""
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        refuses(client, connection, "execute BEGIN first")


def test_a_psycopg_connection_that_commits_each_statement(client: Client, postgres18: PostgresServer) -> None:
    """Bad input: S-05."""
    with postgres18.connect() as connection:
        refuses(client, connection, "connection.transaction()")


def test_a_psycopg_connection_whose_transaction_has_failed(client: Client, postgres18: PostgresServer) -> None:
    """Bad input: S-05."""
    with psycopg.connect(postgres18.url()) as connection:
        with pytest.raises(psycopg.errors.SyntaxError):
            connection.execute("nonsense")
        refuses(client, connection, "INERROR")
        connection.rollback()


def test_a_session_that_begins_nothing(client: Client, tmp_path: Path) -> None:
    """Bad input: S-05."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/a.db")
    with Session(engine, autobegin=False) as session:
        refuses(client, session, r"with session.begin\(\)")
    engine.dispose()


def test_a_session_without_a_database(client: Client) -> None:
    """Bad input: S-05."""
    with Session() as session:
        refuses(client, session, "tx=")


def test_a_connection_in_autocommit(client: Client, tmp_path: Path) -> None:
    """Bad input: S-05."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/a.db", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        refuses(client, connection, "AUTOCOMMIT")
    with Session(engine) as session:
        refuses(client, session, "AUTOCOMMIT")
    engine.dispose()


@pytest.mark.parametrize("terms", [{"external": True}, {"reconcile": print}, {"memo_errors": (ValueError,)}])
def test_terms_that_do_not_fit_a_transaction(client: Client, terms: dict[str, Any]) -> None:
    """Bad input: what is rolled back is not on record, so there is nothing to be in doubt about."""
    with client.request(), pytest.raises(TypeError, match="tx="), idem.stage("order", tx="default", **terms):
        raise AssertionError("not reached")
