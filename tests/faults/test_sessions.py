"""Rows 5 and 8 on PostgreSQL: an operator ends sessions, also during a call; the server has no free connection slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import psycopg
import pytest

from open_idempotency.events import BackendFailed
from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.records import OnPostgres, on_postgres
from tests.faults.site import BRISK_POSTGRES, PATIENCE, Order, Worker, refused_in_time, until

pytestmark = on_postgres
#: a timeout that is longer than detecting a call that waits for a lock, and ending it
UNHURRIED = "timeout=5"
LONG = 20.0
_OURS = "application_name = 'open-idempotency' AND pid <> pg_backend_pid()"
_END_ALL = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {_OURS}"
_END_WAITING = f"{_END_ALL} AND wait_event_type = 'Lock'"
SLOTS = 3


@pytest.mark.fault("sessions ended between two calls", row=5, invariants=("I2", "I6", "I9"))
def test_sessions_that_an_operator_ended_are_replaced_unnoticed(
    records: OnPostgres, effects: Effects, interface: str
) -> None:
    """B-10: each call notices the lost connection, and is repeated on another one."""
    with Worker(interface, records.at(options=UNHURRIED), lease=LONG) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        assert records.ask(_END_ALL)
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert records.ask(_END_ALL)
        again = worker.post(order)
        assert (first.status, first.unrecorded, again.body) == (201, False, first.body)
        assert not worker.saw(BackendFailed)
    assert effects.all() == ["reserve 1", "charge 1"]


@pytest.mark.fault("session of a claim ended while it waits", row=5, invariants=("I1", "I6", "I9"))
def test_a_claim_whose_session_is_ended_in_mid_call_is_made_again(
    records: OnPostgres, effects: Effects, interface: str
) -> None:
    """B-08, B-10: on another connection, by the same owner; one run, and no 409."""
    with Worker(interface, records.at(options=UNHURRIED), lease=LONG) as worker:
        order = Order(plain(effects))
        with records.lock():
            owner = worker.start(order)
            until(lambda: records.ask(_END_WAITING), bool)
        first = owner.result(PATIENCE)
        assert (first.status, first.replayed) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["run 1"]


@pytest.mark.fault("session of a completion ended while it waits", row=5, invariants=("I2", "I4", "I9"))
def test_a_completion_whose_session_is_ended_in_mid_call_is_made_again(
    records: OnPostgres, effects: Effects, interface: str
) -> None:
    """B-08, R-03: the response goes out recorded, and a duplicate gets it."""
    with Worker(interface, records.at(options=UNHURRIED), lease=LONG) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        with records.lock():
            order.script.release.set()
            until(lambda: records.ask(_END_WAITING), bool)
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


class _Slots:
    """A database user with few connections, and the ones that this test occupies."""

    def __init__(self, records: OnPostgres, stack: ExitStack) -> None:
        self._records = records
        self._stack = stack
        self._user = f"u{uuid4().hex}"
        self._end_all = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{self._user}'"
        records.ask(f"CREATE ROLE {self._user} LOGIN CONNECTION LIMIT {SLOTS}")
        for rights in (
            "USAGE ON SCHEMA open_idempotency",
            "ALL ON ALL TABLES IN SCHEMA open_idempotency",
            "ALL ON ALL SEQUENCES IN SCHEMA open_idempotency",
        ):
            records.ask(f"GRANT {rights} TO {self._user}")
        stack.callback(records.ask, f"DROP OWNED BY {self._user}; DROP ROLE {self._user}")

    @property
    def url(self) -> str:
        return self._records.at(options="").replace("postgres@", f"{self._user}@")

    def fill(self) -> Callable[[], None]:
        """Occupy every free connection and close the user's own ones; returns a function that frees them."""
        self._records.ask(self._end_all)
        taken = self._stack.enter_context(ExitStack())
        for _ in range(SLOTS):
            taken.callback(until(self._take, bool).close)
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(self.url, connect_timeout=5)
        return taken.close

    def _take(self) -> psycopg.Connection[object] | None:
        try:
            return psycopg.connect(self.url, connect_timeout=5)
        except psycopg.OperationalError:  # the worker took the slot: end its session and try again
            self._records.ask(f"{self._end_all} AND {_OURS}")
            return None


@pytest.fixture
def slots(records: OnPostgres) -> Iterator[_Slots]:
    """A user whose connections can be occupied."""
    with ExitStack() as stack:
        yield _Slots(records, stack)


@pytest.mark.fault("no connection slot left", row=8, invariants=("I4", "I8", "I9", "I11"))
def test_without_a_free_slot_nothing_new_runs_and_the_finished_is_recorded_later(
    slots: _Slots, effects: Effects, interface: str
) -> None:
    """B-10, L-08, O-12: 503 in time; the completion is retried until there is a connection for it."""
    with Worker(interface, f"{slots.url}?{BRISK_POSTGRES}", lease=LONG) as worker:
        running = Order(charging(effects, hold="response"))
        owner = worker.start(running)
        running.until_arrived()
        give_back = slots.fill()
        new = refused_in_time(worker, lambda: Order(plain(effects)))
        running.script.release.set()
        until(lambda: sum(isinstance(event, BackendFailed) for event in worker.events) > 1, bool)
        assert not owner.done()
        give_back()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(running).body == first.body
        assert worker.post(new).status == 201
    assert effects.all() == ["reserve 1", "charge 1", "run 1"]
