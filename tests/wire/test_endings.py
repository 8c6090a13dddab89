"""Handlers that their server ends: SystemExit, KeyboardInterrupt, a worker's time limit, SIGTERM.

Each test has its own server. If an attempt was recorded as failed, the retry does not wait: the lease is 30 s, and no
test waits that long.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from open_idempotency.backend import Get, Status
from tests.wire.case import Case
from tests.wire.client import Connection
from tests.wire.conftest import Running, StartServer
from tests.wire.kinds import ADAPTERS, KINDS
from tests.wire.test_workers import records

EXITS = [f"{kind}:{ADAPTERS[KINDS[kind].interface][0]}" for kind in KINDS if KINDS[kind].in_matrix]
EXITS += ["uvicorn-httptools:django-asgi", "gunicorn-sync:django-wsgi", "gunicorn-gthread:flask"]
INTERRUPTS = ["uvicorn-h11:asgi", "hypercorn:asgi", "granian:asgi", "gunicorn-sync:wsgi", "waitress:wsgi"]


def status_or_cut(connection: Connection) -> int | None:
    """The status, or None if the connection ended without a response."""
    try:
        return connection.read().status
    except OSError:
        return None


@pytest.mark.parametrize(
    ("script", "pair"), [("exit", pair) for pair in EXITS] + [("interrupt", pair) for pair in INTERRUPTS]
)
def test_an_exit_in_a_handler_is_a_failed_attempt_and_the_retry_resumes_at_once(
    start_server: StartServer, running: Running, script: str, pair: str
) -> None:
    """L-04: even if the server ends, the stage is kept and the retry does not wait for the lease."""
    kind, _, adapter = pair.partition(":")
    successor = running(kind)
    case = Case(start_server(kind, folder=successor.folder), adapter, script)
    with case.begin():
        case.journal.await_line("reserve")
        case.server = successor
        _, retry = case.ask_until_admitted()

    assert (retry.status, retry.replayed, retry.body) == (201, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "charge"]


@pytest.mark.parametrize("adapter", ["wsgi", "flask", "django-wsgi"])
def test_a_sync_worker_at_its_time_limit_fails_and_the_retry_resumes_at_once(
    start_server: StartServer, adapter: str
) -> None:
    """L-04: gunicorn raises SystemExit in the handler; `fail` is recorded before the worker ends."""
    server = start_server("gunicorn-sync", "--timeout", "1", "--preload", WIRE_WARM=f"{adapter}/default")
    case = Case(server, adapter, "staged")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        first = status_or_cut(connection)
        _, retry = case.ask_until_admitted()

    assert first in (None, 500)
    assert (retry.status, retry.replayed, retry.body) == (201, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "arrived", "charge"]


def test_a_sync_worker_that_refuses_its_time_limit_is_killed_and_the_lease_ends(start_server: StartServer) -> None:
    """L-02, O-09: nothing could be recorded, so retries get 409 until the lease ends, and no longer."""
    server = start_server("gunicorn-sync", "--timeout", "1", "--preload", WIRE_WARM="wsgi/brisk")
    case = Case(server, "wsgi", "stubborn", variant="brisk")
    with case.begin() as connection:
        case.journal.await_line("refused to end")
        assert status_or_cut(connection) is None
        with records(f"sqlite:///{server.folder}/records.db") as backend:
            (left,) = [record for record in backend.scan() if record.status is Status.IN_PROGRESS]
            _, retry = case.ask_until_admitted()
            after = backend.get(Get(left.record_id))

    assert after is not None
    assert after.claimed_at >= left.lease_end, "it ran beside a living lease"
    assert (retry.status, retry.body) == (201, b"attempt 2")
    lines = case.journal.lines()
    assert (lines[0], lines[-1], lines.count("reserve"), lines.count("charge")) == ("reserve", "charge", 1, 1)


@pytest.mark.parametrize("adapter", ["asgi", "fastapi", "django-asgi"])
def test_sigterm_without_grace_releases_what_hypercorn_cancels(
    start_server: StartServer, running: Running, adapter: str
) -> None:
    """L-06, L-04: the retry does not wait for a lease; the stage that was done stays done."""
    successor = running("hypercorn")
    server = start_server("hypercorn", "--graceful-timeout", "0", folder=successor.folder)
    case = Case(server, adapter, "staged")
    with case.begin():
        case.journal.await_line("arrived")
        server.terminate()
        case.server = successor
        _, retry = case.ask_until_admitted()
    case.journal.gate().set()

    assert (retry.status, retry.replayed, retry.body) == (201, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "arrived", "charge"]
    assert server.wait(), "it did not end"


@pytest.mark.parametrize("adapter", ["asgi", "fastapi", "django-asgi"])
def test_sigterm_without_grace_on_uvicorn_costs_a_lease_at_most(
    start_server: StartServer, running: Running, adapter: str
) -> None:
    """L-02, L-06: uvicorn raises the signal again before the cancelled tasks can end, so the lease has to end."""
    successor = running("uvicorn-httptools")
    server = start_server("uvicorn-httptools", "--timeout-graceful-shutdown", "0", folder=successor.folder)
    case = Case(server, adapter, "staged", variant="brisk")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        server.terminate()
        assert status_or_cut(connection) in (None, 500)
        case.server = successor
        _, retry = case.ask_until_admitted()

    assert (retry.status, retry.replayed, retry.body) == (201, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "arrived", "charge"]
    assert server.wait(), "it did not end"


@contextmanager
def slow_records(folder: Path) -> Iterator[None]:
    """Hold the write lock of the records within the block."""
    with closing(sqlite3.connect(folder / "records.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_sigterm_without_grace_on_uvicorn_ends_after_what_it_cancels_is_recorded(
    start_server: StartServer, running: Running
) -> None:
    """L-06: even if recording is slow, as the held write lock ensures here."""
    successor = running("uvicorn-httptools")
    server = start_server(
        "uvicorn-httptools",
        *("--timeout-graceful-shutdown", "0"),
        folder=successor.folder,
        WIRE_LIFESPAN="fastapi/default",
    )
    case = Case(server, "fastapi", "staged")
    with case.begin():
        case.journal.await_line("arrived")
        with slow_records(server.folder):
            server.terminate()
            server.wait(1.0)
        assert server.wait(), "it did not end"
    case.server = successor

    assert case.ask().body == b"attempt 2"


@pytest.mark.parametrize("pair", ["uvicorn-httptools:asgi", "hypercorn:asgi", "granian:asgi", "gunicorn-gthread:wsgi"])
def test_sigterm_with_grace_lets_the_handler_finish_and_its_response_is_replayed_elsewhere(
    start_server: StartServer, running: Running, pair: str
) -> None:
    """L-06: the old worker responds and records; the new one replays."""
    kind, _, adapter = pair.partition(":")
    successor = running(kind)
    server = start_server(kind, folder=successor.folder)
    case = Case(server, adapter, "gated")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        server.terminate()
        case.journal.gate().set()
        first = connection.read()
    case.server = successor
    again = case.ask()

    assert (first.status, again.status, again.replayed, again.body) == (201, 201, True, first.body)
    assert case.journal.lines() == ["arrived", "ran"]
