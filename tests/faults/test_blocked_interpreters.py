"""Row 3: the event loop is blocked, or one C call holds the interpreter's lock, for longer than the lease."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.effects import Effects
from tests.faults.handlers import between
from tests.faults.records import Records, everywhere, mostly_files
from tests.faults.site import PATIENCE, Order, Worker, admitted, until

ROOT = Path(__file__).resolve().parents[2]
LEASE = 2.0


@mostly_files
@pytest.mark.fault("event loop blocked longer than the lease", row=3, invariants=("I1", "I9"))
def test_a_blocked_event_loop_keeps_its_lease(records: Records, effects: Effects) -> None:
    """L-01: a thread renews the lease; duplicates are refused meanwhile, and the handler ran once."""
    with (
        Worker("asgi", records.at(), lease=LEASE) as worker,
        Worker("asgi", records.at(), lease=LEASE) as other,
    ):
        order = Order(between(effects, lambda: time.sleep(1.7 * LEASE)))
        duplicate = order.again(between(effects, int))
        owner = worker.start(order)
        order.until_arrived()
        while (response := other.post(duplicate)).status == 409:
            time.sleep(0.05)
        first = owner.result(PATIENCE)
        assert (first.status, first.replayed) == (201, False)
        assert (response.replayed, response.body) == (True, first.body)
        assert first.seconds > LEASE
    assert effects.all() == ["reserve 1", "mail 1", "charge 1"]


@pytest.mark.full_form
@everywhere
@pytest.mark.fault("interpreter held longer than the lease", row=3, invariants=("I2", "I3", "I4"))
@pytest.mark.fault("interpreter held, effect without a fence", row=3, invariants=("I9",), kind="documented")
def test_a_worker_that_held_its_interpreter_changes_nothing(records: Records, effects: Effects) -> None:
    """L-03: without renewals a retry takes over; the stale worker's completion is refused, its effects are not."""
    order = Order(between(effects, int))
    command = [sys.executable, "-m", "tests.faults.held_interpreter", records.at(), str(effects.path), order.key]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        until(effects.all, bool)
        with Worker("wsgi", records.at(), lease=LEASE) as worker:
            first = worker.post_until(order, admitted)
            assert first.status == 201
            response, _ = process.communicate(timeout=60)
            # The response of the worker that woke.
            assert response.split() == ["201", first.body.decode()]
            assert worker.post(order).body == first.body
    finally:
        process.kill()
        process.wait(10)
    # It woke outside of a stage, where the lease is not checked; its next stage checked it.
    assert effects.all() == ["reserve 1", "mail 2", "charge 2", "mail 1"]
