"""The SQL that the SQLite backend runs. Parameters only; no value ever becomes part of a statement.

Parameters are ``?``, or names where a statement uses one twice. Python 3.12 and later refuse ``?1`` with a sequence.
"""

from __future__ import annotations

from importlib.resources import files

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
# Which of some records there are: by how many are asked for, so that few statements are prepared.
_FIND = "SELECT record_id FROM open_idempotency_records WHERE record_id IN "
FIND = {count: _FIND + f"(?{', ?' * (count - 1)})" for count in (4, 16, 64, 256)}
_INSERT = """
    INSERT INTO open_idempotency_records (
        record_id, record_version, fingerprint, status, owner, token, attempt,
        claimed_at, lease_end, ttl, expires_at, final, response
    )
"""
# Nothing where there is a record, or where stages are left of one that somebody deleted by hand. The row's parameters
# are followed by the record's id.
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
# What decisions.complete does with a sound record that its owner has not ended yet, in one statement.
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
# The first end, where there are more than so many. Skipping rows is the cheapest way to count them.
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
