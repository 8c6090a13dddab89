"""Worker processes and greenlets: forks after construction, heartbeats in them, concurrent requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend, Status
from tests.wire.case import Case
from tests.wire.conftest import NewCase, StartServer
from tests.wire.journal import PATIENCE
from tests.wire.variants import BRISK_LEASE


@contextmanager
def records(url: str) -> Iterator[Backend]:
    """The servers' records, opened in this process."""
    backend = open_backend(url)
    try:
        yield backend
    finally:
        backend.close()


def lease_end(backend: Backend) -> float:
    """When the lease of the one record in progress ends, by the backend's clock."""
    (found,) = [record for record in backend.scan() if record.status is Status.IN_PROGRESS]
    return found.lease_end


def refusals_while_renewed(case: Case, backend: Backend) -> list[int]:
    """The duplicates' responses at each observed renewal, until the lease has outlived its first end."""
    seen, statuses = [lease_end(backend)], [case.ask().status]
    deadline = time.monotonic() + PATIENCE
    while seen[-1] < seen[0] + 1.2 * BRISK_LEASE:
        assert time.monotonic() < deadline, f"no renewal after {seen}"
        now = lease_end(backend)
        if now == seen[-1]:
            time.sleep(0.01)
        else:
            seen.append(now)
            statuses.append(case.ask().status)
    assert len(seen) >= 3, "renewed once at most"
    return statuses


@pytest.fixture(params=["sqlite", "valkey"])
def backend_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of records for this test alone, which processes can share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('records')}/records.db"
    url: str = request.getfixturevalue("valkey_url")
    return f"{url}{'&' if '?' in url else '?'}prefix={uuid4().hex}:"


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_workers_forked_from_a_process_that_has_served_keep_their_leases(
    start_server: StartServer, backend_url: str, worker: str
) -> None:
    """B-11, L-01: the parent had connections and a heartbeat thread before the fork; the child makes its own."""
    server = start_server(f"gunicorn-{worker}", "--preload", WIRE_WARM="wsgi/brisk", WIRE_BACKEND=backend_url)
    case = Case(server, "wsgi", "gated", variant="brisk")
    with records(backend_url) as backend, case.begin() as connection:
        case.journal.await_line("arrived")
        during = refusals_while_renewed(case, backend)
        case.journal.gate().set()
        first = connection.read()
    again = case.ask()

    assert set(during) == {409}
    assert (first.status, again.replayed, again.body) == (201, True, first.body)
    assert case.journal.lines() == ["arrived", "ran"]
    assert case.journal.entries()[0][0] != server.pid, "the handler did not run in a child"


def test_greenlets_of_one_worker_have_their_leases_renewed(start_server: StartServer) -> None:
    """L-01: under gevent the heartbeat is a greenlet, which beats while handlers switch."""
    server = start_server("gunicorn-gevent")
    case = Case(server, "wsgi", "gated", variant="brisk")
    with records(f"sqlite:///{server.folder}/records.db") as backend, case.begin() as connection:
        case.journal.await_line("arrived")
        during = refusals_while_renewed(case, backend)
        case.journal.gate().set()
        first = connection.read()

    assert set(during) == {409}
    assert first.status == 201
    assert case.journal.lines() == ["arrived", "ran"]


def test_requests_that_run_at_the_same_time_have_each_their_own_context(served: str, new_case: NewCase) -> None:
    """R-07: `idem` saves and loads stages of its own request, under threads, greenlets and tasks."""
    one, other = new_case("mine"), new_case("mine")
    with one.begin(b"one") as first, other.begin(b"other") as second:
        one.journal.await_line("saved one")
        other.journal.await_line("saved other")
        other.journal.gate().set()
        responses = [second.read().body.split()]
        one.journal.gate().set()
        responses.append(first.read().body.split())

    assert [response[:2] for response in responses] == [[b"other", b"1"], [b"one", b"1"]]
    assert responses[0][2] != responses[1][2]
