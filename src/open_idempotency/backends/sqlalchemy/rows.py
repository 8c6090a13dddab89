"""Between rows and records: strict reading, so that a corrupt, foreign or newer row is never acted upon."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from open_idempotency.backend import Record, Stage, Status
from open_idempotency.exceptions import RecordUnreadable

RECORD_VERSION = 1
_STATUSES = {int(status): status for status in Status if status is not Status.NONE}
# As HEADER of ``statements`` has them, and the response.
_KINDS: tuple[type | tuple[type, ...], ...] = (
    int, bytes, int, bytes, int, int, float, float, float, float, int, (bytes, type(None)),
)  # fmt: skip
# Some databases have no infinity.
_LARGEST = sys.float_info.max


def seconds(value: float) -> float:
    """A duration or time as it is stored; ``for ever`` as the largest number."""
    return min(float(value), _LARGEST)


def record_of(record_id: bytes, row: Sequence[Any]) -> Record:
    """The record in a row of the header and the response, without its stages. Raises ``RecordUnreadable``."""
    if row[0] != RECORD_VERSION:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has the unknown version {row[0]!r:.20}")
    values = [_plain(value) for value in row]
    sound = all(isinstance(value, kind) for value, kind in zip(values, _KINDS, strict=True))
    if not sound or values[2] not in _STATUSES or values[10] not in (0, 1):
        raise RecordUnreadable(f"record {record_id[:6].hex()} is corrupt")
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response = values
    return Record(
        record_id, fingerprint, _STATUSES[status], owner, token, attempt,
        claimed_at, lease_end, _seconds(ttl), _seconds(expires_at), bool(final), response,
    )  # fmt: skip


def values_of(record: Record) -> dict[str, Any]:
    """The columns of a record."""
    return {
        "record_id": record.record_id,
        "record_version": RECORD_VERSION,
        "fingerprint": record.fingerprint,
        "status": int(record.status),
        "owner": record.owner,
        "token": record.token,
        "attempt": record.attempt,
        "claimed_at": record.claimed_at,
        "lease_end": seconds(record.lease_end),
        "ttl": seconds(record.ttl),
        "expires_at": seconds(record.expires_at),
        "final": int(record.final),
        "response": record.response,
    }


def with_stages(record: Record, rows: Iterable[Sequence[Any]]) -> Record:
    """The record with the stages of rows of name, key and frame. Raises ``RecordUnreadable``."""
    return replace(record, stages=tuple(_stage_of(record.record_id, row) for row in rows))


def _stage_of(record_id: bytes, row: Sequence[Any]) -> Stage:
    values = [_plain(value) for value in row]
    if not all(isinstance(value, bytes) for value in values):
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt")
    name, key, frame = values
    try:
        return Stage(name.decode("utf-8", "surrogatepass"), key.decode("utf-8", "surrogatepass"), frame)
    except UnicodeDecodeError as error:
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt") from error


def stage_names(stage: Stage) -> tuple[bytes, bytes]:
    """Name and key as bytes; they may hold any character, lone surrogates and NUL included."""
    return stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")


def stage_id(stage: Stage) -> bytes:
    """The digest that knows a stage of a record."""
    name, key = stage_names(stage)
    return hashlib.sha256(len(name).to_bytes(8, "big") + name + key).digest()


def end_of(record_id: bytes, value: object) -> float | None:
    """The end of a reservation. Raises ``RecordUnreadable``."""
    if value is not None and not isinstance(value, float):
        raise RecordUnreadable(f"the reservation of record {record_id[:6].hex()} is corrupt")
    return None if value is None else _seconds(value)


def _seconds(value: float) -> float:
    return math.inf if value >= _LARGEST else value


def _plain(value: Any) -> Any:
    # Some drivers give a view into what they received.
    return bytes(value) if isinstance(value, memoryview | bytearray) else value
