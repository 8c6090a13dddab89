"""The statements that the PostgreSQL backend runs, and their parameters. No value ever becomes part of a statement."""

from __future__ import annotations

from typing import Any

from open_idempotency.backend import (
    Claim,
    Complete,
    Fail,
    Get,
    Lease,
    Release,
    Renew,
    Reserve,
    SaveStage,
    Stage,
    Unreserve,
)

Parameters = tuple[Any, ...]

_WORDS = {
    ":now": "%s::double precision",
    ":lease": "(%b::bytea, %b::bytea, %s::bigint, %s::integer, %b::bytea, %s::double precision, %s::double precision)"
    "::open_idempotency.lease",
}


def _statement(text: str) -> bytes:
    """The text with the words that all statements share written out."""
    for word, meaning in _WORDS.items():
        text = text.replace(word, meaning)
    return text.encode()


CLAIM = _statement(
    "SELECT code, reason, token, attempt, elapsed, remaining, response, names, keys, frames"
    " FROM open_idempotency.claim(:now, :lease, %s, %s, %s::integer)"
)
RENEW = _statement(
    "SELECT open_idempotency.renew(:now, %b::bytea[], %b::bytea[], %s::bigint[], %s::double precision[])"
)
SAVE_STAGE = _statement(
    "SELECT code, frame FROM open_idempotency.save_stage(:now, :lease, %b::bytea, %b::bytea, %b::bytea)"
)
COMPLETE = _statement("SELECT open_idempotency.complete(:now, :lease, %b::bytea)")
FAIL = _statement("SELECT open_idempotency.fail(:now, :lease, %s, %b::bytea)")
RELEASE = _statement("SELECT open_idempotency.release(:now, :lease)")
GET = _statement("SELECT * FROM open_idempotency.get(:now, %b::bytea)")
FORGET = _statement("SELECT open_idempotency.forget(:now, %b::bytea)")
PURGE = _statement("SELECT open_idempotency.purge(:now, %s::integer)")
AWAIT = _statement("SELECT open_idempotency.await(:now, %b::bytea)")
RESERVE = _statement(
    "SELECT code, remaining FROM open_idempotency.reserve("
    ":now, %b::bytea, %b::bytea, %s::integer, %s::double precision, %s::double precision)"
)
UNRESERVE = _statement("SELECT open_idempotency.unreserve(:now, %b::bytea, %b::bytea)")
SCAN = _statement("SELECT open_idempotency.scan(:now, %b::bytea, %s::integer)")

#: how many leases and records go into one call
RENEWED_AT_ONCE = SCANNED_AT_ONCE = 500


def claim(c: Claim) -> Parameters:
    """For ``CLAIM``, after the time."""
    lease = (c.record_id, c.owner, 0, 0, c.fingerprint, c.lease, c.ttl)
    return (*lease, c.resume_failed, c.resume_abandoned, c.max_attempts)


def _lease(lease: Lease) -> Parameters:
    return (
        lease.record_id, lease.owner, lease.token, lease.attempt, lease.fingerprint, lease.duration, lease.ttl,
    )  # fmt: skip


def renew(c: Renew) -> Parameters:
    """For ``RENEW``, after the time."""
    return (
        [lease.record_id for lease in c.leases],
        [lease.owner for lease in c.leases],
        [lease.token for lease in c.leases],
        [float(lease.duration) for lease in c.leases],
    )


def save_stage(c: SaveStage) -> Parameters:
    """For ``SAVE_STAGE``, after the time."""
    return (*_lease(c.lease), *stage_key(c.stage), c.stage.frame)


def complete(c: Complete) -> Parameters:
    """For ``COMPLETE``, after the time."""
    return (*_lease(c.lease), c.response)


def fail(c: Fail) -> Parameters:
    """For ``FAIL``, after the time."""
    return (*_lease(c.lease), c.final, c.response)


def release(c: Release) -> Parameters:
    """For ``RELEASE``, after the time."""
    return _lease(c.lease)


def get(c: Get) -> Parameters:
    """For ``GET``, after the time."""
    return (c.record_id,)


def reserve(c: Reserve) -> Parameters:
    """For ``RESERVE``, after the time."""
    return (c.scope_id, c.record_id, c.limit, c.lease + c.ttl, 2 * c.lease + c.ttl)


def unreserve(c: Unreserve) -> Parameters:
    """For ``UNRESERVE``, after the time."""
    return c.scope_id, c.record_id


def stage_key(stage: Stage) -> tuple[bytes, bytes]:
    """Name and key as bytes; they may hold any character, lone surrogates and NUL included."""
    return stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")
