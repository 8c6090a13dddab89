"""A clock that is put back does not block keys for that time (B-19), and old leases end while a machine sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from open_idempotency import decisions, idem
from open_idempotency._engine import engine
from open_idempotency._runtime import clocks
from open_idempotency._stages import stages
from open_idempotency.backend import Backend, Busy, Complete, Completed, Lease, Leased, Renew, Renewal, SaveStage
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import LEASE, claim_of, stage_of
from tests.backends import sql_databases
from tests.backends.django_orm import on_django
from tests.unit.builders import RecordingBackend
from tests.unit.stages.stage_client import Client, Counted

RECORD = bytes(range(32))
HOUR = 3600.0
# The error of a clock that does not count as put back.
MOMENT = 2.0


def _sqlite(folder: Path, clock: ManualClock) -> Iterator[Backend]:
    yield SqliteBackend(str(folder / "records.db"), synchronous="normal", timeout=20, clock=clock)


def _sqlalchemy(folder: Path, clock: ManualClock) -> Iterator[Backend]:
    url = f"sqlite:///{folder / 'records.db'}"
    sql_databases.make_tables(url)
    yield SqlalchemyBackend(f"sqlalchemy+{url}", clock=clock)


def _django(folder: Path, clock: ManualClock) -> Iterator[Backend]:
    with on_django.aliased(on_django.sqlite(folder)) as alias:
        yield DjangoBackend(alias, clock=clock)


KINDS: dict[str, Callable[[Path, ManualClock], Iterator[Backend]]] = {
    "sqlite": _sqlite,
    "sqlalchemy": _sqlalchemy,
    "django": _django,
}


@pytest.fixture
def clock() -> ManualClock:
    """The machine's wall clock."""
    return ManualClock()


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Backend]:
    """A backend whose clock is the machine's."""
    for made in KINDS[request.param](tmp_path, clock):
        yield made
        made.close()


def lease_of(backend: Backend) -> Lease:
    claimed = backend.claim(claim_of(RECORD))
    assert isinstance(claimed, Leased)
    return claimed.lease


def test_a_dead_owners_key_is_free_one_lease_after_the_clock_was_put_back(backend: Backend, clock: ManualClock) -> None:
    """B-19: not an hour later. The next attempt has the stages, and a higher token."""
    dead = lease_of(backend)
    backend.save_stage(SaveStage(dead, stage_of("charge")))
    clock.advance(-HOUR)
    found = backend.claim(claim_of(RECORD))
    assert isinstance(found, Busy)
    assert found.remaining == LEASE
    clock.advance(LEASE - MOMENT)
    assert isinstance(backend.claim(claim_of(RECORD)), Busy)
    clock.advance(MOMENT)
    taken = backend.claim(claim_of(RECORD))
    assert isinstance(taken, Leased)
    assert (taken.lease.attempt, taken.stages) == (2, (stage_of("charge"),))
    assert taken.lease.token > dead.token


def test_a_live_owner_keeps_its_lease_when_the_clock_is_put_back(backend: Backend, clock: ManualClock) -> None:
    """B-19, I1: it renews, and no duplicate takes over."""
    live = lease_of(backend)
    clock.advance(-HOUR)
    for _ in range(5):
        assert isinstance(backend.claim(claim_of(RECORD)), Busy)
        clock.advance(LEASE / 3)
        assert backend.renew(Renew([live])) == [Renewal.OWNED]
    assert backend.complete(Complete(live, b"response")) == Completed()


def test_an_attempt_that_ran_long_blocks_its_key_for_as_long_again_at_most(
    backend: Backend, clock: ManualClock
) -> None:
    """B-19: the record does not contain the lease's length; the bound is the attempt's age and one lease."""
    long = lease_of(backend)
    for _ in range(6):
        clock.advance(LEASE / 3)
        backend.renew(Renew([long]))
    clock.advance(-HOUR)
    found = backend.claim(claim_of(RECORD))
    assert isinstance(found, Busy)
    assert found.remaining == 3 * LEASE


def test_a_claim_from_a_moment_ahead_is_left_alone(backend: Backend, clock: ManualClock) -> None:
    """B-11b: workers read the clock before their turn, so a duplicate may be slightly behind; it only reads."""
    live = lease_of(backend)
    clock.advance(-0.5)
    found = backend.claim(claim_of(RECORD))
    assert isinstance(found, Busy)
    assert found.remaining == LEASE + 0.5
    assert backend.renew(Renew([live])) == [Renewal.OWNED]


def test_a_record_that_is_not_in_progress_is_not_rebased(clock: ManualClock) -> None:
    """B-19: it has no lease to wait for."""
    backend = MemoryBackend(clock=clock)
    lease = lease_of(backend)
    backend.complete(Complete(lease, b"response"))
    (record,) = backend.scan()
    assert decisions.rebased(record, clock.now - HOUR) is record


def test_memory_does_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """B-19: its records belong to one process, so a monotonic clock is enough."""
    wall = ManualClock(time.time())
    monkeypatch.setattr(time, "time", wall)
    backend = MemoryBackend()
    dead = backend.claim(claim_of(RECORD, lease=0.05))
    assert isinstance(dead, Leased)
    wall.advance(-HOUR)
    deadline = time.monotonic() + 20
    while isinstance(backend.claim(claim_of(RECORD)), Busy):
        assert time.monotonic() < deadline, "the key stayed busy"
        time.sleep(0.005)


def test_the_growing_clock_counts_what_the_machine_slept() -> None:
    """B-19: unlike Python's monotonic clock on Linux and macOS."""
    number: Any = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
    before = time.clock_gettime(number)
    assert before <= clocks.elapsed() <= time.clock_gettime(number)
    shows = clocks.growing()
    assert abs(shows() - time.time()) < 5.0


def test_a_machine_that_slept_asks_whose_the_lease_is_before_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-07, B-19: the lease ended during the sleep, so another worker may have begun."""
    asleep = 0.0
    awake = clocks.elapsed

    class Machine:
        """A clock that continues during sleep, unlike Python's monotonic clock, which the other code uses."""

        elapsed = staticmethod(lambda: awake() + asleep)

    monkeypatch.setattr(engine, "clocks", Machine)
    monkeypatch.setattr(stages, "clocks", Machine)
    backend = RecordingBackend()
    client = Client(backend=backend, lease=30.0)
    charge = Counted()
    with client.request():
        idem.run("first", charge)
        assert backend.renewals == []
        asleep = 60.0
        idem.run("second", charge)
        assert len(backend.renewals) == 1
    assert charge.calls == 2
