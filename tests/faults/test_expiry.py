"""Rows 22 and 23: one record twice in one batch; a time to live that ends while the request still runs."""

from __future__ import annotations

import time

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Leased, Renew, Renewal
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import claim_of
from open_idempotency.exceptions import ConfigurationError
from tests.faults.effects import Effects
from tests.faults.handlers import plain
from tests.faults.records import Records, everywhere, mostly_files
from tests.faults.site import PATIENCE, Order, Worker

SHORT = 2.0


@everywhere
@pytest.mark.fault("one record twice in one batch", row=22, invariants=("I1", "I3"))
def test_of_two_leases_of_one_record_in_one_batch_the_later_is_renewed(records: Records) -> None:
    """B-04: each lease is compared by its token, in any order."""
    clock = ManualClock()
    backend = open_backend(records.at(), clock=clock)
    stale = backend.claim(claim_of(b"a", lease=30))
    clock.advance(31)
    owned = backend.claim(claim_of(b"a", lease=30))
    assert isinstance(stale, Leased)
    assert isinstance(owned, Leased)
    leases = [stale.lease, owned.lease, stale.lease, owned.lease]
    assert list(backend.renew(Renew(leases))) == [Renewal.LOST, Renewal.OWNED, Renewal.LOST, Renewal.OWNED]
    backend.close()


@everywhere
@pytest.mark.fault("time to live shorter than the lease", row=23, invariants=("I11",))
def test_a_time_to_live_shorter_than_the_lease_is_refused_at_start(records: Records) -> None:
    """B-05: the error names ``ttl``."""
    with pytest.raises(ConfigurationError, match="ttl"):
        Worker("wsgi", records.at(), lease=10, ttl=5)


@mostly_files
@pytest.mark.fault("handler longer than the time to live, purges all the while", row=23, invariants=("I1", "I2", "I4"))
def test_the_record_of_a_live_owner_is_not_collected(records: Records, effects: Effects, interface: str) -> None:
    """B-05, B-09: the time to live runs from the completion, not from the claim."""
    with (
        Worker(interface, records.at(), lease=SHORT, ttl=SHORT) as worker,
        Worker(interface, records.at(), lease=SHORT, ttl=SHORT) as other,
    ):
        order = Order(plain(effects, hold=True))
        duplicate = order.again(plain(effects))
        owner = worker.start(order)
        order.until_arrived()
        ends = time.monotonic() + 2 * SHORT
        while time.monotonic() < ends:
            assert other.backend.purge() == 0
            assert other.post(duplicate).status == 409
        order.script.release.set()
        first = owner.result(PATIENCE)
        again = other.post(duplicate)
        assert (again.replayed, again.body) == (True, first.body)
    assert effects.all() == ["run 1"]


@pytest.mark.full_form
@everywhere
@pytest.mark.fault("key used again after its time to live", row=23, invariants=("I2",), kind="documented")
def test_a_key_that_has_expired_is_a_new_request(records: Records, effects: Effects) -> None:
    """B-05: an expired record counts as absent, so a late retry runs again."""
    with Worker("wsgi", records.at(), lease=SHORT, ttl=SHORT) as worker:
        order = Order(plain(effects))
        first = worker.post(order)
        assert worker.post(order).body == first.body
        late = worker.post_until(order, lambda got: not got.replayed)
        assert late.status == 201
    assert effects.all() == ["run 1", "run 1"]
