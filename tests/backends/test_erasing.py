"""Erasure of one caller's records on every backend: what is deleted, what stays, and what is reported."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from open_idempotency import IdempotencyPolicy, ledger, open_backend, operations
from open_idempotency._core.keys import About, caller_of, scope_id
from open_idempotency.backend import (
    Backend,
    Claim,
    Complete,
    Get,
    Leased,
    OverQuota,
    Reserve,
    Reserved,
    SaveStage,
    Stage,
)
from open_idempotency.operations import CallerNeeded
from tests.postgres_server import PostgresServer

POLICY = IdempotencyPolicy(application="shop", max_live_keys=2)
LEASE, TTL = 30.0, 600.0


@pytest.fixture(params=["memory", "sqlite", "sqlalchemy", "redis", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each backend, empty."""
    if request.param == "redis":
        url = f"{request.getfixturevalue('redis_url')}?prefix={secrets.token_hex(8)}:"
    elif request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres18")
        url = server.create_database(f"erasing_{secrets.token_hex(4)}")
    else:
        file = tmp_path / "records.db"
        url = {"memory": "memory://", "sqlite": f"sqlite:///{file}", "sqlalchemy": f"sqlalchemy+sqlite:///{file}"}[
            request.param
        ]
    with closing(open_backend(url)) as opened:
        opened.migrate()
        yield opened


def _record(backend: Backend, scope: str, *, done: bool = True, about: bool = True) -> bytes:
    """A record of a caller, with a stage and, if ``done``, a response."""
    record_id, owner = secrets.token_bytes(32), secrets.token_bytes(16)
    said = About("POST", "/orders", caller_of(scope, POLICY), "web:1").encode(owner) if about else b""
    leased = backend.claim(Claim(record_id, b"f", owner, LEASE, TTL, about=said))
    assert isinstance(leased, Leased)
    backend.save_stage(SaveStage(leased.lease, Stage("charge", "", b"personal")))
    if done:
        backend.complete(Complete(leased.lease, b"personal"))
    return record_id


def _hex(*record_ids: bytes) -> set[str]:
    return {record_id.hex() for record_id in record_ids}


def test_the_records_of_a_caller_are_gone_and_no_others(backend: Backend) -> None:
    """P-07: a dry run reports what it would delete; running attempts are kept unless forced."""
    mine = [_record(backend, "user:7") for _ in range(3)]
    live, other = _record(backend, "user:7", done=False), _record(backend, "user:8")
    planned = operations.erase(backend, POLICY, user=7, dry_run=True)
    assert (set(planned.found), planned.erased, planned.live) == (_hex(*mine, live), (), (live.hex(),))
    assert all(backend.get(Get(each)) for each in mine)
    erased = operations.erase(backend, POLICY, user=7)
    assert (set(erased.erased), erased.live, erased.scanned) == (_hex(*mine), (live.hex(),), 5)
    assert not erased.is_complete
    assert [backend.get(Get(each)) for each in mine] == [None] * 3
    forced = operations.erase(backend, POLICY, user=7, force=True)
    assert (forced.erased, forced.is_complete) == ((live.hex(),), True)
    assert backend.get(Get(other)) is not None


def test_records_that_do_not_say_whose_they_are_are_counted(backend: Backend) -> None:
    """P-07: only their retention ends them, which the operator has to know."""
    _record(backend, "user:7", about=False)
    erased = operations.erase(backend, POLICY, user=7)
    assert (erased.found, erased.unknown, erased.is_complete) == ((), 1, False)


def test_callers_of_sessions_with_the_users_id_are_named_and_left(backend: Backend) -> None:
    """P-07: they may be another person's; the session id erases them."""
    theirs = _record(backend, 'session-user:["user_id", "7"]')
    erased = operations.erase(backend, POLICY, user=7)
    assert (erased.found, erased.elsewhere, erased.is_complete) == ((), {"session user_id": 1}, False)
    assert operations.erase(backend, POLICY, session={"user_id": 7}).erased == (theirs.hex(),)


def test_an_erased_key_counts_towards_no_quota(backend: Backend) -> None:
    """P-07, O-27: its slot is freed."""
    scope = scope_id("user:7", POLICY)
    for _ in range(2):
        record_id = _record(backend, "user:7")
        assert backend.reserve(Reserve(scope, record_id, 2, LEASE, TTL)) == Reserved()
    another = Reserve(scope, secrets.token_bytes(32), 2, LEASE, TTL)
    assert isinstance(backend.reserve(another), OverQuota)
    operations.erase(backend, POLICY, user=7)
    assert backend.reserve(another) == Reserved()


def test_the_ledger_entries_of_the_records_go_in_the_callers_transaction(backend: Backend, tmp_path: Path) -> None:
    """P-07, S-05: with their stages; a rollback keeps them."""
    mine, other = _record(backend, "user:7"), _record(backend, "user:8")
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript(ledger.schema("sqlite"))
        for record_id in (mine, other):
            connection.execute("INSERT INTO open_idempotency_ledger VALUES (?, 1, x'00', x'01', 9e12)", (record_id,))
        connection.commit()
        assert operations.erase(backend, POLICY, user=7, ledger=connection).ledger == 1
        connection.commit()
        left = connection.execute("SELECT record_id FROM open_idempotency_ledger").fetchall()
    assert left == [(other,)]


def test_nobody_is_erased_without_a_name() -> None:
    """P-07: before any call to the backend."""
    with closing(open_backend("memory://")) as backend, pytest.raises(CallerNeeded, match="whose records"):
        operations.erase(backend, POLICY)
