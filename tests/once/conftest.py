"""Fixtures of the ``Once`` suite: every backend, sync and async."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from open_idempotency import Once, open_backend
from open_idempotency.backend import Backend
from tests.backends.django_orm import on_django
from tests.matrix import apart_from, thin_out
from tests.once.modes import MODES, Mode, in_mode

BACKENDS = ("memory", "sqlite", "valkey", "postgres", "sqlalchemy", "django")
MakeOnce = Callable[..., Once]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only ``OI_TEST_ONCE=full`` runs: each test meets every backend, sync, asyncio and trio."""
    thin_out(config, items, "once", "ONCE", _cell)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return None
    params = item.callspec.params
    if not {"address", "how"} <= set(params):
        return None
    return str(params["address"]), str(params["how"]), apart_from(item, "address", "how")


@pytest.fixture(params=MODES)
def how(request: pytest.FixtureRequest) -> Iterator[Mode]:
    """Sync, asyncio and trio, one after the other."""
    with in_mode(request.param) as mode:
        yield mode


@pytest.fixture(scope="session")
def django_alias(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A project's SQLite file with the migrated tables."""
    with on_django.aliased(on_django.sqlite(tmp_path_factory.mktemp("once"), CONN_MAX_AGE=None)) as alias:
        yield alias


@pytest.fixture(params=BACKENDS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each backend, one after the other; its tables exist."""
    name: str = request.param
    if name == "memory":
        return "memory://"
    if name == "valkey":
        url: str = request.getfixturevalue("valkey_url")
        return f"{url}{'&' if '?' in url else '?'}prefix=once-{uuid4().hex}:"
    if name == "postgres":
        postgres: str = request.getfixturevalue("postgres18").url()
        return postgres
    if name == "django":
        return f"django://{request.getfixturevalue('django_alias')}"
    path = f"{tmp_path}/once.db"
    made = f"sqlite:///{path}" if name == "sqlite" else f"sqlalchemy+sqlite:///{path}"
    if name == "sqlalchemy":
        open_backend(made).migrate()
    return made


@pytest.fixture
def records(address: str, how: Mode) -> Iterator[Backend]:
    """The stored records of this test's calls."""
    backend = open_backend(address)
    yield backend
    how.close_backend(backend)


@pytest.fixture
def scope() -> str:
    """A scope of this test alone, as its server has the records of other tests, too."""
    return f"invoices-{secrets.token_hex(6)}"


@pytest.fixture
def make(records: Backend, scope: str, how: Mode) -> Iterator[MakeOnce]:
    """Makes a ``Once`` of this test's scope, with fields."""
    made: list[Once] = []

    def once_of(**fields: Any) -> Once:
        once = Once(fields.pop("backend", records), **{"scope": scope, **fields})
        made.append(once)
        return once

    yield once_of
    for once in made:
        how.close(once)


@pytest.fixture
def once(make: MakeOnce) -> Once:
    """A ``Once`` of this test's scope with the default fields."""
    return make()
