"""What each verb reads and writes on an SQLite connection, in a transaction that its caller begins and commits.

A verb reads ``clock`` after it has the lock. It raises before it writes, so that a refused command changes nothing in a
transaction that it shares with others. ``look_for_…`` only reads, without a lock, and returns a response, or None if
the verb has to write.

No value ever becomes part of a statement. Parameters are ``?``, or names where a statement uses one twice, since Python
3.12 and later refuse ``?1`` with a sequence. A row that is corrupt, foreign or newer is refused.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from open_idempotency import decisions
from open_idempotency.backend import (
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Free,
    Freed,
    Get,
    Lease,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    Stage,
    StageSaved,
    Status,
    Unreserve,
    Withdraw,
)
from open_idempotency.backends._shared import fronts
from open_idempotency.exceptions import RecordUnreadable

# Statements, and rows

RECORD_VERSION = 1
# The script of each version upgrades the schema of the version before, so that an older database is brought up to date.
SCHEMAS = [
    (files("open_idempotency.backends.sqlite") / name).read_text(encoding="utf-8")
    for name in ("schema.sql", "reservations.sql")
]
SCHEMA_VERSION = len(SCHEMAS)

HAS_SCHEMA = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'open_idempotency_schema'"
READ_SCHEMA = "SELECT version FROM open_idempotency_schema"
# A column that came later. It has no version of its own: workers that do not know it go on working on the file.
HAS_ABOUT = "SELECT 1 FROM pragma_table_info('open_idempotency_records') WHERE name = 'about'"
ADD_ABOUT = "ALTER TABLE open_idempotency_records ADD COLUMN about BLOB NOT NULL DEFAULT x''"

BEGIN = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"

_HEADER = "record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final"
_FROM = "FROM open_idempotency_records WHERE record_id = ?"

READ_HEADER = f"SELECT {_HEADER}, NULL {_FROM}"
READ_WHOLE = f"SELECT {_HEADER}, response, about {_FROM}"
# A claim needs the response only to replay it, so not while it runs and not for another request. The fingerprint is
# the first parameter.
READ_FOR_CLAIM = f"SELECT {_HEADER}, CASE WHEN status <> 1 AND fingerprint = ? THEN response END {_FROM}"
# Finds which of several records exist. One statement for each number of ids, rounded up, so that few are prepared.
_FIND = "SELECT record_id FROM open_idempotency_records WHERE record_id IN "
FIND = {count: _FIND + f"(?{', ?' * (count - 1)})" for count in (4, 16, 64, 256)}
_INSERT = """
    INSERT INTO open_idempotency_records (
        record_id, record_version, fingerprint, status, owner, token, attempt,
        claimed_at, lease_end, ttl, expires_at, final, response, about
    )
"""
# Inserts nothing if the record exists, or if stages are left of a record that was deleted by hand. The parameters are
# those of the row, and then the record's id.
_NO_STAGES = "NOT EXISTS (SELECT 1 FROM open_idempotency_stages WHERE record_id = ?)"
_IF_NEW = f"SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE {_NO_STAGES} ON CONFLICT (record_id) DO NOTHING"
ADD = f"{_INSERT} {_IF_NEW}"
WRITE = f"""{_INSERT} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (record_id) DO UPDATE SET
        record_version = excluded.record_version, fingerprint = excluded.fingerprint,
        status = excluded.status, owner = excluded.owner, token = excluded.token,
        attempt = excluded.attempt, claimed_at = excluded.claimed_at, lease_end = excluded.lease_end,
        ttl = excluded.ttl, expires_at = excluded.expires_at, final = excluded.final,
        response = excluded.response
"""
# The owner's verbs neither read nor change ``about``. It is written when a record is claimed or made anew.
WRITE_ALL = f"{WRITE}, about = excluded.about"
# What decisions.complete does with a sound record that still runs, in one statement. A record that gets another TTL is
# left to that function, since setting ``ttl`` here would write its index anew each time.
COMPLETE = """
    UPDATE open_idempotency_records SET status = 2, lease_end = :now, expires_at = :now + ttl, response = :response
    WHERE record_id = :record_id AND token = :token AND owner = :owner AND status = 1 AND expires_at > :now
        AND ttl = :ttl AND record_version = 1 AND final IN (0, 1)
        AND typeof(fingerprint) = 'blob' AND typeof(owner) = 'blob'
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
# The first end, if there are more than ``others`` reservations. Skipping rows is the cheapest way to count.
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

_AFTER = "FROM open_idempotency_records WHERE record_id > ? AND expires_at > ? ORDER BY record_id LIMIT ?"
SCAN_HEADERS = f"SELECT record_id, {_HEADER}, NULL, about {_AFTER}"

