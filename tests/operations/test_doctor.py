"""The doctor reports what is right with each backend, and what endangers its records."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import open_idempotency
from open_idempotency import IdempotencyPolicy, open_backend, operations
from open_idempotency.backend import AsyncBackend, Backend, Finding, Health, Level
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.exceptions import BackendUnavailable
from tests.backends.django_orm import on_django
from tests.operations.stores import Maker, opened
from tests.postgres_server import PostgresServer
from tests.servers import Server
from tests.topologies import Cluster


def _of(findings: Sequence[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def _one(findings: Sequence[Finding], check: str) -> Finding:
    (finding,) = _of(findings, check)
    return finding


#: what the doctor checks besides the package, the clock and the duration of a call
LOOKED_AT = {
    "sqlite": {"server", "disk", "integrity", "purging"},
    "valkey": {"server", "eviction", "memory", "persistence", "replicas"},
    "cluster": {"server", "eviction", "memory", "persistence", "replicas", "cluster"},
    "sentinel": {"server", "eviction", "memory", "persistence", "replicas", "sentinel"},
    "postgres": {"server", "migrations", "durability", "vacuum", "connections", "table", "purging"},
    "sqlalchemy-sqlite": {"server", "migrations", "purging"},
    "sqlalchemy-postgres": {"server", "migrations", "purging"},
    "django-sqlite": {"server", "migrations", "purging"},
    "django-postgres": {"server", "migrations", "purging"},
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_each_backend_is_looked_at(name: str, request: pytest.FixtureRequest) -> None:
    """P-17: with the versions of client and server, and the difference of their clocks."""
    with opened(name, request) as url, open_backend(url) as backend:
        Maker(backend).completed()
        found = operations.examine(backend)
    checks = {finding.check for finding in found}
    assert {"package", "reachable", "clock", *LOOKED_AT[name]} <= checks
    assert open_idempotency.__version__ in _one(found, "package").found
    assert all(finding.cure for finding in found if finding.level in (Level.WARNING, Level.PROBLEM)), found
    assert not any(finding.level is Level.UNKNOWN for finding in found)


@pytest.mark.parametrize("name", ["postgres", "sqlalchemy-sqlite", "sqlalchemy-postgres"])
def test_missing_tables_are_a_problem_with_the_command_that_makes_them(
    name: str, tmp_path: Path, postgres18: PostgresServer
) -> None:
    """P-17: reported as a finding, not as an error."""
    url = postgres18.create_database(f"bare_{name.replace('-', '_')}")
    if name == "sqlalchemy-sqlite":
        (tmp_path / "bare.db").touch()
        url = f"sqlalchemy+sqlite:///{tmp_path}/bare.db"
    elif name == "sqlalchemy-postgres":
        url = url.replace("postgresql://", "sqlalchemy+postgresql+psycopg://")
    with open_backend(url) as backend:
        finding = _one(operations.examine(backend), "migrations")
    assert finding.level is Level.PROBLEM
    assert "open-idempotency migrate" in finding.cure


def test_missing_migrations_of_django_are_a_problem(tmp_path: Path) -> None:
    """P-17: with Django's command."""
    without = on_django.aliased(on_django.sqlite(tmp_path), migrated=False)
    with without as alias, open_backend(f"django://{alias}") as backend:
        finding = _one(operations.examine(backend), "migrations")
    assert finding.level is Level.PROBLEM
    assert "open_idempotency.0001_records_and_ledger" in finding.found
    assert f"manage.py migrate open_idempotency --database {alias}" in finding.cure


@contextmanager
def _valkey(*options: str) -> Iterator[tuple[Backend, Server]]:
    server = Server("valkey", *options).start()
    try:
        with open_backend(f"{server.url}?eviction=ignore") as backend:
            yield backend, server
    finally:
        server.stop()


def test_an_eviction_policy_that_drops_records_is_a_problem() -> None:
    """P-17: an evicted key runs again."""
    with _valkey("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as (backend, _):
        finding = _one(operations.examine(backend), "eviction")
    assert finding.level is Level.PROBLEM
    assert "allkeys-lru" in finding.found
    assert "noeviction" in finding.cure


def test_memory_that_is_nearly_full_is_reported() -> None:
    """P-17: with both numbers."""
    with _valkey("--maxmemory", "100mb", "--maxmemory-policy", "noeviction") as (backend, server):
        assert _one(operations.examine(backend), "memory").level is Level.OK
        with server.connect() as client:
            used = client.info("memory")["used_memory"]
            client.config_set("maxmemory", int(used * 1.15))
        assert _one(operations.examine(backend), "memory").level is Level.WARNING
        with server.connect() as client:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.01))
        assert _one(operations.examine(backend), "memory").level is Level.PROBLEM


def test_a_server_that_loses_writes_in_a_crash_is_reported() -> None:
    """P-17: by its appendonly setting."""
    with _valkey("--appendonly", "no") as (backend, _):
        assert _one(operations.examine(backend), "persistence").level is Level.WARNING
    with _valkey("--appendonly", "yes") as (backend, _):
        assert _one(operations.examine(backend), "persistence").level is Level.OK


def test_replicas_that_are_missing_are_a_problem() -> None:
    """P-17: with ``min_replicas`` new keys are refused."""
    with _valkey() as (_, server), open_backend(f"{server.url}?min_replicas=1&eviction=ignore") as backend:
        finding = _one(operations.examine(backend), "replicas")
    assert finding.level is Level.PROBLEM
    assert "min_replicas=1" in finding.found


