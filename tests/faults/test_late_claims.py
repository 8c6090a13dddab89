"""Row 12: a claim arrives after its request was cancelled and cleaned up.

A proxy holds back only the claim. The clean-up goes over another connection, or over the same one after it was dropped:
a network may deliver what a client sent before it left.
"""

from __future__ import annotations

import pytest

from open_idempotency import events
from tests.faults.effects import Effects
from tests.faults.handlers import Failed, charging, failing_first
from tests.faults.proxy import PATIENCE, FaultProxy
from tests.faults.records import OnServer, on_servers
from tests.faults.site import Order, Worker

asynchronous = pytest.mark.parametrize("interface", ["asgi"])
ways = pytest.mark.parametrize("coalesce", ["yes", "no"])
ONCE = ["reserve 1", "charge 1"]
#: seconds; too long for a test to wait for the lease
LONG = 60.0


@on_servers
@asynchronous
@ways
@pytest.mark.fault("claim delivered after its clean-up", row=12, invariants=("I1", "I5", "I9"))
def test_a_claim_that_arrives_after_its_clean_up_does_not_block_its_key(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, coalesce: str
) -> None:
    """B-08c, L-04: the retry runs at once, and does not wait for a lease."""
    with Worker(interface, records.at(proxy.port, f"timeout=5&coalesce={coalesce}"), lease=LONG) as worker:
        hold = proxy.hold(records.command("claim"))
        order = Order(charging(effects))
        worker.cancel(order, hold.arrived)
        assert not worker.saw(events.BackendFailed)
        hold.deliver()
        assert hold.happened.wait(PATIENCE), "the claim did not arrive"
        assert order.runs == 0
        assert worker.post(order).status == 201
    assert effects.all() == ONCE


@on_servers
@asynchronous
@pytest.mark.fault("claim delivered after later attempts", row=12, invariants=("I1", "I5", "I9"))
def test_a_claim_that_arrives_after_another_attempt_has_failed_takes_nothing_over(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """B-08c: a request resumes the failed attempt, and the late claim does not."""
    with Worker(interface, records.at(proxy.port, "timeout=5"), lease=LONG) as worker:
        order = Order(failing_first(effects))
        hold = proxy.hold(records.command("claim"))
        worker.cancel(order, hold.arrived)
        with pytest.raises(Failed):
            worker.post(order)
        hold.deliver()
        assert hold.happened.wait(PATIENCE), "the claim did not arrive"
        assert worker.post(order).status == 201
    assert effects.all() == ["reserve 1", "charge 2"]
