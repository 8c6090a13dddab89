"""Row 18: a worker's clock is off by an hour; the backend's own clock jumps.

A worker's clock is shifted in a real server process, before any of its imports (``shifted/sitecustomize.py``). The
backend's clock is replaced by its option for tests; the same scripts and statements run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency.conformance import ManualClock
from tests.faults.effects import Effects
from tests.faults.handlers import charging
from tests.faults.records import OnServer, Records, everywhere, mostly_redis
from tests.faults.site import PATIENCE, Order, Worker
from tests.wire.case import Case
from tests.wire.servers import ROOT, Server

HERE = Path(__file__).parent
HOUR = 3600


@pytest.fixture(params=[HOUR, pytest.param(-HOUR, marks=pytest.mark.full_form)], ids=["fast", "slow"])
def cases(request: pytest.FixtureRequest, records: OnServer, tmp_path: Path) -> Iterator[list[Case]]:
    """One request at a worker whose clock is off, and at one whose clock is right."""
    wrong = {
        "PYTHONPATH": os.pathsep.join([str(HERE / "shifted"), str(ROOT)]),
        "WIRE_CLOCK_OFF": str(request.param),
    }
    with ExitStack() as stack:
        url = records.at(options="")
        servers = [stack.enter_context(Server("uvicorn-h11", tmp_path, WIRE_BACKEND=url, **env)) for env in (wrong, {})]
        assert (tmp_path / f"clock-off-{servers[0].pid}").exists()
        assert not (tmp_path / f"clock-off-{servers[1].pid}").exists()
        first, second = (Case(server, "asgi", "gated", variant="brisk") for server in servers)
        second.key, second.journal = first.key, first.journal
        yield [first, second]


@mostly_redis
@pytest.mark.fault("worker's clock off by an hour", row=18, invariants=("I1", "I2", "I4"))
@pytest.mark.parametrize("owner", [0, pytest.param(1, marks=pytest.mark.full_form)], ids=["owns", "duplicates"])
def test_a_worker_whose_clock_is_off_changes_nothing(cases: list[Case], records: OnServer, owner: int) -> None:
    """L-07: it keeps its lease, takes over no other one, and stores a response that is replayed."""
    running, other = cases[owner], cases[1 - owner]
    with running.begin() as connection:
        running.journal.await_line("arrived")
        backend = open_backend(records.at())
        (before,) = list(backend.scan())
        while next(backend.scan()).lease_end < before.lease_end + 2:
            assert other.ask().status == 409
        backend.close()
        running.journal.gate().set()
        first = connection.read()
    again = other.ask()
    assert (first.status, again.status, again.replayed, again.body) == (201, 201, True, first.body)
    assert running.journal.lines() == ["arrived", "ran"]


@everywhere
@pytest.mark.fault("backend's clock jumps an hour ahead", row=18, invariants=("I2", "I3"))
@pytest.mark.fault("backend's clock jumps ahead of a running request", row=18, invariants=("I1",), kind="documented")
def test_a_backend_whose_clock_jumps_ends_leases_early(records: Records, effects: Effects, interface: str) -> None:
    """L-03: a live owner is taken over; it changes nothing, and the completed record stays completed."""
    clock = ManualClock()
    backends = [open_backend(records.at(), clock=clock) for _ in range(2)]
    with Worker(interface, backends[0], lease=30) as worker, Worker(interface, backends[1], lease=30) as other:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        clock.advance(HOUR)
        second = other.post(order)
        assert (second.status, second.replayed, order.runs) == (201, False, 2)
        order.script.release.set()
        assert owner.result(PATIENCE).body == second.body
        clock.advance(HOUR)
        assert worker.post(order).body == second.body
    assert effects.all() == ["reserve 1", "charge 1"]
