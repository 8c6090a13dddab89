"""The matrix: each test of the contract suite runs on every backend, sync and async.

A backend has variants: releases of its server, drivers, ways to deploy it, asyncio and trio. By default a test runs on
one of them, which depends on the test; ``OI_TEST_CONTRACT=full`` runs it on every variant (``tests.matrix``).
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from open_idempotency.conformance import BackendContract
from tests.matrix import apart_from, thin_out

#: the backend of a test class, by a prefix of the test's id; any other class counts as a backend
BACKENDS: Mapping[str, str] = {
    "test_contract.py::TestRedis": "redis",
    "test_contract.py::TestSqlite": "sqlite",
    "test_contract.py::TestValkey": "redis",
    "test_django_orm.py::": "django",
    "test_postgres.py::": "postgres",
    "test_postgres_pooler.py::": "postgres",
    "test_redis_contract.py::": "redis",
    "test_sqlalchemy.py::": "sqlalchemy",
}
#: the mode of a class with one; other classes count as backends
WITHOUT_A_CHOICE: Mapping[str, str] = {
    "test_sqlalchemy.py::TestAsyncmy": "asyncio",
    "test_sqlalchemy.py::TestAiosqlite": "asyncio",
    "test_sqlalchemy.py::TestAsyncpg": "asyncio",
    "test_sqlalchemy.py::TestMysql": "sync",
    "test_sqlalchemy.py::TestSqlite": "sync",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what only the full form runs."""
    thin_out(config, items, "backends", "CONTRACT", _cell, every_column=False)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    if not isinstance(item, pytest.Function) or item.cls is None:
        return None
    if not issubclass(item.cls, BackendContract):
        return None
    address = f"{item.path.name}::{item.cls.__name__}"
    backend = next((name for start, name in BACKENDS.items() if address.startswith(start)), address)
    params = item.callspec.params if hasattr(item, "callspec") else {}
    variant = {name: params[name] for name in ("mode", "pooler") if name in params}
    mode = variant.get("mode") or WITHOUT_A_CHOICE.get(address, "sync")
    test = apart_from(item, *variant) if params else f"{item.originalname}[]"
    return f"{backend}, {'blocking' if mode == 'sync' else 'awaited'}", f"{address}, {variant}", test
