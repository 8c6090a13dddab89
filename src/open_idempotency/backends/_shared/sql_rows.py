"""Between rows and records, for the databases of applications: a row that is corrupt, foreign or newer is refused.

SQLite keeps whatever type it is given, so types are checked. Drivers differ in how they return bytes and booleans.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from open_idempotency.backend import Record, Stage, Status
from open_idempotency.exceptions import RecordUnreadable

RECORD_VERSION = 1
#: the columns of a row, in this order, followed by the response
HEADER = (
    "record_version", "fingerprint", "status", "owner", "token", "attempt",
    "claimed_at", "lease_end", "ttl", "expires_at", "final",
)  # fmt: skip
#: those of them that are times and durations, in seconds
SECONDS = frozenset({"claimed_at", "lease_end", "ttl", "expires_at"})
_BYTES = (bytes, bytearray, memoryview)
_SECONDS = (float, int)
_KINDS: tuple[Any, ...] = (
    int, _BYTES, int, _BYTES, int, int, _SECONDS, _SECONDS, _SECONDS, _SECONDS, int, (*_BYTES, type(None)),
)  # fmt: skip
_STATUSES = {int(status): status for status in Status if status is not Status.NONE}
#: stands for infinity in databases that have none
LARGEST = sys.float_info.max
#: How PostgreSQL sends a time: as text its digits depend on ``extra_float_digits``, which a role, a database or a URL
#: may set so low that a lease ends years later or sooner. What stands for infinity, or is above any time, is cut off.
#: LEAST passes over NULL, so it is for columns that have none.
MICROSECONDS = "CAST(LEAST({}, 9e12) * 1000000 AS bigint)"
_NO_TIME = 9 * 10**18


def in_seconds(value: Any) -> Any:
    """What ``MICROSECONDS`` made of a time, in seconds again; None and what is no number stay as they are."""
    if not isinstance(value, int):
        return value
    return LARGEST if value >= _NO_TIME else value / 1_000_000


def record_of(record_id: bytes, row: Sequence[Any]) -> Record:
    """The record in a row of ``HEADER`` and the response, without its stages. Raises ``RecordUnreadable``."""
    if row[0] != RECORD_VERSION:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has the unknown version {row[0]!r:.20}")
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response = row
    if not all(map(isinstance, row, _KINDS)) or status not in _STATUSES or final not in (0, 1):
        raise RecordUnreadable(f"record {record_id[:6].hex()} is corrupt")
    return Record(
        record_id, bytes(fingerprint), _STATUSES[status], bytes(owner), token, attempt,
        float(claimed_at), float(lease_end), math.inf if ttl >= LARGEST else float(ttl),
        math.inf if expires_at >= LARGEST else float(expires_at), bool(final),
        None if response is None else bytes(response),
    )  # fmt: skip


def values_of(record: Record) -> dict[str, Any]:
    """The columns that write a record, by their names."""
    return {
        "record_id": record.record_id,
        "record_version": RECORD_VERSION,
        "fingerprint": record.fingerprint,
        "status": int(record.status),
        "owner": record.owner,
        "token": record.token,
        "attempt": record.attempt,
        "claimed_at": record.claimed_at,
        "lease_end": record.lease_end,
        "ttl": record.ttl,
        "expires_at": record.expires_at,
        "final": record.final,
        "response": record.response,
    }


def with_stages(record: Record, rows: Iterable[Sequence[Any]]) -> Record:
    """The record with the stages of rows of name, key and frame. Raises ``RecordUnreadable``."""
    return replace(record, stages=tuple([_stage_of(record.record_id, row) for row in rows]))


def _stage_of(record_id: bytes, row: Sequence[Any]) -> Stage:
    name, key, frame = row
    try:
        if isinstance(name, _BYTES) and isinstance(key, _BYTES) and isinstance(frame, _BYTES):
            texts = bytes(name).decode("utf-8", "surrogatepass"), bytes(key).decode("utf-8", "surrogatepass")
            return Stage(*texts, bytes(frame))
    except UnicodeDecodeError as error:
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt") from error
    raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt")


def stage_names(stage: Stage) -> tuple[bytes, bytes]:
    """Name and key as bytes; they may hold any character, lone surrogates and NUL included."""
    return stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")


def end_of(record_id: bytes, value: object) -> float | None:
    """The end of a reservation in seconds, None where there is no reservation. Raises ``RecordUnreadable``."""
    if value is None:
        return None
    if not isinstance(value, float):
        raise RecordUnreadable(f"the reservation of record {record_id[:6].hex()} is corrupt")
    return math.inf if value >= LARGEST else value
