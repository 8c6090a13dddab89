"""Operators' changes never affect an attempt that they have not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency import operations
from open_idempotency._core.stored_response import StageKind, decode_stage
from open_idempotency.backend import (
    Backend,
    Busy,
    Claim,
    ClaimResult,
    Complete,
    Get,
    Leased,
    Record,
    Renew,
    Renewal,
    SaveStage,
    StageSaved,
    Status,
)
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.exceptions import BackendUnavailable, LeaseLost, StageValueError
from tests.operations.stores import LONG, Maker, begun, value


def read(backend: Backend, record_id: bytes) -> Record:
    """The record, which has to exist."""
    record = backend.get(Get(record_id))
    assert record is not None
    return record


def next_claim(backend: Backend, record_id: bytes, **fields: Any) -> ClaimResult:
    """The result of the next request's claim under the strictest policy."""
    strict = {"resume_failed": False, "resume_abandoned": False, "max_attempts": 1, **fields}
    return backend.claim(Claim(record_id, b"f", b"n" * 16, 30.0, 3600.0, **strict))


def test_a_released_record_is_free_at_once_and_its_worker_is_fenced(stored: Backend) -> None:
    """P-14: on each backend; the stages stay, and a worker that is still alive changes nothing."""
    maker = Maker(stored)
    lease = maker.alive()
    operations.release(stored, read(stored, lease.record_id))
    assert stored.renew(Renew([lease])) == [Renewal.LOST]
    with pytest.raises(LeaseLost):
        stored.complete(Complete(lease, b"late"))
    claimed = next_claim(stored, lease.record_id)
    assert isinstance(claimed, Leased)
    assert [stage.name for stage in claimed.stages] == ["reserve"]


def test_a_completed_record_is_not_released(backend: Backend, maker: Maker) -> None:
    """P-14: its key is not held, and its response would be lost."""
    lease = maker.completed()
    seen = read(backend, lease.record_id)
    with pytest.raises(operations.OperationRefused, match="completed"):
        operations.release(backend, seen)
    assert read(backend, lease.record_id) == seen


