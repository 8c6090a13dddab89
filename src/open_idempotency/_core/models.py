"""The nouns of the protocol: status, stage, lease, record, and what a claim can result in.

Plain slotted values. Bytes that a backend keeps (``fingerprint``, ``frame``, ``response``) are opaque to it.
Times are seconds on the backend's clock; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from math import inf
from typing import Any

#: a Django database alias, or what opens a transaction
Ledger = str | Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]


class Status(IntEnum):
    """A record's status, with the numbers of the Open-Idempotency System."""

    NONE = 0
    IN_PROGRESS = 1
    COMPLETED = 2
    FAILED = 3


@dataclass(slots=True, frozen=True)
class Stage:
    """One recorded stage, known by (name, key); ``key`` is ``""`` where none was given."""

    name: str
    key: str
    frame: bytes


@dataclass(slots=True)
class Lease:
    """Proof of one claim: whoever holds it owns the record until somebody else claims it.

    ``token`` grows with every claim of the record and fences off earlier owners; ``owner`` is the random id that
    the claimer made, so that a claim resent after a lost reply is recognised. The remaining attributes let a backend
    re-create a record that vanished under its owner.
    """

    record_id: bytes
    owner: bytes
    token: int
    attempt: int
    fingerprint: bytes
    duration: float
    ttl: float


@dataclass(slots=True)
class Record:
    """A stored record as operators and the decision table see it. ``response`` and stages are frames."""

    record_id: bytes
    fingerprint: bytes
    status: Status
    owner: bytes
    token: int
    attempt: int
    claimed_at: float
    lease_end: float
    ttl: float
    expires_at: float
    final: bool = False
    response: bytes | None = None
    stages: tuple[Stage, ...] = ()


@dataclass(slots=True)
class Leased:
    """The caller owns the record; ``stages`` are those of earlier attempts, in the order they were saved."""

    lease: Lease
    stages: tuple[Stage, ...] = ()
    #: when the claim was asked for, in seconds on the monotonic clock of its process; set by the performer
    asked: float = field(default=inf, compare=False)


@dataclass(slots=True)
class Busy:
    """Somebody else owns it: since ``elapsed`` seconds, for at least ``remaining`` seconds more."""

    elapsed: float
    remaining: float


@dataclass(slots=True)
class Finished:
    """Completed: the stored response frame."""

    response: bytes


class Refusal(Enum):
    """Why no further attempt is admitted although no response was completed."""

    FAILED = "failed"
    ABANDONED = "abandoned"
    ATTEMPTS = "attempts"
    WITHDRAWN = "withdrawn"


@dataclass(slots=True)
class Refused:
    """The record admits no further attempt; a failed response to replay may be stored with it."""

    reason: Refusal
    attempt: int
    response: bytes | None = None


@dataclass(slots=True)
class Mismatch:
    """The key is in use for a request with another fingerprint."""


ClaimResult = Leased | Busy | Finished | Refused | Mismatch


class Renewal(IntEnum):
    """What ``renew`` found for one lease."""

    OWNED = 0
    LOST = 1
    VANISHED = 2


@dataclass(slots=True)
class StageSaved:
    """``frame`` is the value on record: the first one saved under that name and key, for ever.

    ``recreated``: the record had vanished and now holds this stage only.
    """

    frame: bytes
    recreated: bool = False


@dataclass(slots=True)
class Reserved:
    """The key counts towards its caller's quota, from now on or already."""


@dataclass(slots=True)
class OverQuota:
    """The caller has as many live keys as it may have; the first of them counts for ``remaining`` seconds more."""

    remaining: float


ReserveResult = Reserved | OverQuota


@dataclass(slots=True)
class Completed:
    """The response is durable. ``recreated``: the record had vanished while its owner ran."""

    recreated: bool = False
