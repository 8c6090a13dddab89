"""Rows 5 and 7: the backend fails while handlers run on real servers, and stays down for longer than clients wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.proxy import FaultProxy
from tests.faults.records import OnServer
from tests.wire.case import Case
from tests.wire.servers import Server

VIEWS = 8
#: seconds; a request that waits for a thread waits for longer
HELD_UP = 5.0
on_valkey = pytest.mark.parametrize("backend_kind", ["valkey"])


class Site(NamedTuple):
    """A server with one thread more than there are views, and an adapter."""

    kind: str
    adapter: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{self.adapter}"


SITES = [
    Site("uvicorn-httptools", "fastapi"),
    Site("gunicorn-gthread", "flask", ("--threads", str(VIEWS + 1))),
    Site("gunicorn-sync", "flask", ("--workers", str(VIEWS + 1))),
]
on_sites = pytest.mark.parametrize("site", SITES, ids=str)


PATIENT = ("--graceful-timeout", "10")
STOPPED = [
    Site("uvicorn-httptools", "fastapi"),
    Site("gunicorn-gthread", "flask", PATIENT),
    Site("gunicorn-sync", "django-wsgi", PATIENT),
    pytest.param(Site("hypercorn", "fastapi"), marks=pytest.mark.full_form),
    pytest.param(Site("granian", "fastapi"), marks=pytest.mark.full_form),
    pytest.param(Site("waitress", "wsgi"), marks=pytest.mark.full_form),
    pytest.param(Site("gunicorn-gevent", "flask", PATIENT), marks=pytest.mark.full_form),
    pytest.param(Site("gunicorn-asgi", "fastapi", PATIENT), marks=pytest.mark.full_form),
]


class Absence(NamedTuple):
    """How long the backend is down, and within which time clients get finished responses, in seconds."""

    variant: str
    away: float
    within: float


ABSENCES = [
    Absence("impatient", 3.0, 3.0),
    pytest.param(Absence("default-redis", 20.0, 7.0), marks=pytest.mark.full_form),
]


@on_valkey
@on_sites
@pytest.mark.parametrize("absence", ABSENCES, ids=lambda absence: f"{absence.away:g} s")
@pytest.mark.fault("silent partition under running views, on real servers", row=7, invariants=("I2", "I4", "I9", "I11"))
def test_finished_responses_are_out_in_time_and_recorded_when_the_store_is_back(
    site: Site, absence: Absence, records: OnServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """L-08: requests without a key are not delayed, each effect happened once, and the retry replays."""
    environment = {
        "WIRE_BACKEND": records.at(proxy.port, options=""),
        "WIRE_BUILT": f"{site.adapter}/{absence.variant}",
    }
    with Server(site.kind, tmp_path, site.options, **environment) as server:
        cases = [Case(server, site.adapter, "gated", variant=absence.variant) for _ in range(VIEWS)]
        connections = [case.begin() for case in cases]
        for case in cases:
            case.journal.await_line("arrived")
        proxy.swallow()
        gone = time.monotonic()
        for case in cases:
            case.journal.gate().set()
        plain = Case(server, site.adapter, "charge", variant=absence.variant)
        asked = time.monotonic()
        assert plain.ask(key=None).status == 201
        assert time.monotonic() - asked < HELD_UP
        first = [connection.read() for connection in connections]
        assert time.monotonic() - gone < absence.within
        assert [(response.status, response.values(b"idempotency-status")) for response in first] == [
            (201, [b"unrecorded"])
        ] * VIEWS
        time.sleep(max(0.0, gone + absence.away - time.monotonic()))  # the duration of the fault, not a synchronisation
        proxy.heal()
        for case, response in zip(cases, first, strict=True):
            _, again = case.ask_until_admitted()
            assert (again.status, again.replayed, again.body) == (201, True, response.body)
            assert case.journal.lines() == ["arrived", "ran"]
        for connection in connections:
            connection.close()


@on_valkey
@pytest.mark.full_form
@pytest.mark.fault("silent partition under a stage, in a worker with a time limit", row=7, invariants=("I11",))
def test_a_stage_gives_up_before_gunicorn_kills_its_worker(
    records: OnServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """L-08: the gunicorn hooks read its ``timeout``; the client gets a response, and the retry runs at once."""
    hooks = ("--config", "python:open_idempotency.gunicorn", "--workers", "1", "--timeout", "8")
    with Server("gunicorn-sync", tmp_path, hooks, WIRE_BACKEND=records.at(proxy.port, options="")) as server:
        case = Case(server, "flask", "staged", variant="impatient")
        with case.begin() as connection:
            case.journal.await_line("arrived")
            pids = server.pids()
            proxy.swallow()
            case.journal.gate().set()
            assert connection.read().status == 500
        assert server.pids() == pids
        proxy.heal()
        _, again = case.ask_until_admitted()
        assert (again.status, again.body) == (201, b"attempt 2")


@on_valkey
@pytest.mark.parametrize("site", STOPPED, ids=str)
@pytest.mark.fault("SIGTERM while responses wait to be recorded", row=5, invariants=("I2", "I4"))
def test_a_server_that_is_stopped_records_what_waits_before_it_ends(
    site: Site, records: OnServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    """L-06, L-08: the backend recovers while the process is ending; the retry at another one replays."""
    environment = {"WIRE_LIFESPAN": f"{site.adapter}/impatient"} if site.adapter == "fastapi" else {}
    if site.kind == "waitress":  # it has no signal handler
        environment = {"WIRE_SIGTERM": "0"}
    elsewhere = "uvicorn-httptools" if site.adapter == "fastapi" else "gunicorn-sync"
    backend = records.at(proxy.port, options="")
    with (
        Server(elsewhere, tmp_path, WIRE_BACKEND=records.at(options="")) as successor,
        Server(site.kind, tmp_path, site.options, WIRE_BACKEND=backend, **environment) as server,
    ):
        case = Case(server, site.adapter, "gated", variant="impatient")
        with case.begin() as connection:
            case.journal.await_line("arrived")
            proxy.swallow()
            case.journal.gate().set()
            first = connection.read()
        assert (first.status, first.values(b"idempotency-status")) == (201, [b"unrecorded"])
        server.terminate()
        assert not server.wait(1.0), "it has not waited"
        proxy.heal()
        assert server.wait(15.0), f"it did not end: {server.log[-3000:]}"
        case.server = successor
        again = case.ask()
        assert (again.status, again.replayed, again.body) == (201, True, first.body)
