"""The Django backend beyond the contract: transactions of its own, bounded waits, helpful errors."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.signals import request_finished
from django.db import DatabaseError, connections, transaction
from django.test import override_settings

from open_idempotency import open_backend
from open_idempotency.backend import Busy, Complete, Fail, Finished, Get, Leased, Mismatch, Refused, SaveStage
from open_idempotency.backends.django_orm import AsyncDjangoBackend, DjangoBackend
from open_idempotency.conformance.support import claim_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError, RecordUnreadable
from tests import mariadb_server
from tests.backends.django_orm import on_django
from tests.postgres_server import PostgresServer

RECORDS = "open_idempotency_django_records"
KINDS = ["sqlite", "postgres", *["mysql"] * mariadb_server.IN_USE]


@contextmanager
def _database(kind: str, request: pytest.FixtureRequest, tmp_path: Path, **more: Any) -> Iterator[str]:
    if kind == "sqlite":
        settings = on_django.sqlite(tmp_path, **more)
    elif kind == "mysql":
        settings = on_django.mysql(mariadb_server.url(), **more)
    else:
        server: PostgresServer = request.getfixturevalue("postgres18")
        settings = on_django.postgresql(server, "postgres", **more)
    with on_django.aliased(settings) as alias:
        yield on_django.emptied(alias)


@pytest.fixture(params=KINDS)
def alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind."""
    with _database(request.param, request, tmp_path) as alias:
        yield alias


@pytest.fixture(params=[kind for kind in KINDS if kind != "sqlite"])
def server_alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with row locks."""
    with _database(request.param, request, tmp_path) as alias:
        yield alias


@pytest.fixture
def sqlite_alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with _database("sqlite", request, tmp_path) as alias:
        yield alias


@pytest.fixture
def postgres_alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with _database("postgres", request, tmp_path) as alias:
        yield alias


@contextmanager
def _backend(alias: str, **options: Any) -> Iterator[DjangoBackend]:
    backend = DjangoBackend(alias, **options)
    try:
        yield backend
    finally:
        backend.close()


def _lease(backend: DjangoBackend, record_id: bytes = b"a") -> Any:
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased), result
    return result.lease


def _execute(alias: str, statement: str, *parameters: object) -> list[Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def _idle(backend: DjangoBackend) -> int:
    return len(backend._connections._pools.get().idle)


# Transactions of its own


def test_a_claim_survives_the_rollback_of_the_callers_transaction(alias: str) -> None:
    """The backend has its own transactions, so a rollback of the handler's one keeps the claim."""
    with _backend(alias) as backend:
        with transaction.atomic(alias):
            connections[alias].ensure_connection()
            backend.complete(Complete(_lease(backend), b"response"))
            transaction.set_rollback(True, using=alias)
        assert backend.claim(claim_of(b"a")) == Finished(b"response")


def test_a_duplicate_gets_a_response_while_the_first_has_its_transaction_open(server_alias: str) -> None:
    """The claim is committed separately, so a duplicate does not wait for the first request's COMMIT."""
    with _backend(server_alias) as backend, transaction.atomic(server_alias):
        _execute(server_alias, "CREATE TEMPORARY TABLE orders (id int)")
        _execute(server_alias, "INSERT INTO orders VALUES (1)")
        lease = _lease(backend)
        backend.save_stage(SaveStage(lease, stage_of("charge")))
        assert isinstance(backend.claim(claim_of(b"a")), Busy)


def test_a_token_is_read_from_the_clock_after_the_record_is_there(alias: str) -> None:
    """B-02: an owner that claimed and released before this insert has a lower token, even after the first read."""
    times: list[float] = []

    def clock() -> float:
        # Once the row is inserted, or with SQLite once this transaction is the one that writes.
        times.append(1000.0 + 7 * len(times))
        return times[-1]

    with _backend(alias, clock=clock) as backend:
        assert _lease(backend).token == times[-1] * 1_000_000


def test_the_databases_clock_decides(server_alias: str) -> None:
    """L-07: the clock of the database, not of this machine."""
    with _backend(server_alias) as backend:
        lease = _lease(backend)
        assert abs(lease.token / 1e6 - time.time()) < 60
        assert abs(backend.now() - time.time()) < 60


