"""Between rows and records: strict reading, so that a corrupt, foreign or newer row is never acted upon.

SQLite keeps whatever it is given, so the types are looked at; drivers differ in how they hand on bytes and truth.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from open_idempotency.backend import Record, Stage, Status
from open_idempotency.exceptions import RecordUnreadable

RECORD_VERSION = 1
_BYTES = (bytes, bytearray, memoryview)
_Kinds = type | tuple[type, ...]
# record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response
_KINDS: tuple[_Kinds, ...] = (
    int,
    _BYTES,
    int,
    _BYTES,
    int,
    int,
    (float, int),
    (float, int),
    (float, int),
    (float, int),
    int,
    (*_BYTES, type(None)),
)
_STATUSES = {int(status): status for status in Status if status is not Status.NONE}


def record_of(record_id: bytes, row: Sequence[Any]) -> Record:
    """The record in a row, without its stages. Raises ``RecordUnreadable``."""
    if row[0] != RECORD_VERSION:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has the unknown version {row[0]!r:.20}")
    sound = all(isinstance(value, kinds) for value, kinds in zip(row, _KINDS, strict=True))
    if not sound or row[2] not in _STATUSES or row[10] not in (0, 1):
        raise RecordUnreadable(f"record {record_id[:6].hex()} is corrupt")
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response = row
    return Record(
        record_id=record_id,
        fingerprint=bytes(fingerprint),
        status=_STATUSES[status],
        owner=bytes(owner),
        token=token,
        attempt=attempt,
        claimed_at=float(claimed_at),
        lease_end=float(lease_end),
        ttl=float(ttl),
        expires_at=float(expires_at),
        final=bool(final),
        response=None if response is None else bytes(response),
    )


def row_of(record: Record) -> tuple[Any, ...]:
    """The parameters that write a record; its id comes last."""
    return (
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
        record.final,
        record.response,
        record.record_id,
    )


def with_stages(record: Record, rows: Iterable[Sequence[Any]]) -> Record:
    """The record with its stages. Raises ``RecordUnreadable``."""
    return replace(record, stages=tuple(_stage_of(record.record_id, row) for row in rows))


def _stage_of(record_id: bytes, row: Sequence[Any]) -> Stage:
    if not all(isinstance(value, _BYTES) for value in row):
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt")
    name, key, frame = map(bytes, row)
    try:
        return Stage(name.decode("utf-8", "surrogatepass"), key.decode("utf-8", "surrogatepass"), frame)
    except UnicodeDecodeError as error:
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt") from error


def stage_row(record_id: bytes, stage: Stage) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """The parameters that add a stage; the first two find it.

    Names may hold any character, lone surrogates and NUL included. Some databases keep the entries of an index short,
    so a digest stands for name and key there.
    """
    name, key = (text.encode("utf-8", "surrogatepass") for text in (stage.name, stage.key))
    stage_id = hashlib.sha256(struct.pack("!I", len(name)) + name + key).digest()
    return record_id, stage_id, name, key, stage.frame