# record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final
_TYPES = (int, bytes, int, bytes, int, int, float, float, float, float, int)
_SOUND = {(*_TYPES, bytes), (*_TYPES, type(None))}
#: the columns of the header, and the response; ``about`` may follow
_COLUMNS = len(_TYPES) + 1
_STATUSES = {int(status): status for status in Status if status is not Status.NONE}


def record_of(record_id: bytes, row: Sequence[Any]) -> Record:
    """The record in a row of the header, the response, and maybe ``about``, without its stages.

    Raises ``RecordUnreadable``.
    """
    if row[0] != RECORD_VERSION:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has the unknown version {row[0]!r:.20}")
    header, about = row[:_COLUMNS], row[_COLUMNS] if len(row) > _COLUMNS else b""
    sound = tuple(map(type, header)) in _SOUND and row[2] in _STATUSES and row[10] in (0, 1)
    if not sound or type(about) is not bytes:
        raise RecordUnreadable(f"record {record_id[:6].hex()} is corrupt")
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response = header
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
        about=about,
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
        record.about,
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


# The verbs

Clock = Callable[[], float]
C = TypeVar("C")
R = TypeVar("R")

_SCANNED_AT_ONCE, _HEADERS_AT_ONCE = 100, 500
_RESERVATIONS_PURGED = 4
_LARGEST = 2**63 - 1


def find(connection: sqlite3.Connection, record_ids: Sequence[bytes]) -> set[bytes]:
    """Find which of these records exist, readable or not, with few statements."""
    found: set[bytes] = set()
    most = max(FIND)
    for start in range(0, len(record_ids), most):
        some = record_ids[start : start + most]
        count = next(count for count in FIND if count >= len(some))
        padded = [*some, *[some[0]] * (count - len(some))]
        found.update(record_id for (record_id,) in connection.execute(FIND[count], padded))
    return found


def look_for_claim(connection: sqlite3.Connection, c: Claim, clock: Clock) -> ClaimResult | None:
    """A replay, a 409 or a 422 (B-11b)."""
    record = _find(connection, c)
    if record is None:
        return None
    now = clock()
    claimed, after = decisions.claim(record, c, now)
    return claimed if after is record and decisions.rebased(record, now) is record else None


def claim(connection: sqlite3.Connection, c: Claim, clock: Clock) -> ClaimResult:
    """See ``Backend.claim``."""
    now = clock()
    withdrawn = _is_withdrawn(connection, c, now)
    # Usually the record does not exist, so it is inserted without being read first.
    claimed, after = decisions.claim(None, c, now, withdrawn=withdrawn)
    if after is None or not connection.execute(ADD, (*row_of(after), c.record_id)).rowcount:
        return _claim_again(connection, c, now, withdrawn)
    return claimed


def _is_withdrawn(connection: sqlite3.Connection, c: Claim, now: float) -> bool:
    values = (decisions.withdrawn_id(c.owner), c.record_id)
    found = connection.execute(READ_RESERVATION, values).fetchone()
    return found is not None and found[0] > now


def _claim_again(connection: sqlite3.Connection, c: Claim, now: float, withdrawn: bool) -> ClaimResult:
    record = found = _find(connection, c)
    if found is not None and found.expires_at > now:
        add_stages(found, connection.execute(READ_STAGES, (c.record_id,)))
        record = decisions.rebased(found, now)
    claimed, after = decisions.claim(record, c, now, withdrawn=withdrawn)
    if after is not None and after is not found:
        if not after.stages:
            connection.execute(DELETE_STAGES, (c.record_id,))
        connection.execute(WRITE_ALL, row_of(after))
    return claimed


def _find(connection: sqlite3.Connection, c: Claim) -> Record | None:
    return read(connection, c.record_id, READ_FOR_CLAIM, c.fingerprint)


def renew(connection: sqlite3.Connection, c: Renew, clock: Clock) -> Sequence[Renewal]:
    """See ``Backend.renew``; a record that cannot be read is LOST, so that the others are renewed."""
    now = clock()
    return [_renew(connection, lease, now) for lease in c.leases]


def _renew(connection: sqlite3.Connection, lease: Lease, now: float) -> Renewal:
    try:
        record = read(connection, lease.record_id)
    except RecordUnreadable:
        return Renewal.LOST
    renewal, after = decisions.renew(record, lease, now)
    if after is not None and after is not record:
        connection.execute(EXTEND, (after.lease_end, after.expires_at, lease.record_id))
    return renewal


def save_stage(connection: sqlite3.Connection, c: SaveStage, clock: Clock) -> StageSaved:
    """See ``Backend.save_stage``."""
    record_id = c.lease.record_id
    key = stage_key(record_id, c.stage)
    record, now = read(connection, record_id), clock()
    if record is not None and record.expires_at > now:
        add_stages(record, connection.execute(READ_STAGE, key))
    saved, after = decisions.save_stage(record, c, now)
    if after is not record:
        if saved.recreated:
            connection.execute(DELETE_STAGES, (record_id,))
        connection.execute(WRITE_ALL if saved.recreated else WRITE, row_of(after))
        connection.execute(ADD_STAGE, (*key, c.stage.frame))
    return saved


