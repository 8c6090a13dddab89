"""Records in the memory of one process, on servers with several workers: a warning on each, and no false alarm."""

from __future__ import annotations

import time

import pytest

from tests.wire.case import Case
from tests.wire.conftest import StartServer
from tests.wire.journal import PATIENCE
from tests.wire.kinds import KINDS
from tests.wire.servers import Server

SEVERAL = {
    "uvicorn --workers": ("uvicorn-h11", "--workers", "2"),
    "hypercorn --workers": ("hypercorn", "--workers", "2"),
    "granian --workers": ("granian", "--workers", "2"),
    "gunicorn --workers": ("gunicorn-sync",),
    "gunicorn --preload": ("gunicorn-sync", "--preload"),
}
ONE = {
    "uvicorn --reload": ("uvicorn-h11", "--reload"),
    "hypercorn": ("hypercorn",),
    "gunicorn --preload": ("gunicorn-gthread", "--preload"),
}
WARNING = "memory:// keeps records in the memory of one process"


def _started(start_server: StartServer, kind: str, *options: str) -> tuple[Server, Case]:
    interface = KINDS[kind].interface
    built = f"{interface}/in-memory"
    server = start_server(kind, *options, WIRE_BUILT=built, WIRE_BACKEND="memory://")
    return server, Case(server, interface, "charge", variant="in-memory")


@pytest.mark.parametrize("words", SEVERAL.values(), ids=SEVERAL)
def test_several_workers_of_a_server_are_named(start_server: StartServer, words: tuple[str, ...]) -> None:
    """B-24: once, with the pids of two workers and the address, by the second worker's first request."""
    server, case = _started(start_server, *words)
    deadline = time.monotonic() + PATIENCE
    while WARNING not in server.log:
        assert time.monotonic() < deadline, server.log[-3000:]
        case.ask()
    (line,) = [line for line in server.log.splitlines() if WARNING in line]
    workers = [pid for pid in server.pids() if str(pid) in line]
    assert len(workers) == 2
    assert f":{server.port}:" in line


@pytest.mark.parametrize("words", ONE.values(), ids=ONE)
def test_one_worker_is_no_reason_to_warn(start_server: StartServer, words: tuple[str, ...]) -> None:
    """B-24: also if another process supervises it, or made the backend before a fork."""
    server, case = _started(start_server, *words)
    bodies = {case.ask().body for _ in range(5)}
    assert len(bodies) == 1
    assert WARNING not in server.log