def test_refused_duplicates_take_no_lock(server_alias: str) -> None:
    """B-11b: a replay, a 409, a 422 and a refusal only read, even if the rows are locked."""
    with _backend(server_alias, timeout=20) as backend:
        _lease(backend, b"running")
        backend.complete(Complete(_lease(backend, b"completed"), b"response"))
        backend.fail(Fail(_lease(backend, b"final"), final=True))
        with transaction.atomic(server_alias):
            _execute(server_alias, f"SELECT record_id FROM {RECORDS} FOR UPDATE")
            started = time.monotonic()
            assert isinstance(backend.claim(claim_of(b"running")), Busy)
            assert backend.claim(claim_of(b"completed")) == Finished(b"response")
            assert backend.claim(claim_of(b"completed", fingerprint=b"other")) == Mismatch()
            assert isinstance(backend.claim(claim_of(b"final")), Refused)
            # One of them waiting would have taken 20 seconds.
            assert time.monotonic() - started < 10


def test_a_locked_row_is_unavailable_in_time(alias: str) -> None:
    """B-10: within call_timeout, with Django's error as the cause; afterwards calls succeed."""
    with _backend(alias, timeout=1) as backend:
        lease = _lease(backend)
        with transaction.atomic(alias):
            _execute(alias, f"UPDATE {RECORDS} SET attempt = attempt")
            started = time.monotonic()
            with pytest.raises(BackendUnavailable) as caught:
                backend.complete(Complete(lease, b"response"))
            assert time.monotonic() - started < backend.call_timeout + 2
            assert isinstance(caught.value.__cause__, DatabaseError)
        backend.complete(Complete(lease, b"response"))


def test_waiting_for_its_own_transaction_is_reported(sqlite_alias: str) -> None:
    """SQLite has one writer: under ATOMIC_REQUESTS a stage after the view's first write blocks itself."""
    with _backend(sqlite_alias, timeout=0.1) as backend, transaction.atomic(sqlite_alias):
        _execute(sqlite_alias, "CREATE TABLE orders (id)")
        with pytest.raises(BackendUnavailable, match=r"this thread's own transaction .* TransactionTestCase"):
            backend.claim(claim_of(b"a"))


# Errors


