"""What each verb reads and writes on a connection, inside a transaction that its caller begins and commits.

A verb asks ``clock`` once it holds the lock. It raises before it writes, so that a refused command leaves nothing
behind in a transaction that it shares with others. ``look_for_…`` only reads, without a lock, and returns a response,
or None where the verb has to write.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from open_idempotency import decisions
from open_idempotency.backend import (
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Lease,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Withdraw,
)
from open_idempotency.backends._shared import fronts
from open_idempotency.backends.sqlite import sql
from open_idempotency.exceptions import RecordUnreadable

Clock = Callable[[], float]
C = TypeVar("C")
R = TypeVar("R")

_SCANNED_AT_ONCE = 100
_RESERVATIONS_PURGED = 4
_LARGEST = 2**63 - 1


def find(connection: sqlite3.Connection, record_ids: Sequence[bytes]) -> set[bytes]:
    """Which of these records exist, readable or not; few statements for many."""
    found: set[bytes] = set()
    most = max(sql.FIND)
    for start in range(0, len(record_ids), most):
        some = record_ids[start : start + most]
        count = next(count for count in sql.FIND if count >= len(some))
        padded = [*some, *[some[0]] * (count - len(some))]
        found.update(record_id for (record_id,) in connection.execute(sql.FIND[count], padded))
    return found


def look_for_claim(connection: sqlite3.Connection, c: Claim, clock: Clock) -> ClaimResult | None:
    """A replay, a 409 or a 422 (B-11b)."""
    record = _find(connection, c)
    if record is None:
        return None
    now = clock()
    claimed, kept = decisions.claim(record, c, now)
    return claimed if kept is record and decisions.rebased(record, now) is record else None


def claim(connection: sqlite3.Connection, c: Claim, clock: Clock) -> ClaimResult:
    """See ``Backend.claim``."""
    now = clock()
    withdrawn = _is_withdrawn(connection, c, now)
    # Mostly the record does not exist, and then it need not be read.
    claimed, kept = decisions.claim(None, c, now, withdrawn=withdrawn)
    if kept is None or not connection.execute(sql.ADD, (*sql.row_of(kept), c.record_id)).rowcount:
        return _claim_again(connection, c, now, withdrawn)
    return claimed


def _is_withdrawn(connection: sqlite3.Connection, c: Claim, now: float) -> bool:
    values = (decisions.withdrawn_id(c.owner), c.record_id)
    found = connection.execute(sql.READ_RESERVATION, values).fetchone()
    return found is not None and found[0] > now


def _claim_again(connection: sqlite3.Connection, c: Claim, now: float, withdrawn: bool) -> ClaimResult:
    record = found = _find(connection, c)
    if found is not None and found.expires_at > now:
        sql.add_stages(found, connection.execute(sql.READ_STAGES, (c.record_id,)))
        record = decisions.rebased(found, now)
    claimed, kept = decisions.claim(record, c, now, withdrawn=withdrawn)
    if kept is not None and kept is not found:
        if not kept.stages:
            connection.execute(sql.DELETE_STAGES, (c.record_id,))
        connection.execute(sql.WRITE, sql.row_of(kept))
    return claimed


def _find(connection: sqlite3.Connection, c: Claim) -> Record | None:
    return read(connection, c.record_id, sql.READ_FOR_CLAIM, c.fingerprint)


def renew(connection: sqlite3.Connection, c: Renew, clock: Clock) -> Sequence[Renewal]:
    """See ``Backend.renew``; a record that cannot be read is LOST, so that the others are renewed."""
    now = clock()
    return [_renew(connection, lease, now) for lease in c.leases]


def _renew(connection: sqlite3.Connection, lease: Lease, now: float) -> Renewal:
    try:
        record = read(connection, lease.record_id)
    except RecordUnreadable:
        return Renewal.LOST
    renewal, kept = decisions.renew(record, lease, now)
    if kept is not None and kept is not record:
        connection.execute(sql.EXTEND, (kept.lease_end, kept.expires_at, lease.record_id))
    return renewal


def save_stage(connection: sqlite3.Connection, c: SaveStage, clock: Clock) -> StageSaved:
    """See ``Backend.save_stage``."""
    record_id = c.lease.record_id
    key = sql.stage_key(record_id, c.stage)
    record, now = read(connection, record_id), clock()
    if record is not None and record.expires_at > now:
        sql.add_stages(record, connection.execute(sql.READ_STAGE, key))
    saved, kept = decisions.save_stage(record, c, now)
    if kept is not record:
        if saved.recreated:
            connection.execute(sql.DELETE_STAGES, (record_id,))
        connection.execute(sql.WRITE, sql.row_of(kept))
        connection.execute(sql.ADD_STAGE, (*key, c.stage.frame))
    return saved


def complete_running(connection: sqlite3.Connection, c: Complete, clock: Clock) -> Completed | None:
    """The usual completion in one statement: the response, or None where ``complete`` has to look closer.

    Outside a transaction it reads the clock before it has the lock, so the record expires sooner by the wait.
    """
    lease = c.lease
    values = {
        "record_id": lease.record_id,
        "token": lease.token,
        "owner": lease.owner,
        "now": clock(),
        "response": c.response,
    }
    return Completed() if connection.execute(sql.COMPLETE, values).rowcount else None


def complete(connection: sqlite3.Connection, c: Complete, clock: Clock) -> Completed:
    """See ``Backend.complete``."""
    completed = complete_running(connection, c, clock)
    if completed is not None:
        return completed
    record_id = c.lease.record_id
    record = read(connection, record_id)
    completed, kept = decisions.complete(record, c, clock())
    if completed.recreated and record is not None:
        connection.execute(sql.DELETE_STAGES, (record_id,))
    _keep(connection, record, kept)
    return completed


def fail(connection: sqlite3.Connection, c: Fail, clock: Clock) -> None:
    """See ``Backend.fail``."""
    record = read(connection, c.lease.record_id)
    _, kept = decisions.fail(record, c, clock())
    _keep(connection, record, kept)


def release(connection: sqlite3.Connection, c: Release, clock: Clock) -> None:
    """See ``Backend.release``."""
    record_id = c.lease.record_id
    record = read(connection, record_id)
    if record is not None:
        sql.add_stages(record, connection.execute(sql.HAS_STAGES, (record_id,)))
    _, kept = decisions.release(record, c, clock())
    _keep(connection, record, kept)


def withdraw(connection: sqlite3.Connection, c: Withdraw, clock: Clock) -> None:
    """See ``Backend.withdraw``."""
    record_id, now = c.claim.record_id, clock()
    record = read(connection, record_id)
    if record is not None:
        sql.add_stages(record, connection.execute(sql.HAS_STAGES, (record_id,)))
    _, kept = decisions.withdraw(record, c, now)
    _keep(connection, record, kept)
    values = (decisions.withdrawn_id(c.claim.owner), record_id, now + decisions.WITHDRAWN_FOR)
    connection.execute(sql.WRITE_RESERVATION, values)


def _keep(connection: sqlite3.Connection, before: Record | None, after: Record | None) -> None:
    if after is before:
        return
    if after is None:
        assert before is not None
        _delete(connection, before.record_id)
    else:
        connection.execute(sql.WRITE, sql.row_of(after))


def delete(connection: sqlite3.Connection, record_id: bytes, clock: Clock) -> bool:
    """See ``Backend.delete``; deletes a record that cannot be read as well."""
    row = connection.execute(sql.READ_HEADER, (record_id,)).fetchone()
    _delete(connection, record_id)
    return row is not None and _is_live(record_id, row, clock())


def _is_live(record_id: bytes, row: Sequence[object], now: float) -> bool:
    try:
        return sql.record_of(record_id, row).expires_at > now
    except RecordUnreadable:
        return True


def _delete(connection: sqlite3.Connection, record_id: bytes) -> None:
    connection.execute(sql.DELETE, (record_id,))
    connection.execute(sql.DELETE_STAGES, (record_id,))


def get(connection: sqlite3.Connection, c: Get, clock: Clock) -> Record | None:
    """See ``Backend.get``; begins and ends its transaction, so that both reads see one state of the database."""
    connection.execute("BEGIN")
    try:
        record = read(connection, c.record_id, sql.READ_WHOLE)
        if record is None or record.expires_at <= clock():
            return None
        sql.add_stages(record, connection.execute(sql.READ_STAGES, (c.record_id,)))
        return record
    finally:
        connection.execute(sql.COMMIT)


def scan(connection: sqlite3.Connection, after: bytes, clock: Clock) -> list[bytes]:
    """The ids of live records that come after this one."""
    return [record_id for (record_id,) in connection.execute(sql.SCAN, (after, clock(), _SCANNED_AT_ONCE))]


def look_for_reservation(connection: sqlite3.Connection, c: Reserve, clock: Clock) -> ReserveResult | None:
    """The response for a key that counts already, and mostly for a caller over its quota."""
    reserved, end = _reservation(connection, c, clock())
    return reserved if end is None else None


def reserve(connection: sqlite3.Connection, c: Reserve, clock: Clock) -> ReserveResult:
    """See ``Backend.reserve``."""
    now = clock()
    reserved, end = _reservation(connection, c, now)
    if end is not None:
        connection.execute(sql.WRITE_RESERVATION, (c.scope_id, c.record_id, end))
        connection.execute(sql.PURGE_RESERVATIONS, (now, _RESERVATIONS_PURGED))
    return reserved


def _reservation(connection: sqlite3.Connection, c: Reserve, now: float) -> tuple[ReserveResult, float | None]:
    found = connection.execute(sql.READ_RESERVATION, (c.scope_id, c.record_id)).fetchone()
    end = None if found is None else found[0]
    if not isinstance(end, float | None):
        raise RecordUnreadable(f"the reservation of record {c.record_id[:6].hex()} is corrupt")
    first = None
    if end is None or end <= now:
        values = {"scope_id": c.scope_id, "now": now, "others": min(c.limit - 1, _LARGEST)}
        first = connection.execute(sql.FIRST_OF_MORE_THAN, values).fetchone()
    # How many reservations there are does not matter, only whether they are as many as the limit.
    taken, earliest = (0, now) if first is None else (c.limit, first[0])
    return decisions.reserve(end, taken, earliest, c, now)


def unreserve(connection: sqlite3.Connection, c: Unreserve, clock: Clock) -> None:
    """See ``Backend.unreserve``."""
    connection.execute(sql.DELETE_RESERVATION, (c.scope_id, c.record_id))


def purge_some(connection: sqlite3.Connection, now: float, limit: int) -> int:
    """Delete at most ``limit`` expired records, and return how many."""
    expired = connection.execute(sql.FIND_EXPIRED, {"now": now, "limit": limit}).fetchall()
    for (record_id,) in expired:
        _delete(connection, record_id)
    return len(expired)


def purge(connection: sqlite3.Connection, limit: int, clock: Clock) -> int:
    """Delete at most ``limit`` expired records and reservations, and return how many."""
    now = clock()
    purged = purge_some(connection, now, limit)
    return purged + connection.execute(sql.PURGE_RESERVATIONS, (now, limit - purged)).rowcount


def read(
    connection: sqlite3.Connection, record_id: bytes, statement: str = sql.READ_HEADER, *before: bytes
) -> Record | None:
    """A record without its stages, by a statement that selects the columns of ``sql.record_of``.

    ``before``: the statement's parameters before the record's id.
    """
    row = connection.execute(statement, (*before, record_id)).fetchone()
    return None if row is None else sql.record_of(record_id, row)


@dataclass(frozen=True, slots=True)
class Verb(fronts.Verb[C, R]):
    """How a command is carried out. Of several functions that may return None, the first response counts.

    ``write``: in a transaction that may be shared; of a verb that ``reads``, on a connection without one. ``look``:
    called first, without a lock. ``alone``: called next where no other verb shares the transaction; it needs none.
    ``size``: about how many bytes a command writes, where these are many.
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
    scan=Verb(scan, reads=True),
    purge=Verb(purge),
    reserve=Verb(reserve, look_for_reservation),
    unreserve=Verb(unreserve),
    # One transaction renews all of them.
    renewed_at_once=sys.maxsize,
    scanned_at_once=_SCANNED_AT_ONCE,
)
