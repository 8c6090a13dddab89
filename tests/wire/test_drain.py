"""Rolling deploys: SIGTERM reaches a process whose handler does not end, and the retry at another one runs at once.

The lease is 30 s. The retry is one request, sent after the old process has ended: it gets 409 if the lease was not
released.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.matrix import is_full
from tests.unit.builders import eventually
from tests.wire.case import Case
from tests.wire.client import Response
from tests.wire.conftest import Running, StartServer

#: seconds; of gunicorn in ``kinds``
GRACE = 2.0
HOOKS = ("--config", "python:open_idempotency.gunicorn")
NO_GRACE = ("--timeout-graceful-shutdown", "0")
#: a host that kills two seconds after SIGTERM, and the application's setting for that
KILLED = (("--workers-kill-timeout", "2"), {"WIRE_SIGTERM": "1"})


class Deployed(NamedTuple):
    """A server and an adapter, and how its operator has configured it for SIGTERM."""

    kind: str
    adapter: str
    options: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    path: str = "/charges"

    def __str__(self) -> str:
        return ":".join([self.kind, self.adapter, *filter(None, [self.path.strip("/").partition("/")[0]])])


def lifespan_of(adapter: str) -> dict[str, str]:
    """The application that gets the lifespan events."""
    return {"WIRE_LIFESPAN": f"{adapter}/default"}


DJANGO = {**lifespan_of("django-asgi"), "WIRE_DRAINED": "yes"}
PREPARED = [
    Deployed("gunicorn-sync", "django-wsgi", HOOKS),
    Deployed("gunicorn-uvicorn", "django-asgi", ("--graceful-timeout", "8"), DJANGO),
    Deployed("uvicorn-httptools", "fastapi", NO_GRACE, lifespan_of("fastapi")),
    Deployed("granian", "asgi", *KILLED),
    Deployed("waitress", "flask", (), {"WIRE_SIGTERM": "1"}),
]
#: one for each manner of stopping a worker; the short form has one for each kind of server
EVERY_WAY = [
    Deployed("gunicorn-gthread", "flask", HOOKS),
    Deployed("gunicorn-gevent", "wsgi", HOOKS),
    Deployed("gunicorn-asgi", "fastapi", HOOKS, lifespan_of("fastapi")),
    Deployed("uvicorn-httptools", "django-asgi", NO_GRACE, DJANGO),
]
#: the rest of the matrix, with OI_TEST_DRAIN=full; all servers are in the table above
FULL = [
    *[Deployed(f"gunicorn-{worker}", "wsgi", HOOKS) for worker in ("sync", "gthread")],
    Deployed("gunicorn-sync", "flask", HOOKS),
    Deployed("gunicorn-gthread", "django-wsgi", HOOKS),
    Deployed("gunicorn-gevent", "flask", HOOKS),
    Deployed("gunicorn-gevent", "django-wsgi", HOOKS),
    Deployed("gunicorn-asgi", "django-asgi", HOOKS, DJANGO),
    Deployed("gunicorn-uvicorn", "fastapi", ("--graceful-timeout", "8"), lifespan_of("fastapi")),
    Deployed("gunicorn-uvicorn", "django-asgi", (*HOOKS, "--graceful-timeout", "8"), lifespan_of("django-asgi")),
    Deployed("uvicorn-h11", "asgi", NO_GRACE, {"WIRE_DRAINED": "yes"}),
    Deployed("granian", "fastapi", *KILLED),
    Deployed("granian", "django-asgi", *KILLED),
    Deployed("waitress", "wsgi", (), {"WIRE_SIGTERM": "1"}),
    Deployed("waitress", "django-wsgi", (), {"WIRE_SIGTERM": "1"}),
]
if is_full("WIRE"):
    PREPARED += EVERY_WAY
if os.environ.get("OI_TEST_DRAIN") == "full":
    PREPARED += FULL


IN_THREAD = "/sync/charges"
#: handlers in a thread, where every server but granian cancels the request, which stops no thread
IN_THREADS = [
    Deployed("uvicorn-httptools", "fastapi", NO_GRACE, lifespan_of("fastapi"), IN_THREAD),
    Deployed("hypercorn", "django-asgi", ("--graceful-timeout", "0"), DJANGO, IN_THREAD),
    Deployed("granian", "fastapi", (), {}, IN_THREAD),
]
if is_full("WIRE"):
    IN_THREADS += [
        Deployed("hypercorn", "fastapi", ("--graceful-timeout", "0"), lifespan_of("fastapi"), IN_THREAD),
        Deployed("gunicorn-uvicorn", "fastapi", ("--graceful-timeout", "15"), lifespan_of("fastapi"), IN_THREAD),
        Deployed("uvicorn-h11", "django-asgi", NO_GRACE, DJANGO, IN_THREAD),
    ]


def runs(pid: int) -> bool:
    """Whether the process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def deploy(start_server: StartServer, running: Running, deployed: Deployed) -> tuple[Case, Response]:
    """Stop a process during a request, wait for its end, and retry at the next process."""
    kind, adapter, options, environment, path = deployed
    successor = running("uvicorn-httptools" if adapter in ("asgi", "fastapi", "django-asgi") else "gunicorn-sync")
    case = Case(start_server(kind, *options, folder=successor.folder, **environment), adapter, "staged", path=path)
    with case.begin():
        case.journal.await_line("arrived")
        pids = case.server.pids()
        case.server.terminate()
        assert case.server.wait(), f"it did not end: {case.server.log[-3000:]}"
        eventually(lambda: not any(map(runs, pids)))
    case.server = successor
    return case, case.ask()


