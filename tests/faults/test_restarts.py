"""Row 5: the backend dies and restarts, with its log and without; a process dies while it writes to a file."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from open_idempotency import open_backend
from open_idempotency.events import BackendFailed
from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.records import POSTGRES, VERSIONS, OnFile, on_files, on_postgres, on_servers
from tests.faults.site import BRISK, BRISK_POSTGRES, PATIENCE, Order, Worker, admitted, until
from tests.postgres_server import PostgresServer
from tests.servers import Server

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
ROOT = Path(__file__).resolve().parents[2]
#: seconds; longer than a server takes to start on a busy machine
LONG = 15.0


class Host(Protocol):
    """A server that may be killed and restarted."""

    @property
    def url(self) -> str: ...

    def kill(self) -> None: ...

    def start(self) -> object: ...


class _Postgres:
    """A database on a server. ``number``: the signal that kills the server."""

    number = signal.SIGQUIT

    def __init__(self, server: PostgresServer, *, logged: bool) -> None:
        self._server = server
        self.url = server.create_database(uuid4().hex)
        open_backend(self.url).migrate()
        if not logged:
            with server.connect(self.url.rpartition("/")[2]) as operator:
                for table in ("stages", "records"):  # the table with the foreign key comes first
                    operator.execute(f"ALTER TABLE open_idempotency.{table} SET UNLOGGED".encode())

    def kill(self) -> None:
        self._server.kill(self.number)

    def start(self) -> None:
        self._server.start()


@pytest.fixture(scope="module")
def postgres_hosts() -> Iterator[dict[str, PostgresServer]]:
    """Servers for these tests alone, by kind."""
    servers: dict[str, PostgresServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


def _postgres(kind: str, servers: dict[str, PostgresServer], *, logged: bool = True) -> _Postgres:
    if kind not in servers:
        # The system keeps a dead process's writes; only a crash of the machine needs fsync.
        servers[kind] = PostgresServer(VERSIONS[kind], "fsync=off").start()
    return _Postgres(servers[kind], logged=logged)


class StartServer(Protocol):
    def __call__(self, *, logged: bool) -> Host: ...


@pytest.fixture
def start_server(backend_kind: str, postgres_hosts: dict[str, PostgresServer]) -> Iterator[StartServer]:
    """``start_server(logged=…)``: a server that this test may kill; with a log it forgets nothing."""
    servers: list[Server] = []

    def start(*, logged: bool) -> Host:
        if backend_kind in POSTGRES:
            return _postgres(backend_kind, postgres_hosts, logged=logged)
        servers.append(Server(backend_kind, *(DURABLE if logged else ())).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def _url(server: Host) -> str:
    return f"{server.url}?{BRISK_POSTGRES if isinstance(server, _Postgres) else BRISK}"


@on_servers
@pytest.mark.fault("backend killed and started, every write logged", row=5, invariants=("I1", "I2", "I5", "I8"))
def test_a_backend_that_came_back_has_forgotten_nothing(
    start_server: StartServer, effects: Effects, interface: str
) -> None:
    """B-10: while it is down, nothing runs; then the completed request is replayed, the running one owned."""
    server = start_server(logged=True)
    with Worker(interface, _url(server), lease=LONG) as worker:
        done, running, new = Order(plain(effects)), Order(charging(effects, hold="charge")), Order(plain(effects))
        response = worker.post(done)
        owner = worker.start(running)
        running.until_arrived()
        server.kill()
        refused = worker.post(new)
        assert (refused.status, new.runs) == (503, 0)
        server.start()
        assert worker.post_until(new, lambda got: got.status != 503).status == 201
        assert worker.post(done).body == response.body
        assert worker.post(running).status == 409
        running.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(running).body == first.body
    assert sorted(effects.all()) == ["charge 1", "reserve 1", "run 1", "run 1"]


@on_servers
@pytest.mark.fault("backend killed while a response is recorded", row=5, invariants=("I4", "I11"))
def test_a_completion_waits_for_the_backend_to_come_back(
    start_server: StartServer, effects: Effects, interface: str
) -> None:
    """L-08: within ``record_within``; the response goes out unmarked, and is replayed."""
    server = start_server(logged=True)
    with Worker(interface, _url(server), lease=LONG) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        server.kill()
        order.script.release.set()
        worker.await_event(BackendFailed)
        assert not owner.done()
        server.start()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


@on_servers
@pytest.mark.fault("backend killed and started empty, request running", row=5, invariants=("I4", "I6"))
def test_an_owner_whose_record_did_not_come_back_records_its_response(
    start_server: StartServer, effects: Effects, interface: str
) -> None:
    """B-08a, B-10: the empty server has neither script nor record; a completion creates both."""
    server = start_server(logged=False)
    with Worker(interface, _url(server), lease=LONG) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        server.kill()
        server.start()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


@on_servers
@pytest.mark.fault("backend killed and started empty, request completed", row=5, invariants=("I2",), kind="documented")
def test_a_backend_without_a_log_forgets_what_was_completed(start_server: StartServer, effects: Effects) -> None:
    """A completed response is lost, so its retry runs again."""
    server = start_server(logged=False)
    with Worker("wsgi", _url(server)) as worker:
        order = Order(plain(effects))
        first = worker.post(order)
        server.kill()
        server.start()
        again = worker.post_until(order, lambda got: got.status != 503)
        assert (again.status, again.replayed) == (201, False)
        assert again.body != first.body
    assert effects.all() == ["run 1", "run 1"]


@on_postgres
@pytest.mark.fault("backend killed with SIGKILL, stage recorded", row=5, invariants=("I2", "I4", "I5", "I9"))
def test_stages_survive_a_server_that_dies_without_a_word(
    backend_kind: str, postgres_hosts: dict[str, PostgresServer], effects: Effects, interface: str
) -> None:
    """B-01, L-02: acknowledged stages survive, so the next attempt resumes after the last one."""
    server = _postgres(backend_kind, postgres_hosts)
    server.number = signal.SIGKILL
    with Worker(interface, _url(server)) as worker, Worker(interface, _url(server), record_within=0.3) as doomed:
        order = Order(charging(effects, hold="response"))
        owner = doomed.start(order)
        order.until_arrived()
        server.kill()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, True)
        server.start()
        again = worker.post_until(order, admitted)
        assert (again.status, again.replayed) == (201, False)
        assert worker.post(order).body == again.body
    assert effects.all() == ["reserve 1", "charge 1"]


@on_files
@pytest.mark.fault("process killed inside a write transaction", row=5, invariants=("I2", "I5", "I9"))
@pytest.mark.parametrize(
    ("verb", "before"),
    [("complete", ["reserve 1", "charge 1"]), pytest.param("save_stage", ["reserve 1"], marks=pytest.mark.full_form)],
)
def test_a_process_that_dies_while_it_writes_leaves_a_sound_record(
    records: OnFile, effects: Effects, verb: str, before: list[str]
) -> None:
    """L-02: the write is rolled back, the lease ends, and the next attempt resumes after the last recorded stage."""
    order = Order(charging(effects))
    command = [sys.executable, "-m", "tests.faults.killed_writer", records.at(), str(effects.path), order.key, verb]
    process = subprocess.run(command, cwd=ROOT, timeout=60, check=False)
    assert process.returncode == -signal.SIGKILL
    assert effects.all() == before
    with Worker("wsgi", records.at()) as worker:
        assert worker.post(order).status == 409
        response = worker.post_until(order, admitted)
        assert (response.status, worker.post(order).body) == (201, response.body)
    # The stage that was being recorded when the process died is the one that is repeated.
    repeated = {"complete": [], "save_stage": ["reserve 2", "charge 2"]}[verb]
    assert until(effects.all, bool) == before + repeated
