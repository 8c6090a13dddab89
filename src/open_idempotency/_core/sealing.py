"""Sealing: what goes to a backend encrypted, and how it comes back. The one function for each direction.

Frames are plain everywhere inside; they are sealed right before they are handed to a backend and unsealed as soon as
they are read. A sealed frame is bound to its position: the record, the request's fingerprint, and its kind (the
response, the response of a failure, the stage of this name and key). The cipher is the sealer's; there is none here.
"""

from __future__ import annotations

from collections.abc import Sequence

from open_idempotency._core.commands import Claim
from open_idempotency._core.keys import digest
from open_idempotency._core.models import Lease, Stage
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy

#: the first byte of a sealed frame; a plain one begins with its version, which is below
SEALED = b"\x80"

RESPONSE, FAILURE, _STAGE = b"answer", b"failure", b"stage"


def seal(frame: bytes, kind: bytes, of: Claim | Lease, policy: IdempotencyPolicy, *names: str) -> bytes:
    """A frame as it goes to the backend. ``kind`` and ``names``: what it is in that record.

    Raises ``BackendUnavailable``, with the sealer's own error as its cause: plain it must not be stored.
    """
    sealer = policy.encryption
    if sealer is None or policy.plain_records == "write":
        return frame
    try:
        return SEALED + sealer.seal(frame, _place(kind, of, names))
    except Exception as error:
        raise BackendUnavailable("encryption= could not seal what is to be stored") from error


def unseal(stored: bytes, kind: bytes, of: Claim | Lease, policy: IdempotencyPolicy, *names: str) -> bytes:
    """The plain frame of what a backend returned. Raises ``RecordUnreadable``, whatever the sealer raises."""
    sealer = policy.encryption
    if not stored.startswith(SEALED):
        if sealer is None or policy.plain_records != "refuse":
            return stored
        raise RecordUnreadable("a stored frame is not encrypted; plain_records= says when that is accepted")
    if sealer is None:
        raise RecordUnreadable("a stored frame is encrypted, and this policy has no encryption=")
    try:
        frame = sealer.unseal(stored[len(SEALED) :], _place(kind, of, names))
    except RecordUnreadable:
        raise
    except Exception as error:
        raise RecordUnreadable("a stored frame cannot be decrypted") from error
    if not isinstance(frame, bytes):
        raise RecordUnreadable(f"encryption= returned {type(frame).__name__} where bytes belong")
    return frame


def seal_stage(stage: Stage, of: Lease, policy: IdempotencyPolicy) -> Stage:
    """A stage as it goes to the backend; its name and key stay as they are. Raises ``BackendUnavailable``."""
    if policy.encryption is None:
        return stage
    return Stage(stage.name, stage.key, seal(stage.frame, _STAGE, of, policy, stage.name, stage.key))


def unseal_stage(stage: Stage, of: Lease, policy: IdempotencyPolicy) -> Stage:
    """A stage as attempts know it. Raises ``RecordUnreadable``."""
    return Stage(stage.name, stage.key, unseal(stage.frame, _STAGE, of, policy, stage.name, stage.key))


def _place(kind: bytes, of: Claim | Lease, names: Sequence[str]) -> bytes:
    return digest(None, b"oi-sealed-1", kind, of.record_id, of.fingerprint, *(name.encode() for name in names))