def complete_running(connection: sqlite3.Connection, c: Complete, clock: Clock) -> Completed | None:
    """Complete a record in one statement. Returns None if ``complete`` has to examine the record.

    Outside a transaction it reads the clock before it has the lock, so the record expires earlier by the time it waits.
    """
    lease = c.lease
    values = {
        "record_id": lease.record_id,
        "token": lease.token,
        "owner": lease.owner,
        "now": clock(),
        "response": c.response,
        "ttl": lease.ttl,
    }
    return Completed() if connection.execute(COMPLETE, values).rowcount else None


def complete(connection: sqlite3.Connection, c: Complete, clock: Clock) -> Completed:
    """See ``Backend.complete``."""
    completed = complete_running(connection, c, clock)
    if completed is not None:
        return completed
    record_id = c.lease.record_id
    record = read(connection, record_id)
    completed, after = decisions.complete(record, c, clock())
    if completed.recreated and record is not None:
        connection.execute(DELETE_STAGES, (record_id,))
    _keep(connection, record, after, WRITE_ALL if completed.recreated else WRITE)
    return completed


def fail(connection: sqlite3.Connection, c: Fail, clock: Clock) -> None:
    """See ``Backend.fail``."""
    record = read(connection, c.lease.record_id)
    _, after = decisions.fail(record, c, clock())
    _keep(connection, record, after)


def release(connection: sqlite3.Connection, c: Release, clock: Clock) -> None:
    """See ``Backend.release``."""
    record_id = c.lease.record_id
    record = read(connection, record_id)
    if record is not None:
        add_stages(record, connection.execute(HAS_STAGES, (record_id,)))
    _, after = decisions.release(record, c, clock())
    _keep(connection, record, after)


def withdraw(connection: sqlite3.Connection, c: Withdraw, clock: Clock) -> None:
    """See ``Backend.withdraw``."""
    record_id, now = c.claim.record_id, clock()
    record = read(connection, record_id)
    if record is not None:
        add_stages(record, connection.execute(HAS_STAGES, (record_id,)))
    _, after = decisions.withdraw(record, c, now)
    _keep(connection, record, after)
    values = (decisions.withdrawn_id(c.claim.owner), record_id, now + decisions.WITHDRAWN_FOR)
    connection.execute(WRITE_RESERVATION, values)


def _keep(connection: sqlite3.Connection, before: Record | None, after: Record | None, statement: str = WRITE) -> None:
    if after is before:
        return
    if after is None:
        assert before is not None
        _delete(connection, before.record_id)
    else:
        connection.execute(statement, row_of(after))


def delete(connection: sqlite3.Connection, record_id: bytes, clock: Clock) -> bool:
    """See ``Backend.delete``; deletes a record that cannot be read as well."""
    row = connection.execute(READ_HEADER, (record_id,)).fetchone()
    _delete(connection, record_id)
    return row is not None and _is_live(record_id, row, clock())


def free(connection: sqlite3.Connection, c: Free, clock: Clock) -> Freed:
    """See ``Backend.free``."""
    record = read(connection, c.record_id)
    freed, after = decisions.free(record, c, clock())
    _keep(connection, record, after)
    return freed


def now(connection: sqlite3.Connection, c: None, clock: Clock) -> float:
    """The time that decides."""
    return clock()


def _is_live(record_id: bytes, row: Sequence[object], now: float) -> bool:
    try:
        return record_of(record_id, row).expires_at > now
    except RecordUnreadable:
        return True


def _delete(connection: sqlite3.Connection, record_id: bytes) -> None:
    connection.execute(DELETE, (record_id,))
    connection.execute(DELETE_STAGES, (record_id,))


def get(connection: sqlite3.Connection, c: Get, clock: Clock) -> Record | None:
    """See ``Backend.get``; begins and ends its transaction, so that both reads see one state of the database."""
    connection.execute("BEGIN")
    try:
        record = read(connection, c.record_id, READ_WHOLE)
        if record is None or record.expires_at <= clock():
            return None
        add_stages(record, connection.execute(READ_STAGES, (c.record_id,)))
        return record
    finally:
        connection.execute(COMMIT)


def scan(connection: sqlite3.Connection, after: bytes, clock: Clock) -> list[bytes]:
    """The ids of live records that come after this one."""
    return [record_id for (record_id,) in connection.execute(SCAN, (after, clock(), _SCANNED_AT_ONCE))]


