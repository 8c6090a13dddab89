"""A view explains a record, and shows clients' data only on request."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from open_idempotency import IdempotencyPolicy, operations
from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import RESPONSE, encode_response, seal, seal_stage
from open_idempotency.backend import Backend, Complete, Get, Lease, Record
from open_idempotency.conformance import ManualClock
from open_idempotency.encryption import EncryptionKeys, new_key
from open_idempotency.exceptions import RecordUnreadable
from open_idempotency.operations.views import duration
from tests.operations.stores import Maker, begun, value

SECRET = "secret-42"


def read(backend: Backend, lease: Lease) -> Record:
    """The record, which has to exist."""
    record = backend.get(Get(lease.record_id))
    assert record is not None
    return record


def test_bodies_are_shown_only_where_they_are_asked_for(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-12: the response, its headers, and the values of stages."""
    lease = maker.lease()
    maker.save(lease, value("token", f'"{SECRET}"'))
    frame = encode_response(Response(201, [(b"x-token", SECRET.encode())], SECRET.encode()))
    backend.complete(Complete(lease, frame))
    record = read(backend, lease)
    plain = operations.view_of(record, clock.now)
    assert SECRET not in json.dumps(operations.as_json(plain))
    assert plain.response is not None
    assert (plain.response.status, plain.response.size) == (201, len(frame))
    whole = json.dumps(operations.as_json(operations.view_of(record, clock.now, bodies=True)))
    assert whole.count(SECRET) == 3


def test_a_body_that_is_no_text_is_base64(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-12: in JSON."""
    view = operations.view_of(read(backend, maker.completed(b"\xff\x00")), clock.now, bodies=True)
    assert operations.as_json(view)["response"]["body_base64"] == "/wA="


@pytest.fixture
def policy() -> IdempotencyPolicy:
    """A policy with encryption."""
    return IdempotencyPolicy(encryption=EncryptionKeys({"2026": new_key()}))


def _sealed(maker: Maker, policy: IdempotencyPolicy) -> Lease:
    """An abandoned record with one stage completed and one begun, all encrypted."""
    lease = maker.lease(10.0)
    for stage in (value("token", f'"{SECRET}"'), begun("charge")):
        maker.save(lease, seal_stage(stage, lease, policy))
    return lease


def test_encrypted_bodies_are_never_shown_without_the_keys(
    backend: Backend, maker: Maker, clock: ManualClock, policy: IdempotencyPolicy
) -> None:
    """P-12: with another key or without any, the error says what to provide."""
    lease = maker.lease()
    frame = encode_response(Response(201, [], SECRET.encode()))
    backend.complete(Complete(lease, seal(frame, RESPONSE, lease, policy)))
    record = read(backend, lease)
    view = operations.view_of(record, clock.now)
    assert view.encrypted
    assert view.response is not None
    assert view.response.status is None
    for without in (None, IdempotencyPolicy()):
        with pytest.raises(operations.RecordSealed, match="--app"):
            operations.view_of(record, clock.now, policy=without, bodies=True)
    other = IdempotencyPolicy(encryption=EncryptionKeys({"2026": new_key()}))
    with pytest.raises(RecordUnreadable):
        operations.view_of(record, clock.now, policy=other, bodies=True)
    opened = operations.view_of(record, clock.now, policy=policy, bodies=True)
    assert opened.response is not None
    assert opened.response.body == SECRET.encode()


def test_an_encrypted_stage_is_in_doubt_until_the_keys_say_otherwise(
    backend: Backend, maker: Maker, clock: ManualClock, policy: IdempotencyPolicy
) -> None:
    """P-12, P-15: the worse case is shown; resolving needs the keys, and encrypts the value again."""
    lease = _sealed(maker, policy)
    clock.advance(11)
    record = read(backend, lease)
    assert [stage.found for stage in operations.view_of(record, clock.now).stages] == ["encrypted", "begun"]
    with pytest.raises(operations.RecordSealed):
        operations.resolve(backend, record, "charge", found=SECRET)
    operations.resolve(backend, record, "charge", found=SECRET, policy=policy)
    record = read(backend, lease)
    assert all(SECRET.encode() not in stage.frame for stage in record.stages)
    view = operations.view_of(record, clock.now, policy=policy, bodies=True)
    assert {stage.name: stage.value for stage in view.stages} == {"token": SECRET, "charge": SECRET}


def _explained(backend: Backend, clock: ManualClock, lease: Lease, **fields: Any) -> str:
    policy = IdempotencyPolicy(**fields) if fields else None
    return " ".join(operations.explain(operations.view_of(read(backend, lease), clock.now), policy))


def test_each_state_says_what_a_retry_gets(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-11."""
    assert "A retry gets 409 in-progress" in _explained(backend, clock, maker.alive())
    assert "A retry gets the stored response, status 201, for" in _explained(backend, clock, maker.completed())
    assert "unless the policy's on_failed" in _explained(backend, clock, maker.failed())
    assert "409 outcome-unknown" in _explained(backend, clock, maker.failed(final=True))
    doubtful = maker.in_doubt(10.0)
    clock.advance(11)
    said = _explained(backend, clock, doubtful)
    assert "its lease ended 1.0s ago" in said
    assert "Stage 'charge' is in doubt" in said


def test_the_policy_decides_where_it_is_known(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-11: then the sentence has no "unless"."""
    lease = maker.failed()
    assert "The next retry runs as attempt 2, with 1 stage done." in _explained(
        backend, clock, lease, on_failed="resume"
    )
    assert "on_failed='reject'. Release frees the key." in _explained(backend, clock, lease, on_failed="reject")
    assert "max_attempts=1 is used up" in _explained(backend, clock, lease, max_attempts=1)


def test_a_record_that_never_expires_is_json(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-11: JSON has no infinity."""
    view = operations.view_of(read(backend, maker.alive()), clock.now)
    endless = operations.RecordView(
        **{**{name: getattr(view, name) for name in view.__slots__}, "expires_in": math.inf}
    )
    assert json.loads(json.dumps(operations.as_json(endless), allow_nan=False))["expires_in"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (61, "1m 1s"),
        (3600, "1h"),
        (3725, "1h 2m"),
        (90_000, "1d 1h"),
        (math.inf, "for ever"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """P-10."""
    assert duration(seconds) == text