def test_a_release_spares_the_attempt_that_came_after(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-14: the operator has seen attempt 1, and attempt 2 is running."""
    first = maker.lease(10.0)
    seen = read(backend, first.record_id)
    clock.advance(11)
    second = maker.lease(record_id=first.record_id)
    with pytest.raises(operations.RecordChanged):
        operations.release(backend, seen)
    assert backend.renew(Renew([second])) == [Renewal.OWNED]


def test_a_release_of_which_the_reply_was_lost_succeeds_again(backend: Backend, maker: Maker) -> None:
    """P-14: the key is free, as requested."""
    seen = read(backend, maker.alive().record_id)
    operations.release(backend, seen)
    operations.release(backend, seen)


def test_a_live_record_is_forgotten_with_force_alone(backend: Backend, maker: Maker) -> None:
    """P-13."""
    lease = maker.alive()
    seen = read(backend, lease.record_id)
    with pytest.raises(operations.RecordAlive, match="--force"):
        operations.forget(backend, seen)
    assert backend.renew(Renew([lease])) == [Renewal.OWNED]
    operations.forget(backend, seen, force=True)
    assert backend.get(Get(lease.record_id)) is None


def test_a_forgotten_record_runs_anew(stored: Backend) -> None:
    """P-13: on each backend; forgetting it twice is no error."""
    lease = Maker(stored).completed()
    seen = read(stored, lease.record_id)
    for _ in range(2):
        operations.forget(stored, seen)
    claimed = next_claim(stored, lease.record_id)
    assert isinstance(claimed, Leased)
    assert claimed.stages == ()


def test_a_forget_spares_a_response_that_came_after(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-13: the operator saw the attempt abandoned, and its worker completed it afterwards."""
    lease = maker.lease(10.0)
    clock.advance(11)
    seen = read(backend, lease.record_id)
    backend.complete(Complete(lease, b"response"))
    with pytest.raises(operations.RecordChanged):
        operations.forget(backend, seen)
    assert read(backend, lease.record_id).status is Status.COMPLETED


@pytest.mark.parametrize("found", [{"id": "ch_1"}, "ch_1", None, 0])
def test_a_stage_that_has_happened_gets_its_value(stored: Backend, found: Any) -> None:
    """P-15: on each backend; under any policy the next request has the value and does not run the stage."""
    lease = Maker(stored).in_doubt()
    operations.resolve(stored, read(stored, lease.record_id), "charge", found=found)
    claimed = next_claim(stored, lease.record_id)
    assert isinstance(claimed, Leased)
    view = operations.view_of(read(stored, lease.record_id), stored.now(), bodies=True)
    (charge,) = [stage for stage in view.stages if stage.name == "charge"]
    assert (charge.found, charge.value) == ("done", found)
    with pytest.raises(LeaseLost):
        stored.save_stage(SaveStage(lease, value("charge", '"other"')))


def test_a_stage_that_has_not_happened_is_withdrawn(stored: Backend) -> None:
    """P-15: the next request runs it, and records its own intent."""
    lease = Maker(stored).in_doubt()
    operations.resolve(stored, read(stored, lease.record_id), "charge", found=operations.NOT_DONE)
    claimed = next_claim(stored, lease.record_id)
    assert isinstance(claimed, Leased)
    kinds = {(stage.name, stage.key): decode_stage(stage.frame)[0] for stage in claimed.stages}
    assert kinds["charge", "\x1f2"] is StageKind.WITHDRAWN


def test_a_stage_with_a_key_is_resolved_by_both(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-15: the other key of the same name stays in doubt."""
    lease = maker.lease(10.0)
    for key in ("a", "b"):
        maker.save(lease, begun("charge", key))
    clock.advance(11)
    seen = read(backend, lease.record_id)
    with pytest.raises(operations.NotInDoubt, match=r"--stage charge --stage-key a; --stage charge --stage-key b"):
        operations.resolve(backend, seen, "charge", found=1)
    operations.resolve(backend, seen, "charge", "a", found=1)
    view = operations.view_of(read(backend, lease.record_id), clock.now)
    assert [(stage.name, stage.key) for stage in view.in_doubt] == [("charge", "b")]


def test_nothing_is_resolved_beside_a_running_attempt(backend: Backend, maker: Maker) -> None:
    """P-15: the attempt may record the stage itself."""
    lease = maker.in_doubt(LONG)
    before = read(backend, lease.record_id)
    with pytest.raises(operations.RecordAlive):
        operations.resolve(backend, before, "charge", found=1)
    assert read(backend, lease.record_id) == before


class _Late(MemoryBackend):
    """Runs a function between the operator's read and claim."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def claim(self, c: Claim, /) -> ClaimResult:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return super().claim(c)


def test_nothing_is_resolved_if_an_attempt_begins_meanwhile(clock: ManualClock) -> None:
    """P-15: the claim decides, not the earlier read."""
    backend = _Late(clock=clock)
    maker = Maker(backend)
    lease = maker.in_doubt(10.0)
    clock.advance(11)
    backend.meanwhile = lambda: maker.lease(record_id=lease.record_id)
    with pytest.raises(operations.RecordAlive):
        operations.resolve(backend, read(backend, lease.record_id), "charge", found=1)
    names = [stage.key for stage in read(backend, lease.record_id).stages if stage.name == "charge"]
    assert names == ["\x1f1"]


def test_nothing_is_resolved_if_an_attempt_ran_meanwhile(clock: ManualClock) -> None:
    """P-15: the doubt may be that of a newer attempt. The key is not held afterwards."""
    backend = _Late(clock=clock)
    maker = Maker(backend)
    lease = maker.in_doubt(10.0)
    clock.advance(11)
    seen = read(backend, lease.record_id)

    def another() -> None:
        maker.lease(10.0, record_id=lease.record_id)
        clock.advance(11)

    backend.meanwhile = another
    with pytest.raises(operations.RecordChanged):
        operations.resolve(backend, seen, "charge", found="its own")
    names = [stage.key for stage in read(backend, lease.record_id).stages if stage.name == "charge"]
    assert names == ["\x1f1"]
    assert isinstance(next_claim(backend, lease.record_id, resume_failed=True, max_attempts=None), Leased)


def test_nothing_is_resolved_if_the_stage_ends_meanwhile(clock: ManualClock) -> None:
    """P-15: the worker that seemed dead has recorded it; the operator does not hold the key afterwards."""
    backend = _Late(clock=clock)
    maker = Maker(backend)
    lease = maker.in_doubt(10.0)
    clock.advance(11)
    seen = read(backend, lease.record_id)

    def worker() -> None:
        maker.save(lease, value("charge", '"its own"'))
        clock.advance(11)

    backend.meanwhile = worker
    with pytest.raises(operations.NotInDoubt, match="is done"):
        operations.resolve(backend, seen, "charge", found="another")
    assert isinstance(next_claim(backend, lease.record_id, resume_failed=True, max_attempts=None), Leased)


class _Breaking(MemoryBackend):
    """A backend that cannot save a stage."""

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        if c.lease.owner != self.worker:
            raise BackendUnavailable("no reply")
        return super().save_stage(c)

    worker = b""


def test_a_resolution_that_fails_leaves_the_key_to_others(clock: ManualClock) -> None:
    """P-15: the operator's claim is released, and only the record's token has changed."""
    backend = _Breaking(clock=clock)
    maker = Maker(backend)
    lease = maker.lease(10.0)
    backend.worker = lease.owner
    maker.save(lease, begun("charge"))
    clock.advance(11)
    with pytest.raises(BackendUnavailable):
        operations.resolve(backend, read(backend, lease.record_id), "charge", found=1)
    record = read(backend, lease.record_id)
    assert (record.status, record.attempt, len(record.stages)) == (Status.FAILED, 1, 1)
    assert not isinstance(next_claim(backend, lease.record_id, resume_failed=True, max_attempts=None), Busy)


class _Stalled(MemoryBackend):
    """Delays the operator's process before it saves."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        self.meanwhile()
        return super().save_stage(c)


def test_an_operator_that_was_overtaken_changes_nothing(clock: ManualClock) -> None:
    """P-15: after a minute another attempt may claim the record, and record the stage."""
    backend = _Stalled(clock=clock)
    maker = Maker(backend)
    lease = maker.in_doubt(10.0)
    clock.advance(11)

    def overtaken() -> None:
        clock.advance(61)
        maker.lease(record_id=lease.record_id)

    seen = read(backend, lease.record_id)
    backend.meanwhile = overtaken
    with pytest.raises(operations.RecordChanged):
        operations.resolve(backend, seen, "charge", found=1)
    assert [stage.key for stage in read(backend, lease.record_id).stages if stage.name == "charge"] == ["\x1f1"]


def test_a_record_that_is_gone_is_not_made_anew(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-15: it was forgotten after the read."""
    lease = maker.in_doubt(10.0)
    clock.advance(11)
    seen = read(backend, lease.record_id)
    backend.delete(lease.record_id)
    with pytest.raises(operations.RecordUnknown):
        operations.resolve(backend, seen, "charge", found=1)
    assert backend.get(Get(lease.record_id)) is None


@pytest.mark.parametrize("state", ["completed", "final"])
def test_a_record_that_has_ended_is_not_resolved(backend: Backend, maker: Maker, state: str) -> None:
    """P-15: the error says what to do."""
    lease = maker.completed() if state == "completed" else maker.failed(final=True)
    with pytest.raises(operations.OperationRefused, match="completed" if state == "completed" else "release it first"):
        operations.resolve(backend, read(backend, lease.record_id), "charge", found=1)


@pytest.mark.parametrize("found", [object(), float("nan"), {1: object()}])
def test_what_is_no_json_is_refused_before_any_claim(
    backend: Backend, maker: Maker, clock: ManualClock, found: Any
) -> None:
    """P-15: also a value over ``max_stage_bytes``."""
    lease = maker.in_doubt(10.0)
    clock.advance(11)
    before = read(backend, lease.record_id)
    for wrong in (found, "x" * 2_000_000):
        with pytest.raises(StageValueError):
            operations.resolve(backend, before, "charge", found=wrong)
    assert read(backend, lease.record_id) == before