def test_missing_tables_are_reported_with_the_command(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The first request raises an error that names the command."""
    with (
        on_django.aliased(on_django.sqlite(tmp_path), migrated=False) as alias,
        _backend(alias) as backend,
        pytest.raises(BackendUnavailable, match=f"manage.py migrate open_idempotency --database {alias}`"),
    ):
        backend.claim(claim_of(b"a"))


def test_missing_tables_are_reported_on_servers_too(server_alias: str) -> None:
    """In any language of the server."""
    _execute(server_alias, f"ALTER TABLE {RECORDS} RENAME TO {RECORDS}_elsewhere")
    try:
        with _backend(server_alias) as backend, pytest.raises(BackendUnavailable, match=r"manage\.py migrate"):
            backend.claim(claim_of(b"a"))
    finally:
        _execute(server_alias, f"ALTER TABLE {RECORDS}_elsewhere RENAME TO {RECORDS}")


@pytest.mark.parametrize("damage", ["record_version = 2", "status = 7"])
def test_a_row_that_cannot_be_read_is_left_alone(alias: str, damage: str) -> None:
    """B-08b: no verb runs or overwrites it; B-09: an operator can delete it."""
    with _backend(alias) as backend:
        lease = _lease(backend)
        _execute(alias, f"UPDATE {RECORDS} SET {damage}")
        before = _execute(alias, f"SELECT * FROM {RECORDS}")
        for attempt in (
            lambda: backend.claim(claim_of(b"a")),
            lambda: backend.get(Get(b"a")),
            lambda: backend.complete(Complete(lease, b"response")),
            lambda: backend.save_stage(SaveStage(lease, stage_of("late"))),
            lambda: backend.fail(Fail(lease)),
        ):
            with pytest.raises(RecordUnreadable):
                attempt()
        assert _execute(alias, f"SELECT * FROM {RECORDS}") == before
        assert backend.delete(b"a")
        _lease(backend)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """B-08b."""
    (tmp_path / "records.db").write_bytes(b"not a database at all" * 100)
    with (
        on_django.aliased(on_django.sqlite(tmp_path), migrated=False) as alias,
        _backend(alias) as backend,
        pytest.raises(RecordUnreadable),
    ):
        backend.claim(claim_of(b"a"))


def test_a_database_in_the_memory_of_one_connection_is_refused() -> None:
    """Each connection would have a database of its own."""
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    with (
        on_django.aliased(settings, migrated=False) as alias,
        _backend(alias) as backend,
        pytest.raises(BackendUnavailable, match="memory of a single connection"),
    ):
        backend.claim(claim_of(b"a"))


def test_the_shared_memory_of_a_test_runner_works() -> None:
    """The in-memory SQLite of Django's test runner, whose connections share one database."""
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": "file:oi_test?mode=memory&cache=shared"}
    with on_django.aliased(settings, migrated=False) as alias:
        on_django.call_command("migrate", "open_idempotency", database=alias, verbosity=0, skip_checks=True)
        with _backend(alias) as backend:
            backend.complete(Complete(_lease(backend), b"response"))
            assert backend.claim(claim_of(b"a")) == Finished(b"response")
        raw = connections[alias].connection
    raw.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("django://nowhere", "DATABASES has no 'nowhere'; it has default"),
        ("django://", "write django://default"),
        ("django:///default", "write django://default"),
        ("django://default/x", "write django://default"),
        ("django://default?timeout=0", "timeout: must be more than 0"),
        ("django://default?max_connections=0", "max_connections: expected a whole number"),
        ("django://default?share=yes", "no option 'share'; known: max_connections, timeout"),
    ],
)
def test_a_wrong_url_is_refused_at_start(url: str, message: str) -> None:
    """The errors for wrong URLs."""
    with pytest.raises(ConfigurationError, match=message):
        open_backend(url)


def test_the_application_has_to_be_installed() -> None:
    """Its migrations create the tables."""
    with override_settings(INSTALLED_APPS=[]), pytest.raises(ConfigurationError, match="INSTALLED_APPS"):
        DjangoBackend()


def test_another_kind_of_database_is_refused() -> None:
    """The error lists the supported ones."""
    with (
        on_django.aliased({"ENGINE": "django.db.backends.dummy"}, migrated=False) as alias,
        pytest.raises(ConfigurationError, match="knows mysql, postgresql, sqlite"),
    ):
        DjangoBackend(alias)


def test_sync_and_async_lead_to_each_other() -> None:
    """B-12: from either one to the other."""
    made = AsyncDjangoBackend("default", timeout=1)
    assert made.to_sync().to_async() is made


# Connections


def test_constructing_opens_nothing(alias: str) -> None:
    """B-11: a preloading server has no connection to inherit."""
    with _backend(alias) as backend:
        assert _idle(backend) == 0
        _lease(backend)
        assert _idle(backend) == 1