@pytest.mark.parametrize("deployed", PREPARED, ids=str)
def test_a_deploy_costs_no_lease(start_server: StartServer, running: Running, deployed: Deployed) -> None:
    """L-06, L-04: an unfinished attempt is released when its process ends; stages stay, attempts count."""
    case, retry = deploy(start_server, running, deployed)
    assert (retry.status, retry.replayed, retry.body) == (201, False, b"attempt 2")
    assert case.journal.lines() == ["reserve", "arrived", "charge"]


@pytest.mark.parametrize("deployed", IN_THREADS, ids=str)
def test_a_handler_in_a_thread_ends_before_its_process(
    start_server: StartServer, running: Running, deployed: Deployed
) -> None:
    """L-09, L-06: cancellation stops no thread, so the process waits for it, and a retry gets its response."""
    kind, adapter, options, environment, path = deployed
    successor = running("uvicorn-httptools")
    case = Case(start_server(kind, *options, folder=successor.folder, **environment), adapter, "gated", path=path)
    with case.begin():
        case.journal.await_line("arrived")
        case.server.terminate()
        case.server, ended = successor, case.server
        while_draining = time.monotonic() + 1.5 * GRACE
        statuses = {case.ask().status for _ in iter(lambda: time.monotonic() < while_draining, False)}
        case.journal.gate().set()
        refusals, retry = case.ask_until_admitted()
    assert statuses | {*refusals} == {409}
    assert (retry.status, retry.replayed) == (201, True)
    assert case.journal.lines() == ["arrived", "ran"]
    assert ended.wait(), f"it did not end: {ended.log[-3000:]}"


def test_a_handler_in_a_thread_that_does_not_end_keeps_its_lease(start_server: StartServer, running: Running) -> None:
    """L-09: the thread may outlive the drain, so a retry waits for the lease."""
    in_thread = Deployed("uvicorn-httptools", "fastapi", NO_GRACE, lifespan_of("fastapi"), IN_THREAD)
    case, retry = deploy(start_server, running, in_thread)
    assert retry.status == 409
    assert case.journal.lines() == ["reserve", "arrived"]


def test_a_worker_that_a_reload_replaces_may_finish(start_server: StartServer) -> None:
    """L-06: gunicorn kills no worker at SIGHUP, so nothing is released, however long the handler takes."""
    server = start_server("gunicorn-gthread", *HOOKS)
    case = Case(server, "flask", "staged")
    with case.begin() as connection:
        case.journal.await_line("arrived")
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: len(server.pids()) == 3)
        while_draining = time.monotonic() + 1.5 * GRACE
        statuses = {case.ask().status for _ in iter(lambda: time.monotonic() < while_draining, False)}
        case.journal.gate().set()
        first = connection.read()
    assert statuses == {409}
    assert (first.status, first.body) == (201, b"attempt 1")
    assert case.ask().replayed


def test_a_worker_that_is_to_end_at_once_releases_at_once(start_server: StartServer, running: Running) -> None:
    """L-06: at SIGINT; gunicorn itself would wait for its threads before it kills them."""
    successor = running("gunicorn-sync")
    server = start_server("gunicorn-gthread", *HOOKS, "--graceful-timeout", "30", folder=successor.folder)
    case = Case(server, "flask", "staged")
    with case.begin():
        case.journal.await_line("arrived")
        os.kill(server.pid, signal.SIGINT)
        case.server = successor
        _, retry = case.ask_until_admitted()
    assert (retry.status, retry.body) == (201, b"attempt 2")
