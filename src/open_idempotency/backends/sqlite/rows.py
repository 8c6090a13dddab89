"""Between rows and records: strict reading, so that a corrupt, foreign or newer row is never acted upon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from open_idempotency.backend import Record, Stage, Status
from open_idempotency.exceptions import RecordUnreadable

RECORD_VERSION = 1
# record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final
_HEADER = (int, bytes, int, bytes, int, int, float, float, float, float, int)
_SOUND = {(*_HEADER, bytes), (*_HEADER, type(None))}
_STATUSES = {int(status): status for status in Status if status is not Status.NONE}


def record_of(record_id: bytes, row: Sequence[Any]) -> Record:
    """The record in a row, without its stages. Raises ``RecordUnreadable``."""
    if row[0] != RECORD_VERSION:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has the unknown version {row[0]!r:.20}")
    if tuple(map(type, row)) not in _SOUND or row[2] not in _STATUSES or row[10] not in (0, 1):
        raise RecordUnreadable(f"record {record_id[:6].hex()} is corrupt")
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response = row
    return Record(
        record_id,
        fingerprint,
        _STATUSES[status],
        owner,
        token,
        attempt,
        claimed_at,
        lease_end,
        ttl,
        expires_at,
        bool(final),
        response,
    )


def row_of(record: Record) -> tuple[Any, ...]:
    """The parameters that write a record."""
    return (
        record.record_id,
        RECORD_VERSION,
        record.fingerprint,
        int(record.status),
        record.owner,
        record.token,
        record.attempt,
        record.claimed_at,
        record.lease_end,
        record.ttl,
        record.expires_at,
        int(record.final),
        record.response,
    )


def add_stages(record: Record, rows: Iterable[Sequence[Any]]) -> None:
    """Give the record its stages. Raises ``RecordUnreadable``."""
    record.stages = tuple(_stage_of(record.record_id, row) for row in rows)


def _stage_of(record_id: bytes, row: Sequence[Any]) -> Stage:
    if not all(isinstance(value, bytes) for value in row):
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt")
    try:
        return Stage(row[0].decode("utf-8", "surrogatepass"), row[1].decode("utf-8", "surrogatepass"), row[2])
    except UnicodeDecodeError as error:
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt") from error


def stage_key(record_id: bytes, stage: Stage) -> tuple[bytes, bytes, bytes]:
    """The parameters that find a stage; names may hold any character, lone surrogates and NUL included."""
    return record_id, stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")
