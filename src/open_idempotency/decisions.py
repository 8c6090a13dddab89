"""The decision table, for backends that hold a lock or a transaction while they run it.

Each function takes (record or None, command, now in seconds) and returns (result, record to store). The stored record
**is** the given one where nothing changes, and None where the record is to be deleted. The owner's verbs raise
``LeaseLost``, ``save_stage`` also ``AlreadyCompleted``; then nothing is to be changed. ``reserve`` is about
reservations and not about records; its docstring says what it takes. ``rebased`` is for backends whose clock may be put
back, and comes before ``claim``.
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
