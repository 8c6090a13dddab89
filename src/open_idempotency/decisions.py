"""The decision table, for backends that hold a lock or a transaction while they run it.

Each function takes (record or None, command, now in seconds) and returns (result, record to store). The record to store
**is** the given one if nothing changes, and None if the record must be deleted. The owner's verbs raise ``LeaseLost``,
and ``save_stage`` also ``AlreadyCompleted``; then nothing must be changed. ``reserve`` takes reservations instead of a
record, as its docstring says. Backends whose clock may be put back call ``rebased`` before ``claim``.
"""

from __future__ import annotations

from open_idempotency._core.decisions import (
    TRANSITIONS,
    WITHDRAWN_FOR,
    State,
    claim,
    complete,
    fail,
    free,
    rebased,
    release,
    renew,
    save_stage,
    state_of,
    withdraw,
    withdrawn_id,
)
from open_idempotency._core.quotas import decide as reserve

__all__ = [
    "TRANSITIONS",
    "WITHDRAWN_FOR",
    "State",
    "claim",
    "complete",
    "fail",
    "free",
    "rebased",
    "release",
    "renew",
    "reserve",
    "save_stage",
    "state_of",
    "withdraw",
    "withdrawn_id",
]
