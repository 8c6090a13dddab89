"""Objects that ``tx=`` refuses: before any effect, with an error that says what to do."""

from __future__ import annotations

import contextlib
import sqlite3
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from django.db import transaction
from django.test import TestCase
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from open_idempotency import ConfigurationError, idem
from tests.ledger.databases import INSERT, Database, django_alias
from tests.postgres_server import PostgresServer
from tests.unit.stages.stage_client import Client


def refuses(client: Client, tx: Any, message: str) -> None:
    """Assert that a stage with this transaction raises and its block does not run."""
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
    """Bad input: S-05."""
    refuses(client, "default", r"with transaction.atomic\('default'\)")


def test_another_alias_than_that_of_the_view(client: Client, new_database: Callable[[str], Database]) -> None:
    """Bad input: S-05; the error names the alias that has a transaction."""
    with django_alias(new_database("sqlite")) as alias, transaction.atomic(alias):
        refuses(client, "default", rf"'default', unlike '{alias}', is in no transaction")


def test_the_blocks_of_a_testcase_are_not_the_views(client: Client, new_database: Callable[[str], Database]) -> None:
    """Bad input: a view without ``atomic`` fails under a TestCase as it does in production."""
    database = new_database("sqlite")
    database.make_tables()
    with django_alias(database) as alias:

        class Tests(TestCase):
            databases = {alias}

            def test_without_a_block(self) -> None:
                refuses(client, alias, "is in no transaction")

            def test_with_one(self) -> None:
                with client.request(), transaction.atomic(alias), idem.stage("order", tx=alias) as stage:
                    assert not stage.done

        outcome = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(outcome)
    assert (outcome.testsRun, outcome.errors, outcome.failures) == (2, [], [])


def test_a_sqlite3_connection_that_commits_each_statement(client: Client, tmp_path: Path) -> None:
    """Bad input: S-05; after BEGIN the same connection is accepted."""
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


def test_a_psycopg_connection_that_is_closed(client: Client, postgres18: PostgresServer) -> None:
    """Bad input: S-05."""
    with psycopg.connect(postgres18.url()) as connection:
        pass
    refuses(client, connection, "is closed")


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


def test_a_session_whose_connection_is_in_autocommit(client: Client, tmp_path: Path) -> None:
    """Bad input: S-05; the connection is in autocommit, its engine is not."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/a.db")
    with Session(engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        refuses(client, session, "AUTOCOMMIT")
    engine.dispose()


def test_a_session_that_begins_on_an_engine_in_autocommit(
    client: Client, new_database: Callable[[str], Database]
) -> None:
    """S-05: the isolation level of the session overrides that of its engine."""
    database = new_database("sqlite")
    database.make_tables()
    engine = sqlalchemy.create_engine(database.url, isolation_level="AUTOCOMMIT")
    with Session(engine) as session, client.request():
        session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        with idem.stage("order", tx=session):
            session.execute(sqlalchemy.text(INSERT))
        session.rollback()
    engine.dispose()
    assert database.orders() == 0


@pytest.mark.parametrize("maker", [sessionmaker(), async_sessionmaker()])
def test_what_makes_sessions(client: Client, maker: Any) -> None:
    """Bad input: S-05; a decorator would call the sessionmaker, and nobody would commit the new session."""
    refuses(client, maker, "makes another session each time")
    refused = pytest.raises(ConfigurationError, match="makes another session each time")
    with client.request(), refused:
        idem.stage("order", tx=maker)(lambda: pytest.fail("not reached"))()


@pytest.mark.parametrize("terms", [{"external": True}, {"reconcile": print}, {"memo_errors": (ValueError,)}])
def test_terms_that_do_not_fit_a_transaction(client: Client, terms: dict[str, Any]) -> None:
    """Bad input: a rollback leaves no intent on record, so a stage with ``tx=`` is never in doubt."""
    with client.request(), pytest.raises(TypeError, match="tx="), idem.stage("order", tx="default", **terms):
        raise AssertionError("not reached")