def test_what_the_user_may_not_see_is_unknown_and_not_fine() -> None:
    """P-17: INFO needs a permission."""
    with _valkey() as (_, server):
        with server.connect() as client:
            client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info")
        with open_backend(server.url.replace("redis://", "redis://app:pw@") + "?eviction=ignore") as backend:
            finding = _one(operations.examine(backend), "server")
    assert finding.level is Level.UNKNOWN
    assert "INFO is not permitted" in finding.found


def test_each_primary_of_a_cluster_is_looked_at(cluster: Cluster) -> None:
    """P-17: by its port."""
    with open_backend(cluster.url) as backend:
        found = operations.examine(backend)
    assert len({finding.found for finding in _of(found, "server")}) == 3
    assert _one(found, "cluster").found == "cluster_state is ok, with 3 primaries"


def test_privileges_and_settings_of_postgresql_are_looked_at(postgres18: PostgresServer) -> None:
    """P-17: those of the application's user."""
    url = postgres18.create_database("settings_of_doctor")
    with open_backend(url) as backend:
        backend.migrate()
    with postgres18.connect("settings_of_doctor") as connection:
        connection.execute("CREATE ROLE halfway LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA open_idempotency TO halfway")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA open_idempotency TO halfway")
        connection.execute("ALTER ROLE halfway SET synchronous_commit = off")
    try:
        with open_backend(url.replace("postgres@", "halfway@")) as backend:
            found = operations.examine(backend)
    finally:
        with postgres18.connect("settings_of_doctor") as connection:
            connection.execute("DROP OWNED BY halfway")
            connection.execute("DROP ROLE halfway")
    assert "records: INSERT" in _one(found, "privileges").found
    durability = _of(found, "durability")
    assert any("synchronous_commit is off" in finding.found for finding in durability)
    # The tests' server runs without fsync, which no production server may.
    assert any("fsync is off" in finding.found and finding.level is Level.PROBLEM for finding in durability)


def test_purging_that_is_behind_is_reported(tmp_path: Path) -> None:
    """P-17: by the age of the oldest expired record, and with the command."""
    clock = ManualClock()
    with open_backend(f"sqlite:///{tmp_path}/records.db", clock=clock) as backend:
        Maker(backend).completed()
        clock.advance(3600 + 2 * 86_400)
        finding = _one(operations.examine(backend), "purging")
        assert finding.level is Level.WARNING
        assert "1 expired records wait to be purged, the oldest for 48.0 hours" in finding.found
        assert "open-idempotency purge" in finding.cure
        backend.purge()
        assert _one(operations.examine(backend), "purging").level is Level.OK


def test_a_file_that_everybody_may_read_is_reported(tmp_path: Path) -> None:
    """P-17: it contains stored responses."""
    with open_backend(f"sqlite:///{tmp_path}/records.db") as backend:
        backend.migrate()
        assert _of(operations.examine(backend), "permissions") == []
        os.chmod(tmp_path / "records.db", 0o644)
        assert _one(operations.examine(backend), "permissions").level is Level.WARNING


def test_a_damaged_file_is_a_problem(tmp_path: Path) -> None:
    """P-17: as far as SQLite detects it."""
    path = tmp_path / "records.db"
    with open_backend(f"sqlite:///{path}") as backend:
        maker = Maker(backend)
        for _ in range(50):
            maker.completed(os.urandom(2000))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    pages = bytearray(path.read_bytes())
    pages[4096 * 12 : 4096 * 12 + 2000] = b"\xff" * 2000
    path.write_bytes(pages)
    with open_backend(f"sqlite:///{path}") as backend:
        assert _one(operations.examine(backend), "integrity").level is Level.PROBLEM


def test_a_clock_that_differs_is_reported() -> None:
    """P-17: leases use the backend's clock, so it is a warning."""
    backend = MemoryBackend(clock=ManualClock())
    finding = _one(operations.examine(backend), "clock")
    assert finding.level is Level.WARNING
    assert "ahead of this machine's" in finding.found


def test_the_lease_of_the_policy_is_compared_with_the_slowest_call(tmp_path: Path) -> None:
    """P-17: renewals need time."""
    with open_backend(f"sqlite:///{tmp_path}/records.db?timeout=4") as backend:
        backend.migrate()
        short = operations.examine(backend, policy=IdempotencyPolicy(lease=20))
        assert _one(short, "lease").level is Level.WARNING
        assert _one(operations.examine(backend, policy=IdempotencyPolicy(lease=60)), "lease").level is Level.OK


def test_a_store_that_is_down_is_an_error_and_no_finding() -> None:
    """P-17: nothing is known about it."""
    with open_backend("redis://127.0.0.1:1") as backend, pytest.raises(BackendUnavailable):
        operations.examine(backend)


class _Own(MemoryBackend):
    """A backend of another package, with ``health`` only."""

    def health(self) -> Health:
        return Health(("the disk is old",))

    def to_async(self) -> AsyncBackend:  # type: ignore[override]  # it is never called
        raise NotImplementedError


def test_a_backend_of_another_package_has_the_warnings_of_its_health() -> None:
    """P-17."""
    finding = _one(operations.examine(_Own()), "health")
    assert (finding.level, finding.found) == (Level.WARNING, "the disk is old")
