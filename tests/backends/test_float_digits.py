"""PostgreSQL where ``extra_float_digits`` leaves one digit: every lease and token is exact (B-20)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend, Busy, Claim, Complete, Get, Leased, OverQuota, Renew, Renewal, Reserve
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.conformance.support import LEASE, TTL, claim_of
from tests.backends import sql_databases
from tests.backends.django_orm import on_django
from tests.postgres_server import PostgresServer

KINDS = ("sqlalchemy", "asyncpg", "django", "postgresql")


@pytest.fixture(scope="module")
def databases(postgres18: PostgresServer) -> dict[str, str]:
    """A database for each kind, whose sessions return a number of 16 digits with one digit."""
    urls = {}
    for kind in KINDS:
        name = f"low_digits_{kind}"
        urls[kind] = postgres18.create_database(name)
        with postgres18.connect() as connection:
            connection.execute(f"ALTER DATABASE {name} SET extra_float_digits = -15")
        with postgres18.connect(name) as connection:
            row = connection.execute("SELECT 1796009593.326719::double precision::text").fetchone()
            assert row == ("2e+09",)
    return urls


def _with(url: str, driver: str) -> Callable[[], Backend]:
    sql_databases.make_tables(url.replace("postgresql://", "postgresql+psycopg://"))
    return lambda: open_backend("sqlalchemy+" + url.replace("postgresql://", f"postgresql+{driver}://"))


@contextmanager
def _made(kind: str, url: str, server: PostgresServer) -> Iterator[Backend]:
    if kind == "django":
        with on_django.aliased(on_django.postgresql(server, f"low_digits_{kind}")) as alias:
            yield DjangoBackend(alias)
    elif kind == "postgresql":
        backend = open_backend(url)
        backend.migrate()
        yield backend
    else:
        yield _with(url, "psycopg" if kind == "sqlalchemy" else kind)()


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, databases: dict[str, str], postgres18: PostgresServer) -> Iterator[Backend]:
    """A backend on such a database, on the server's own clock."""
    with _made(request.param, databases[request.param], postgres18) as backend:
        yield backend
        backend.close()


def test_leases_and_tokens_are_exact(backend: Backend) -> None:
    """B-01, B-20: of a claim and its duplicate one runs, and the record has the server's time."""
    record_id = os.urandom(32)
    first = backend.claim(claim_of(record_id))
    assert isinstance(first, Leased)
    second = backend.claim(claim_of(record_id))
    assert isinstance(second, Busy)
    assert LEASE - 5 < second.remaining <= LEASE
    assert 0 <= second.elapsed < 5
    before = backend.get(Get(record_id))
    assert before is not None
    assert abs(before.claimed_at - first.lease.token / 1e6) < 1e-3
    assert before.lease_end - before.claimed_at == pytest.approx(LEASE, abs=1e-3)
    assert backend.renew(Renew([first.lease])) == [Renewal.OWNED]
    renewed = backend.get(Get(record_id))
    assert renewed is not None
    assert before.lease_end < renewed.lease_end < before.lease_end + 5
    backend.complete(Complete(first.lease, b"response"))
    completed = backend.get(Get(record_id))
    assert completed is not None
    assert completed.ttl == TTL
    assert completed.expires_at - completed.lease_end == pytest.approx(TTL, abs=1e-3)
    backend.delete(record_id)
    again = backend.claim(claim_of(record_id))
    assert isinstance(again, Leased)
    assert again.lease.token > first.lease.token


def test_reservations_are_exact(backend: Backend) -> None:
    """B-20: a quota counts, and the caller's time to wait is exact."""
    scope = os.urandom(32)
    backend.reserve(Reserve(scope, os.urandom(32), 1, LEASE, TTL))
    refused = backend.reserve(Reserve(scope, os.urandom(32), 1, LEASE, TTL))
    assert isinstance(refused, OverQuota)
    assert LEASE + TTL - 5 < refused.remaining <= 2 * LEASE + TTL


def test_a_time_without_end_stays_one(backend: Backend) -> None:
    """B-20: a record that never expires has the largest float, which no integer holds."""
    lease = backend.claim(Claim(os.urandom(32), b"\x01", os.urandom(16), LEASE, float("inf"), True, True, None))
    assert isinstance(lease, Leased)
    record = backend.get(Get(lease.lease.record_id))
    assert record is not None
    assert (record.ttl, record.expires_at) == (float("inf"), float("inf"))
