"""Row 8: a backend that replies late, with jitter, or pauses for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from open_idempotency.events import BackendFailed
from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.proxy import FaultProxy
from tests.faults.records import POSTGRES, OnPostgres, OnServer, on_servers
from tests.faults.site import BRISK, PATIENCE, Order, Worker
from tests.servers import Server

pytestmark = on_servers
#: seconds of delay in each direction, and of jitter
DELAY, JITTER = 0.1, 0.05
LEASE = 5.0


@pytest.fixture
def patient(backend_kind: str) -> str:
    """Options for a slow backend: connecting to PostgreSQL takes several of its replies."""
    return "timeout=1.6" if backend_kind in POSTGRES else "timeout=0.8"


class Pausing(NamedTuple):
    """A backend at a URL; ``pause(seconds)`` makes it silent for that long."""

    url: str
    pause: Callable[[float], object]


@pytest.fixture
def pausing(backend_kind: str, request: pytest.FixtureRequest) -> Iterator[Pausing]:
    """CLIENT PAUSE on a server of its own, or a transaction that locks every table and sleeps."""
    if backend_kind in POSTGRES:
        yield from _locking(request.getfixturevalue("records"))
        return
    server = Server(backend_kind).start()
    with server.connect() as operator:
        yield Pausing(
            f"{server.url}?{BRISK}",
            lambda seconds: operator.execute_command("CLIENT", "PAUSE", round(seconds * 1000), "ALL"),
        )
    server.stop()


def _locking(records: OnPostgres) -> Iterator[Pausing]:
    threads: list[threading.Thread] = []

    def hold(locked: threading.Event, seconds: float) -> None:
        with records.server.connect() as connection, connection.transaction():
            connection.execute("LOCK TABLE open_idempotency.records, open_idempotency.stages")
            locked.set()
            connection.execute("SELECT pg_sleep(%s)", (seconds,))

    def pause(seconds: float) -> None:
        locked = threading.Event()
        threads.append(threading.Thread(target=hold, args=(locked, seconds)))
        threads[-1].start()
        assert locked.wait(PATIENCE)

    yield Pausing(records.at(), pause)
    for thread in threads:
        thread.join(PATIENCE)


@pytest.mark.fault("replies 200 to 300 ms late, jitter", row=8, invariants=("I1", "I2"))
def test_of_many_at_once_one_runs(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, patient: str
) -> None:
    """B-01: of eight concurrent claims on two slow workers; the others get 409."""
    proxy.delay(DELAY, JITTER)
    url = records.at(proxy.port, patient)
    with Worker(interface, url, lease=LEASE) as one, Worker(interface, url, lease=LEASE) as two:
        order = Order(plain(effects))
        together = threading.Barrier(8)

        def post(worker: Worker) -> int:
            together.wait(PATIENCE)
            return worker.post(order).status

        with ThreadPoolExecutor(8) as clients:
            statuses = set(clients.map(post, (one, two) * 4))
        assert statuses <= {201, 409}
        again = one.post(order)
        assert (again.status, again.replayed) == (201, True)
    assert effects.all() == ["run 1"]


@pytest.mark.full_form
@pytest.mark.fault("replies 200 to 300 ms late for longer than a lease", row=8, invariants=("I1", "I9"))
def test_late_beats_still_keep_the_lease(records: OnServer, proxy: FaultProxy, effects: Effects, patient: str) -> None:
    """L-01: the lease counts from when the server has the request; no attempt takes over."""
    proxy.delay(DELAY, JITTER)
    beats = proxy.watch(records.command("renew"), nth=4)
    with Worker("wsgi", records.at(proxy.port, patient), lease=LEASE) as worker, Worker("wsgi", records.at()) as other:
        order = Order(charging(effects, hold="charge"))
        owner = worker.start(order)
        order.until_arrived()
        while not beats.happened.wait(0.2):
            assert other.post(order).status == 409
        order.script.release.set()
        assert owner.result(PATIENCE).status == 201
    assert effects.all() == ["reserve 1", "charge 1"]


@pytest.mark.fault("backend stops for longer than a call", row=8, invariants=("I4", "I8", "I11"))
def test_a_pause_of_the_server_refuses_the_new_and_delays_the_finished(
    pausing: Pausing, effects: Effects, interface: str
) -> None:
    """B-10, L-08: the completion is retried until the server continues."""
    with Worker(interface, pausing.url, lease=15) as worker:
        running, new = Order(charging(effects, hold="response")), Order(plain(effects))
        owner = worker.start(running)
        running.until_arrived()
        pausing.pause(3.0)
        running.script.release.set()
        refused = worker.post(new)
        assert (refused.status, new.runs) == (503, 0)
        worker.await_event(BackendFailed)
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(running).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]