def test_the_end_of_a_request_closes_as_conn_max_age_says(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Django's own rule applies to the backend's connections."""
    for max_age, left in ((0, 0), (None, 1), (600, 1)):
        with _database("sqlite", request, tmp_path, CONN_MAX_AGE=max_age) as alias, _backend(alias) as backend:
            backend.get(Get(b"a"))
            request_finished.send(sender=None)
            assert _idle(backend) == left, max_age


def test_awaited_calls_leave_no_connection_in_their_threads(alias: str) -> None:
    """I11: threads return their connections, so there are as many as concurrent calls, up to the limit."""

    async def many(backend: DjangoBackend) -> None:
        aio = backend.to_async()
        results = await asyncio.gather(*(aio.claim(claim_of(b"%d" % number)) for number in range(30)))
        assert all(isinstance(result, Leased) for result in results)

    with _backend(alias, timeout=20, max_connections=3) as backend:
        asyncio.run(many(backend))
        assert 1 <= _idle(backend) <= 3


def test_a_missing_free_connection_is_reported_in_time(alias: str) -> None:
    """I11: connections and waiting are bounded."""
    inside, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(20)
        return 1_800_000_000.0

    def claim(backend: DjangoBackend) -> None:
        until = time.monotonic() + 20
        while not inside.is_set() and time.monotonic() < until:  # to connect may take longer than the timeout
            with suppress(BackendUnavailable):  # a slow machine delayed it beyond its limit
                backend.claim(claim_of(b"a"))

    with _backend(alias, timeout=0.2, max_connections=1, clock=clock) as backend:
        thread = threading.Thread(target=claim, args=(backend,))
        thread.start()
        assert inside.wait(20)
        with pytest.raises(BackendUnavailable, match="no connection free"):
            backend.get(Get(b"b"))
        go_on.set()
        thread.join(20)


def test_a_blocking_call_on_an_event_loop_works(alias: str) -> None:
    """B-12: Django refuses to connect on a loop; the call is made in a thread."""

    async def call(backend: DjangoBackend) -> None:
        _lease(backend)

    with _backend(alias) as backend:
        asyncio.run(call(backend))


def test_a_test_runners_other_database_is_found(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The alias's test database is used, although a connection was open before."""
    (tmp_path / "other").mkdir()
    with (
        _database("sqlite", request, tmp_path / "other") as other,
        _database("sqlite", request, tmp_path) as alias,
        _backend(alias) as backend,
    ):
        _lease(backend)
        connections.settings[alias]["NAME"] = connections.settings[other]["NAME"]
        assert backend.get(Get(b"a")) is None


def test_stored_responses_are_in_no_log_of_statements(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """With DEBUG, Django logs statements with their parameters."""
    with override_settings(DEBUG=True), caplog.at_level("DEBUG"), _backend(alias) as backend:
        backend.complete(Complete(_lease(backend), b"5105105105105100"))
    assert "5105105105105100" not in caplog.text
    assert RECORDS not in caplog.text


def test_it_works_again_after_the_server_restarted(tmp_path: Path) -> None:
    """B-10: the first call notices the dead connections and replaces them."""
    server = PostgresServer(18, "fsync=off").start()
    try:
        with on_django.aliased(on_django.postgresql(server, "postgres")) as alias, _backend(alias) as backend:
            lease = _lease(backend)
            server.kill()
            with pytest.raises(BackendUnavailable):
                backend.get(Get(b"a"))
            server.start()
            backend.get(Get(b"a"))
            server.kill()
            server.start()
            backend.complete(Complete(lease, b"response"))
            assert backend.claim(claim_of(b"a")) == Finished(b"response")
    finally:
        server.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP on Windows")
def test_a_server_that_stopped_is_unavailable_in_time(postgres_alias: str) -> None:
    """B-10: its machine acknowledges packets, and it never replies."""
    with _backend(postgres_alias, timeout=1) as backend:
        _lease(backend)
        connection = backend._connections._pools.get().idle[0]
        pid = connection.connection.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="no response in time"):
                backend.get(Get(b"a"))
            assert time.monotonic() - started < backend.call_timeout + 2
        finally:
            os.kill(pid, signal.SIGCONT)
        assert backend.get(Get(b"a")) is not None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux only")
@pytest.mark.parametrize("scenario", ["no_file_inherited", "beside_threads"])
def test_a_fork_inherits_nothing(scenario: str, tmp_path: Path) -> None:
    """B-11: gunicorn --preload; SQLite's locks do not survive a fork, so no file handle may be inherited."""
    script = Path(__file__).with_name("django_fork_script.py")
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(script), scenario]
    ended = subprocess.run(
        [*command, str(tmp_path / "records.db")], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_migrating_by_the_backend(tmp_path: Path) -> None:
    """``open-idempotency migrate django://default``, for deployments without manage.py."""
    with on_django.aliased(on_django.sqlite(tmp_path), migrated=False) as alias, _backend(alias) as backend:
        assert backend.migrate() == ["0001_records_and_ledger", "0002_about", "0003_permissions"]
        assert backend.migrate() == []
        _lease(backend)


def test_the_models_need_no_further_migration() -> None:
    """``makemigrations --check`` of a project finds no change."""
    on_django.call_command("makemigrations", "open_idempotency", check=True, dry_run=True, skip_checks=True)