def headers(connection: sqlite3.Connection, after: bytes, clock: Clock) -> list[Record]:
    """The live records that come after this one, without responses and stages."""
    rows = connection.execute(SCAN_HEADERS, (after, clock(), _HEADERS_AT_ONCE))
    return [record_of(record_id, row) for record_id, *row in rows]


def look_for_reservation(connection: sqlite3.Connection, c: Reserve, clock: Clock) -> ReserveResult | None:
    """The response for a key that counts already, and usually for a caller over its quota; None otherwise."""
    reserved, end = _reservation(connection, c, clock())
    return reserved if end is None else None


def reserve(connection: sqlite3.Connection, c: Reserve, clock: Clock) -> ReserveResult:
    """See ``Backend.reserve``."""
    now = clock()
    reserved, end = _reservation(connection, c, now)
    if end is not None:
        connection.execute(WRITE_RESERVATION, (c.scope_id, c.record_id, end))
        connection.execute(PURGE_RESERVATIONS, (now, _RESERVATIONS_PURGED))
    return reserved


def _reservation(connection: sqlite3.Connection, c: Reserve, now: float) -> tuple[ReserveResult, float | None]:
    found = connection.execute(READ_RESERVATION, (c.scope_id, c.record_id)).fetchone()
    end = None if found is None else found[0]
    if not isinstance(end, float | None):
        raise RecordUnreadable(f"the reservation of record {c.record_id[:6].hex()} is corrupt")
    first = None
    if end is None or end <= now:
        values = {"scope_id": c.scope_id, "now": now, "others": min(c.limit - 1, _LARGEST)}
        first = connection.execute(FIRST_OF_MORE_THAN, values).fetchone()
    # The exact number of reservations does not matter, only whether it reaches the limit.
    taken, earliest = (0, now) if first is None else (c.limit, first[0])
    return decisions.reserve(end, taken, earliest, c, now)


def unreserve(connection: sqlite3.Connection, c: Unreserve, clock: Clock) -> None:
    """See ``Backend.unreserve``."""
    connection.execute(DELETE_RESERVATION, (c.scope_id, c.record_id))


def purge_some(connection: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete at most ``limit`` expired records, and return how many."""
    expired = connection.execute(FIND_EXPIRED, {"now": now, "limit": limit}).fetchall()
    for (record_id,) in expired:
        _delete(connection, record_id)
    return len(expired)


def purge(connection: sqlite3.Connection, limit: int, clock: Clock) -> int:
    """Delete at most ``limit`` expired records and reservations, and return how many."""
    now = clock()
    purged = purge_some(connection, now, limit)
    return purged + connection.execute(PURGE_RESERVATIONS, (now, limit - purged)).rowcount


def read(
    connection: sqlite3.Connection, record_id: bytes, statement: str = READ_HEADER, *before: bytes
) -> Record | None:
    """A record without its stages, by a statement that selects the columns of ``sql.record_of``.

    ``before``: the statement's parameters before the record's id.
    """
    row = connection.execute(statement, (*before, record_id)).fetchone()
    return None if row is None else record_of(record_id, row)


@dataclass(frozen=True, slots=True)
class Verb(fronts.Verb[C, R]):
    """How a command is carried out. The functions are called in order, until one returns a response and not None.

    ``look``: called first, without a lock. ``alone``: called next if no other verb shares the transaction; it needs no
    transaction. ``write``: called in a transaction that may be shared; for a verb that ``reads``, on a connection
    without one. ``size``: about how many bytes a command writes, if these are many.
    """

    write: Callable[[sqlite3.Connection, C, Clock], R]
    look: Callable[[sqlite3.Connection, C, Clock], R | None] | None = None
    alone: Callable[[sqlite3.Connection, C, Clock], R | None] | None = None
    size: Callable[[C], int] | None = None
    reads: bool = False


CLAIM = Verb(claim, look_for_claim)

VERBS = fronts.Verbs(
    claim=CLAIM,
    renew=Verb(renew),
    save_stage=Verb(save_stage, size=lambda c: len(c.stage.frame)),
    complete=Verb(complete, alone=complete_running, size=lambda c: len(c.response)),
    fail=Verb(fail, size=lambda c: len(c.response or b"")),
    release=Verb(release),
    withdraw=Verb(withdraw),
    get=Verb(get, reads=True),
    delete=Verb(delete),
    free=Verb(free),
    now=Verb(now, reads=True),
    scan=Verb(scan, reads=True),
    headers=Verb(headers, reads=True),
    purge=Verb(purge),
    reserve=Verb(reserve, look_for_reservation),
    unreserve=Verb(unreserve),
    # One transaction renews all of them.
    renewed_at_once=sys.maxsize,
    scanned_at_once=_SCANNED_AT_ONCE,
    headers_at_once=_HEADERS_AT_ONCE,
)
