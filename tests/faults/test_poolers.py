"""Row 19: PostgreSQL behind a pooler in transaction mode: each transaction may get another session."""

from __future__ import annotations

import pytest

from tests.faults.effects import Effects
from tests.faults.handlers import Failed, charging, failing_first, plain
from tests.faults.proxy import FaultProxy
from tests.faults.records import OnPostgres
from tests.faults.site import BRISK_POSTGRES, LEASE, PATIENCE, Order, Worker, until
from tests.poolers import PgBouncer, Pooler
from tests.postgres_server import PostgresServer


@pytest.fixture
def url(pooler: Pooler | PgBouncer) -> str:
    """The pooler's URL, with short timeouts."""
    return f"{pooler.url}?{BRISK_POSTGRES}"


@pytest.mark.fault("pooler in transaction mode", row=19, invariants=("I1", "I2", "I4", "I5", "I9"), backend="postgres")
def test_requests_behind_a_pooler_are_owned_renewed_resumed_and_replayed(
    url: str, postgres18: PostgresServer, effects: Effects, interface: str
) -> None:
    """B-11a, L-01, O-03: beyond the first end of its lease, and at a worker with a direct connection."""
    direct = OnPostgres(postgres18).at()
    with Worker(interface, url) as worker, Worker(interface, direct) as other:
        order, failing = Order(charging(effects, hold="charge")), Order(failing_first(effects))
        owner = worker.start(order)
        order.until_arrived()
        (first,) = list(other.backend.scan())
        until(lambda: next(other.backend.scan()).lease_end, lambda end: end > first.lease_end + LEASE)
        assert other.post(order).status == 409
        order.script.release.set()
        response = owner.result(PATIENCE)
        assert (response.status, response.unrecorded) == (201, False)
        assert [at.post(order).body for at in (worker, other)] == [response.body, response.body]
        with pytest.raises(Failed):
            worker.post(failing)
        assert other.post(failing).status == 201
    assert effects.all() == ["reserve 1", "charge 1", "reserve 1", "charge 2"]


@pytest.mark.fault("pooler in transaction mode, duplicate waits", row=19, invariants=("I4", "I6"), backend="postgres")
def test_a_duplicate_that_waits_behind_a_pooler_gets_a_response_before_its_time_is_over(
    url: str, effects: Effects, interface: str
) -> None:
    """O-04, B-11a: no notification passes the pooler, so it polls."""
    with Worker(interface, url, wait=3 * PATIENCE) as worker:
        order = Order(plain(effects, hold=True))
        owner = worker.start(order)
        order.until_arrived()
        duplicate = worker.start(order)
        until(lambda: worker.backend.listener._resting_until > 0, bool)  # it has tried LISTEN
        order.script.release.set()
        first, again = owner.result(PATIENCE), duplicate.result(PATIENCE)
        assert (first.status, again.replayed, again.body) == (201, True, first.body)
    assert effects.all() == ["run 1"]


@pytest.mark.fault("pooler in transaction mode, reply lost", row=19, invariants=("I1", "I6", "I9"), backend="postgres")
@pytest.mark.parametrize("verb", ["claim", "save_stage", "complete"])
def test_a_reply_that_is_lost_before_a_pooler_is_repeated_on_another_session(
    pooler: Pooler | PgBouncer, effects: Effects, interface: str, verb: str
) -> None:
    """B-08: the pooler executed the statement on one session, and gets it again for another one."""
    with FaultProxy(pooler.port) as proxy, Worker(interface, f"{_through(pooler, proxy)}?{BRISK_POSTGRES}") as worker:
        order = Order(charging(effects))
        loss = proxy.lose_reply(f"open_idempotency.{verb}(".encode())
        first = worker.post(order)
        assert loss.happened.wait(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


def _through(pooler: Pooler | PgBouncer, proxy: FaultProxy) -> str:
    return pooler.url.replace(f":{pooler.port}/", f":{proxy.port}/")
