"""Fixtures: a database for each test, for each kind of ``tx=``; a client that retries."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from open_idempotency.ledger import steps
from tests import django_project
from tests.ledger.databases import AWAITED, BLOCKING, Database, database_of
from tests.postgres_server import PostgresServer
from tests.unit.stages.stage_client import Client

django_project.set_up()


@pytest.fixture(autouse=True)
def _nothing_purges_in_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable purges by entries, which depend on the process; ``test_purging.py`` enables them."""
    monkeypatch.setattr(steps, "_PURGED_EVERY", math.inf)


@pytest.fixture
def client() -> Client:
    """A client that sends one request again and again; its records are in memory, wherever the ledger is."""
    return Client()


@pytest.fixture(params=BLOCKING)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of sync transaction."""
    name: str = request.param
    return name


@pytest.fixture(params=AWAITED)
def awaited_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of async transaction."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def application_url(postgres18: PostgresServer) -> str:
    """The URL of the application's database, which is not the database of the records."""
    return postgres18.create_database("application")


@pytest.fixture
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Database]:
    """A database without any table."""
    url: Callable[[], Any] = partial(request.getfixturevalue, "application_url")
    return lambda dialect: database_of(dialect, tmp_path, url)


@pytest.fixture
def database(kind: str, new_database: Callable[[str], Database]) -> Database:
    """The database of ``kind``, with its tables."""
    made = new_database(BLOCKING[kind][0])
    made.make_tables()
    return made


@pytest.fixture
def awaited_database(awaited_kind: str, new_database: Callable[[str], Database]) -> Database:
    """The database of ``awaited_kind``, with its tables."""
    made = new_database(AWAITED[awaited_kind][0])
    made.make_tables()
    return made
