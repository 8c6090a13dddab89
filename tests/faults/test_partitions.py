"""Row 7: the network between a worker and its backend drops all packets silently, for a while or for ever."""

from __future__ import annotations

import pytest

from open_idempotency.events import BackendFailed, OwnershipLost, Unrecorded
from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.proxy import FaultProxy
from tests.faults.records import OnServer, mostly_redis, on_servers
from tests.faults.site import PATIENCE, Got, Order, Worker, admitted, refused_in_time


@on_servers
@pytest.mark.fault("silent partition, new request", row=7, invariants=("I8", "I11"))
def test_a_request_during_a_partition_is_refused_in_time(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """B-10, O-12: on an open connection and on a new one; nothing runs."""
    with Worker(interface, records.at(proxy.port)) as worker:
        assert worker.post(Order(plain(effects))).status == 201
        proxy.swallow()
        for _ in range(2):
            refused_in_time(worker, lambda: Order(plain(effects)))


@on_servers
@pytest.mark.fault("silent partition, then healed", row=7, invariants=("I2", "I6"))
def test_connections_that_stayed_half_open_do_not_stop_the_worker_for_long(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """B-10: each costs one timeout, and then requests are served again; a completed one is replayed."""
    with Worker(interface, records.at(proxy.port)) as worker:
        done, new = Order(plain(effects)), Order(plain(effects))
        first = worker.post(done)
        proxy.swallow()
        proxy.heal()
        assert worker.post_until(done, lambda got: got.status != 503).body == first.body
        assert worker.post(new).status == 201
    assert len(effects.all()) == 2


@on_servers
@pytest.mark.fault("silent partition while a response is recorded, healed in time", row=7, invariants=("I4", "I11"))
def test_a_completion_is_tried_until_the_partition_ends(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """L-08: within ``record_within``."""
    with Worker(interface, records.at(proxy.port), record_within=PATIENCE) as worker:
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        proxy.swallow()
        order.script.release.set()
        worker.await_event(BackendFailed)
        proxy.heal()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        assert worker.post(order).body == first.body
    assert effects.all() == ["reserve 1", "charge 1"]


@mostly_redis
@pytest.mark.fault("silent partition while a response is recorded, not healed", row=7, invariants=("I9", "I11"))
def test_a_response_that_cannot_be_recorded_goes_out_marked(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """L-08: in time, with an event; the record stays: nothing runs during the lease, no stage runs twice."""
    with (
        Worker(interface, records.at(proxy.port), record_within=0.3, lease=4) as worker,
        Worker(interface, records.at()) as other,
    ):
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        proxy.swallow()
        order.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, True)
        assert worker.saw(Unrecorded)
        assert other.post(order).status == 409
        assert other.post_until(order, admitted).status == 201
    assert effects.all() == ["reserve 1", "charge 1"]


@on_servers
@pytest.mark.fault("silent partition longer than the lease", row=7, invariants=("I3", "I5", "I9"))
def test_an_owner_that_could_not_beat_learns_that_it_lost_its_lease(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """L-03, S-07: another attempt takes over; the first one stops, and its client gets the new response."""
    with Worker(interface, records.at(proxy.port)) as worker, Worker(interface, records.at()) as other:
        order = Order(charging(effects, hold="charge"))
        owner = worker.start(order)
        order.until_arrived()
        proxy.swallow()
        taken_over = other.post_until(order, admitted)
        assert taken_over.status == 201
        proxy.heal()
        worker.await_event(OwnershipLost)
        # A recovered network resets unknown connections; otherwise the next call would take one more timeout.
        proxy.cut()
        order.script.release.set()
        stale = owner.result(PATIENCE)
        assert (stale.status, stale.body) == (201, taken_over.body)
    assert effects.all() == ["reserve 1", "charge 2"]


@mostly_redis
@pytest.mark.fault("silent partition longer than the lease, next effect external", row=7, invariants=("I3", "I9"))
def test_an_owner_that_cannot_beat_makes_no_effect_outside(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """S-04, S-07: an external stage is recorded before its effect, which this owner cannot do."""
    _outlive(records, proxy, effects, interface, external=True)
    assert effects.all() == ["reserve 1", "charge 2"]


@mostly_redis
@pytest.mark.fault("silent partition longer than the lease, next effect plain", row=7, invariants=("I3", "I9"))
def test_an_owner_that_cannot_beat_begins_no_plain_stage(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """S-07: its lease may have ended; it asks the backend before the effect, and stops without a reply."""
    _outlive(records, proxy, effects, interface, external=False)
    assert effects.all() == ["reserve 1", "charge 2"]


def _outlive(records: OnServer, proxy: FaultProxy, effects: Effects, interface: str, *, external: bool) -> None:
    """Let an owner wake behind a partition after another attempt has completed; its own response is no success."""
    with (
        Worker(interface, records.at(proxy.port), record_within=0.3) as worker,
        Worker(interface, records.at()) as other,
    ):
        order = Order(charging(effects, hold="charge", external=external))
        owner = worker.start(order)
        order.until_arrived()
        proxy.swallow()
        taken_over = other.post_until(order, admitted)
        assert taken_over.status == 201
        order.script.release.set()
        assert not _succeeded(owner.exception(PATIENCE) or owner.result())
        assert other.post(order).body == taken_over.body


def _succeeded(outcome: Got | BaseException) -> bool:
    return isinstance(outcome, Got) and outcome.status < 400


@on_servers
@pytest.mark.fault("completion delivered after the lease", row=7, invariants=("I2", "I3", "I4"))
def test_a_completion_that_arrives_late_changes_nothing(
    records: OnServer, proxy: FaultProxy, effects: Effects, interface: str
) -> None:
    """B-03: the network delayed it until another attempt had completed; a duplicate gets that attempt's response."""
    with (
        Worker(interface, records.at(proxy.port), record_within=0.3) as worker,
        Worker(interface, records.at()) as other,
    ):
        order = Order(charging(effects, hold="response"))
        owner = worker.start(order)
        order.until_arrived()
        late = proxy.watch(records.command("complete"))
        proxy.pause()
        order.script.release.set()
        assert proxy.held_back.wait(PATIENCE)
        assert owner.result(PATIENCE).unrecorded
        taken_over = other.post_until(order, admitted)
        proxy.resume()
        assert late.happened.wait(PATIENCE)
        again = other.post(order)
        assert (again.replayed, again.body) == (True, taken_over.body)
    assert effects.all() == ["reserve 1", "charge 1"]
