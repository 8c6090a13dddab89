"""The decision table, for backends that hold a lock or a transaction while they run it.

Each function takes (record or None, command, now in seconds) and returns (answer, record to keep). The kept record
**is** the given one where nothing changes, and None where the record is to be deleted. The owner's verbs raise
``LeaseLost``, ``save_stage`` also ``AlreadyCompleted``; then nothing is to be changed.
"""

from __future__ import annotations

from open_idempotency._core.decisions import (
    TRANSITIONS,
    State,
    claim,
    complete,
    fail,
    release,
    renew,
    save_stage,
    state_of,
)

__all__ = [
    "TRANSITIONS",
    "State",
    "claim",
    "complete",
    "fail",
    "release",
    "renew",
    "save_stage",
    "state_of",
]
