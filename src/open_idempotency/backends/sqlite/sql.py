"""The rows of the SQLite backend: the SQL that reads and writes them, and the records that they hold.

No value ever becomes part of a statement. Parameters are ``?``, or names where a statement uses one twice, since Python
3.12 and later refuse ``?1`` with a sequence. A row that is corrupt, foreign or newer is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from open_idempotency.backend import Record, Stage, Status
from open_idempotency.exceptions import RecordUnreadable

RECORD_VERSION = 1
# The schema of a version is made by its script and those before it, so that an older database is brought up.
SCHEMAS = [
    (files("open_idempotency.backends.sqlite") / name).read_text(encoding="utf-8")
    for name in ("schema.sql", "reservations.sql")
]
SCHEMA_VERSION = len(SCHEMAS)

HAS_SCHEMA = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'open_idempotency_schema'"
READ_SCHEMA = "SELECT version FROM open_idempotency_schema"

BEGIN = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"

_HEADER = "record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final"
_FROM = "FROM open_idempotency_records WHERE record_id = ?"

READ_HEADER = f"SELECT {_HEADER}, NULL {_FROM}"
READ_WHOLE = f"SELECT {_HEADER}, response {_FROM}"
# A claim needs the response only to replay it, so not while it runs and not for another request. The fingerprint is
# the first parameter.
READ_FOR_CLAIM = f"SELECT {_HEADER}, CASE WHEN status <> 1 AND fingerprint = ? THEN response END {_FROM}"
# Which of some records exist: by their number, rounded up, so that few statements are prepared.
_FIND = "SELECT record_id FROM open_idempotency_records WHERE record_id IN "
FIND = {count: _FIND + f"(?{', ?' * (count - 1)})" for count in (4, 16, 64, 256)}
_INSERT = """
    INSERT INTO open_idempotency_records (
        record_id, record_version, fingerprint, status, owner, token, attempt,
        claimed_at, lease_end, ttl, expires_at, final, response
    )
"""
# Inserts nothing where the record exists, or where stages are left of one that was deleted by hand. The row's
# parameters are followed by the record's id.
_NO_STAGES = "NOT EXISTS (SELECT 1 FROM open_idempotency_stages WHERE record_id = ?)"
_IF_NEW = f"SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE {_NO_STAGES} ON CONFLICT (record_id) DO NOTHING"
ADD = f"{_INSERT} {_IF_NEW}"
WRITE = f"""{_INSERT} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (record_id) DO UPDATE SET
        record_version = excluded.record_version, fingerprint = excluded.fingerprint,
        status = excluded.status, owner = excluded.owner, token = excluded.token,
        attempt = excluded.attempt, claimed_at = excluded.claimed_at, lease_end = excluded.lease_end,
        ttl = excluded.ttl, expires_at = excluded.expires_at, final = excluded.final,
        response = excluded.response
"""
# What decisions.complete does with a sound record that still runs, in one statement.
COMPLETE = """
    UPDATE open_idempotency_records SET status = 2, lease_end = :now, expires_at = :now + ttl, response = :response
    WHERE record_id = :record_id AND token = :token AND owner = :owner AND status = 1 AND expires_at > :now
        AND record_version = 1 AND final IN (0, 1) AND typeof(fingerprint) = 'blob' AND typeof(owner) = 'blob'
        AND typeof(record_version) = 'integer' AND typeof(status) = 'integer' AND typeof(token) = 'integer'
        AND typeof(attempt) = 'integer' AND typeof(final) = 'integer' AND typeof(claimed_at) = 'real'
        AND typeof(lease_end) = 'real' AND typeof(ttl) = 'real' AND typeof(expires_at) = 'real'
"""
EXTEND = "UPDATE open_idempotency_records SET lease_end = ?, expires_at = ? WHERE record_id = ?"
DELETE = "DELETE FROM open_idempotency_records WHERE record_id = ?"

READ_STAGES = "SELECT name, key, frame FROM open_idempotency_stages WHERE record_id = ? ORDER BY position"
READ_STAGE = "SELECT name, key, frame FROM open_idempotency_stages WHERE record_id = ? AND name = ? AND key = ?"
HAS_STAGES = READ_STAGES + " LIMIT 1"
ADD_STAGE = "INSERT INTO open_idempotency_stages (record_id, name, key, frame) VALUES (?, ?, ?, ?)"
DELETE_STAGES = "DELETE FROM open_idempotency_stages WHERE record_id = ?"

READ_RESERVATION = "SELECT ends FROM open_idempotency_reservations WHERE scope_id = ? AND record_id = ?"
# The first end, where there are more than so many. Skipping rows is the cheapest way to count.
FIRST_OF_MORE_THAN = """
    SELECT (SELECT min(ends) FROM open_idempotency_reservations WHERE scope_id = :scope_id AND ends > :now)
    FROM open_idempotency_reservations WHERE scope_id = :scope_id AND ends > :now ORDER BY ends LIMIT 1 OFFSET :others
"""
WRITE_RESERVATION = """
    INSERT INTO open_idempotency_reservations (scope_id, record_id, ends) VALUES (?, ?, ?)
    ON CONFLICT (scope_id, record_id) DO UPDATE SET ends = excluded.ends
"""
DELETE_RESERVATION = "DELETE FROM open_idempotency_reservations WHERE scope_id = ? AND record_id = ?"
PURGE_RESERVATIONS = """
    DELETE FROM open_idempotency_reservations WHERE rowid IN (
        SELECT rowid FROM open_idempotency_reservations WHERE ends <= ? LIMIT ?
    )
"""

FIND_EXPIRED = """
    SELECT record_id FROM open_idempotency_records WHERE claimed_at + ttl <= :now AND expires_at <= :now LIMIT :limit
"""
SCAN = """
    SELECT record_id FROM open_idempotency_records
    WHERE record_id > ? AND expires_at > ? ORDER BY record_id LIMIT ?
"""

# record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final
_TYPES = (int, bytes, int, bytes, int, int, float, float, float, float, int)
_SOUND = {(*_TYPES, bytes), (*_TYPES, type(None))}
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
