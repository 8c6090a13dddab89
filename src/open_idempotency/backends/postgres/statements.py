"""The statements that the PostgreSQL backend runs, and their parameters. No value ever becomes part of a statement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from open_idempotency import decisions
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
    Withdraw,
)
from open_idempotency.backends.postgres.encoding import Statement

Parameters = tuple[Any, ...]

_LEASE = (
    "({bytea}, {bytea}, {bigint}, {integer}, {bytea}, {double precision}, {double precision})::open_idempotency.lease"
)
#: the time of a test's clock, or NULL
_NOW = "{double precision}"
#: the same, where a row that somebody keeps locked is waited for only shortly; it is read after the setting was made
_HURRIED_NOW = "CASE WHEN hurry.made IS NOT NULL THEN {double precision} END"
_HURRY = "set_config('lock_timeout', '100ms', true) AS hurry (made), LATERAL"


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb that may go into a batch: its statement alone, the same for a batch of one, and its parameters."""

    statement: Statement
    hurried: Statement
    parameters: Callable[[Any], Parameters]
    size: Callable[[Any], int]


def _verb(columns: str, call: str, parameters: Callable[[Any], Parameters], size: Callable[[Any], int]) -> Verb:
    """``call``: of a function, with its time as ``:now`` and its lease as ``:lease``."""
    call = "open_idempotency." + call.replace(":lease", _LEASE)
    return Verb(
        Statement(" ".join(("SELECT", columns, "FROM", call.replace(":now", _NOW)))),
        Statement(" ".join(("SELECT", columns, "FROM", _HURRY, call.replace(":now", _HURRIED_NOW)))),
        parameters,
        size,
    )


def _statement(text: str) -> Statement:
    return Statement(text.replace(":now", _NOW))


def _lease(lease: Lease) -> Parameters:
    return (
        lease.record_id, lease.owner, lease.token, lease.attempt, lease.fingerprint, lease.duration, lease.ttl,
    )  # fmt: skip


def _claim(c: Claim) -> Parameters:
    lease = (c.record_id, c.owner, 0, 0, c.fingerprint, c.lease, c.ttl)
    return (*lease, c.resume_failed, c.resume_abandoned, c.max_attempts)


def _save_stage(c: SaveStage) -> Parameters:
    return (*_lease(c.lease), *stage_key(c.stage), c.stage.frame)


def _complete(c: Complete) -> Parameters:
    return (*_lease(c.lease), c.response)


def _fail(c: Fail) -> Parameters:
    return (*_lease(c.lease), c.final, c.response)


def _release(c: Release) -> Parameters:
    return _lease(c.lease)


def _no_bytes(c: object) -> int:
    return 0


CLAIM = _verb(
    "code, reason, token, attempt, elapsed, remaining, response, names, keys, frames",
    "claim(:now, :lease, {boolean}, {boolean}, {integer})",
    _claim,
    _no_bytes,
)
SAVE_STAGE = _verb(
    "code, frame",
    "save_stage(:now, :lease, {bytea}, {bytea}, {bytea})",
    _save_stage,
    lambda c: len(c.stage.frame),
)
COMPLETE = _verb("code", "complete(:now, :lease, {bytea})", _complete, lambda c: len(c.response))
FAIL = _verb("code", "fail(:now, :lease, {boolean}, {bytea})", _fail, lambda c: len(c.response or b""))
RELEASE = _verb("code", "release(:now, :lease)", _release, _no_bytes)

RENEW = _statement("SELECT open_idempotency.renew(:now, {bytea[]}, {bytea[]}, {bigint[]}, {double precision[]})")
GET = _statement("SELECT * FROM open_idempotency.get(:now, {bytea})")
FORGET = _statement("SELECT open_idempotency.forget(:now, {bytea})")
PURGE = _statement("SELECT open_idempotency.purge(:now, {integer})")
AWAIT = _statement("SELECT open_idempotency.await(:now, {bytea})")
RESERVE = _statement(
    "SELECT code, remaining FROM open_idempotency.reserve("
    ":now, {bytea}, {bytea}, {integer}, {double precision}, {double precision})"
)
UNRESERVE = _statement("SELECT open_idempotency.unreserve(:now, {bytea}, {bytea})")
WITHDRAW = _statement("SELECT open_idempotency.withdraw(:now, {bytea}, {bytea}, {double precision})")
SCAN = _statement("SELECT open_idempotency.scan(:now, {bytea}, {integer})")

#: how many leases and records go into one call
RENEWED_AT_ONCE = SCANNED_AT_ONCE = 500


def renew(c: Renew) -> Parameters:
    """For ``RENEW``, after the time."""
    return (
        [lease.record_id for lease in c.leases],
        [lease.owner for lease in c.leases],
        [lease.token for lease in c.leases],
        [lease.duration for lease in c.leases],
    )


def get(c: Get) -> Parameters:
    """For ``GET``, after the time."""
    return (c.record_id,)


def reserve(c: Reserve) -> Parameters:
    """For ``RESERVE``, after the time."""
    return (c.scope_id, c.record_id, c.limit, c.lease + c.ttl, 2 * c.lease + c.ttl)


def unreserve(c: Unreserve) -> Parameters:
    """For ``UNRESERVE``, after the time."""
    return c.scope_id, c.record_id


def withdraw(c: Withdraw) -> Parameters:
    """For ``WITHDRAW``, after the time."""
    return c.claim.record_id, c.claim.owner, decisions.WITHDRAWN_FOR


def stage_key(stage: Stage) -> tuple[bytes, bytes]:
    """Name and key as bytes; they may hold any character, lone surrogates and NUL included."""
    return stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")
