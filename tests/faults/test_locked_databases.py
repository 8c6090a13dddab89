"""Row 8, locks: another process holds the write lock of a file or a table, briefly or for long."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from open_idempotency.events import BackendFailed, Unrecorded
from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.records import OnFile, OnPostgres, on_databases
from tests.faults.site import PATIENCE, Order, Worker, admitted, refused_in_time

pytestmark = on_databases
_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
connection.close()
"""
Unlock = Callable[[], None]
Database = OnFile | OnPostgres


@pytest.fixture
def lock(records: Database) -> Iterator[Callable[[], Unlock]]:
    """``unlock = lock()``: another process takes the write lock of the file, or of the table."""
    with ExitStack() as holders:

        def take() -> Unlock:
            if isinstance(records, OnPostgres):
                connection = records.lock()
                holders.callback(connection.close)
                return connection.rollback
            holder = _hold(records)
            holders.callback(_end, holder)
            return lambda: _end(holder)

        yield take


def _hold(records: OnFile) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLDER, str(records.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def _end(holder: subprocess.Popen[str]) -> None:
    if holder.poll() is None:
        holder.communicate(timeout=PATIENCE)


@pytest.mark.fault("database locked, new request and replay", row=8, invariants=("I2", "I8", "I11"))
def test_while_another_process_writes_nothing_new_runs_and_replays_go_on(
    records: Database, effects: Effects, interface: str, lock: Callable[[], Unlock]
) -> None:
    """B-10, B-11b, O-12: 503 in time; reads do not wait for the lock."""
    with Worker(interface, records.at()) as worker:
        done = Order(plain(effects))
        first = worker.post(done)
        unlock = lock()
        new = refused_in_time(worker, lambda: Order(plain(effects)))
        assert worker.post_until(done, lambda got: got.status != 503).body == first.body
        unlock()
        # A server that received the refused claim executes it later; its lease has no owner and has to end.
        assert worker.post_until(new, admitted).status == 201
    assert len(effects.all()) == 2


@pytest.mark.fault("database locked while a response is recorded, freed in time", row=8, invariants=("I4", "I11"))
def test_a_completion_is_tried_until_the_lock_is_free(
    records: Database, effects: Effects, interface: str, lock: Callable[[], Unlock]
) -> None:
    """L-08."""
    with Worker(interface, records.at(), record_within=PATIENCE) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        unlock = lock()
        order.script.release.set()
        worker.await_event(BackendFailed)
        unlock()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


@pytest.mark.full_form
@pytest.mark.fault("database locked while a response is recorded, not freed", row=8, invariants=("I5", "I9", "I11"))
def test_a_response_that_found_the_database_locked_goes_out_marked(
    records: Database, effects: Effects, interface: str, lock: Callable[[], Unlock]
) -> None:
    """L-08: the record stays; a retry gets 409, and later resumes after the last stage."""
    with Worker(interface, records.at(), record_within=0.3) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        unlock = lock()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, True)
        assert worker.saw(Unrecorded)
        unlock()
        assert worker.post_until(order, admitted).status == 201
    assert effects.all() == ["reserve 1", "charge 1"]
