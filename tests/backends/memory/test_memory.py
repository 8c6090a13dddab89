"""The memory backend beyond the contract: its bounds."""

from __future__ import annotations

import gc
import os
import secrets

import pytest

from open_idempotency._core.models import Request, Response
from open_idempotency.adapter import Adapter
from open_idempotency.backend import Claim, Complete, Finished, Get, Leased, Mismatch, Release, SaveStage, Stage
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import claim_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError


def _lease(backend: MemoryBackend, c: Claim):
    result = backend.claim(c)
    assert isinstance(result, Leased)
    return result.lease


def test_when_full_a_new_record_is_refused_and_none_is_evicted() -> None:
    """I2: live records are never evicted."""
    backend = MemoryBackend(max_records=2, clock=ManualClock())
    for name in (b"a", b"b"):
        _lease(backend, claim_of(name))
    with pytest.raises(BackendUnavailable, match="full: 2"):
        backend.claim(claim_of(b"c"))
    assert {record.record_id for record in backend.scan()} == {b"a", b"b"}


def test_when_full_existing_records_are_still_replayed() -> None:
    """I6: a full table refuses new keys only."""
    backend = MemoryBackend(max_records=1, clock=ManualClock())
    c = claim_of(b"a")
    lease = _lease(backend, c)
    assert _lease(backend, c) == lease
    assert backend.claim(claim_of(b"a", fingerprint=b"other")) == Mismatch()
    backend.complete(Complete(lease, b"response"))


def test_when_full_a_vanished_record_is_still_completed() -> None:
    """B-08a, B-11b: claims fail closed, completions succeed."""
    backend = MemoryBackend(max_records=1, clock=ManualClock())
    lease = _lease(backend, claim_of(b"a"))
    backend.delete(b"a")
    _lease(backend, claim_of(b"b"))
    assert backend.complete(Complete(lease, b"response")).recreated


def test_when_full_of_bytes_a_new_record_is_refused_and_none_is_evicted() -> None:
    """I11: the bound on bytes is reached before that on records."""
    backend = MemoryBackend(max_bytes=10_000, clock=ManualClock())
    backend.complete(Complete(_lease(backend, claim_of(b"a")), bytes(9_500)))
    with pytest.raises(BackendUnavailable, match="full: 1 live"):
        backend.claim(claim_of(b"b"))
    assert isinstance(backend.claim(claim_of(b"a")), Finished)


def test_when_full_of_bytes_what_runs_is_still_completed() -> None:
    """B-11b: claims fail closed, completions and stages succeed."""
    backend = MemoryBackend(max_bytes=10_000, clock=ManualClock())
    running, other = _lease(backend, claim_of(b"a")), _lease(backend, claim_of(b"b"))
    backend.complete(Complete(other, bytes(20_000)))
    backend.save_stage(SaveStage(running, stage_of("one")))
    backend.complete(Complete(running, bytes(20_000)))
    assert isinstance(backend.claim(claim_of(b"a")), Finished)


@pytest.mark.parametrize("end", ["deleted", "released", "expired", "purged"])
def test_the_bytes_of_a_record_that_is_gone_are_free_again(end: str) -> None:
    """I11: stages and responses count as long as they are stored."""
    clock = ManualClock()
    backend = MemoryBackend(max_bytes=10_000, clock=clock)
    for number in range(5):  # each would fill it
        lease = _lease(backend, claim_of(b"%d" % number, ttl=100.0))
        if end == "released":
            backend.release(Release(lease))
            continue
        backend.save_stage(SaveStage(lease, Stage("one", "", bytes(4_500))))
        backend.complete(Complete(lease, bytes(4_500)))
        if end == "deleted":
            backend.delete(lease.record_id)
        else:
            clock.advance(200)
        if end == "purged":
            assert backend.purge() == 1
    _lease(backend, claim_of(b"last"))


def test_many_small_records_count_with_what_each_takes_anyway() -> None:
    """I11: a claim without a response takes memory too."""
    backend = MemoryBackend(max_bytes=10_000, clock=ManualClock())
    while len(list(backend.scan())) * 600 < 10_000:
        _lease(backend, claim_of(os.urandom(16)))
    with pytest.raises(BackendUnavailable, match="full"):
        backend.claim(claim_of(b"one more"))


def test_when_full_of_expired_records_there_is_room() -> None:
    """I11: expired records are removed, also ones that completed early."""
    clock = ManualClock()
    backend = MemoryBackend(max_records=2, clock=clock)
    _lease(backend, claim_of(b"a", ttl=1000.0))
    backend.complete(Complete(_lease(backend, claim_of(b"b", ttl=1000.0)), b""))
    clock.advance(1000)
    _lease(backend, claim_of(b"c"))
    assert backend.get(Get(b"a")) is not None
    assert backend.get(Get(b"b")) is None


def test_expired_records_do_not_pile_up() -> None:
    """I11: memory stays in proportion to the live records, without a thread."""
    clock = ManualClock()
    backend = MemoryBackend(clock=clock)
    for number in range(5000):
        _lease(backend, claim_of(b"%d" % number, lease=1.0, ttl=9.0))
        clock.advance(0.1)
    # 100 are live at any moment; the rest had expired and is gone or soon will be.
    assert backend.purge(10_000) < 250


def test_a_record_that_is_read_is_a_copy() -> None:
    """B-05: changing a returned record does not change the stored one."""
    backend = MemoryBackend()
    _lease(backend, claim_of(b"a"))
    record = backend.get(Get(b"a"))
    assert record is not None
    record.token = 0
    again = backend.get(Get(b"a"))
    assert again is not None
    assert again.token > 0


def test_the_bounds_must_be_positive() -> None:
    """A wrong setting is refused at start; the error names it."""
    with pytest.raises(ConfigurationError, match="max_records"):
        AsyncMemoryBackend(max_records=0)
    with pytest.raises(ConfigurationError, match="max_bytes"):
        MemoryBackend(max_bytes=0)


def test_without_a_clock_time_passes() -> None:
    """B-01: the backend's default clock."""
    backend = MemoryBackend()
    first = _lease(backend, claim_of(os.urandom(16)))
    second = _lease(backend, claim_of(os.urandom(16)))
    assert second.token >= first.token > 1_600_000_000_000_000


def test_a_dropped_backend_is_collected() -> None:
    """I11: the sync and the async backend refer to each other without keeping each other alive."""
    import weakref

    backend = MemoryBackend()
    gone = weakref.ref(backend)
    del backend
    gc.collect()
    assert gone() is None


def test_random_keys_that_are_refused_fill_it_for_an_hour_at_most() -> None:
    """B-26: each invented key gets a 404, whose record lives no longer than ``error_ttl``."""
    clock = ManualClock(100.0)
    adapter = Adapter(backend=MemoryBackend(max_records=3, clock=clock))

    def post() -> int:
        key = secrets.token_hex(16).encode()
        request = Request("POST", b"/", b"", [(b"idempotency-key", key)], None)
        return adapter.handle(request, b"", lambda: Response(404, [], b"")).status

    assert [post() for _ in range(4)] == [404, 404, 404, 503]
    clock.advance(3_600)
    assert post() == 404


def test_each_has_records_of_its_own() -> None:
    """Another instance, as after a restart or a reload, has no records: both let the request run."""
    for _ in range(2):
        assert isinstance(MemoryBackend().claim(claim_of(b"r" * 32)), Leased)
