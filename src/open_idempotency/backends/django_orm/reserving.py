"""Quotas of live keys: reservations in a session, counted while the caller's row is locked.

That row is made with the first reservation of a caller, and expires with the last.
"""

from __future__ import annotations

from open_idempotency import decisions
from open_idempotency.backend import Reserve, ReserveAnswer
from open_idempotency.backends.django_orm import operating, statements
from open_idempotency.backends.django_orm.records import Records
from open_idempotency.backends.django_orm.sessions import Session
from open_idempotency.exceptions import RecordUnreadable

_PURGED_PER_RESERVATION = 4
_LARGEST = 2**63 - 1


def look(records: Records, c: Reserve, session: Session) -> tuple[ReserveAnswer, float | None]:
    """The answer, and the end to write, None where nothing is to be written."""
    return _decide(session, c, records.now(session))[:2]


def reserve(records: Records, c: Reserve, session: Session) -> ReserveAnswer:
    """Count the key, in a transaction that writes."""
    found = session.row(statements.LOCK_SCOPE + session.dialect.lock, c.scope_id)
    if found is None:
        session.run(statements.INSERT_SCOPE, c.scope_id, 0.0)
    now = records.now(session)
    answer, end, is_there = _decide(session, c, now)
    if end is not None:
        statement = statements.UPDATE_RESERVATION if is_there else statements.INSERT_RESERVATION
        session.run(statement, end, c.scope_id, c.record_id)
        session.run(statements.EXTEND_SCOPE, end, c.scope_id, end)
        if session.dialect.one_writer or session.can_skip_locked():
            operating.purge_reservations(session, now, _PURGED_PER_RESERVATION)
    return answer


def _decide(session: Session, c: Reserve, now: float) -> tuple[ReserveAnswer, float | None, bool]:
    """The answer, the end to write, and whether the key has a row."""
    found = session.row(statements.READ_RESERVATION, c.scope_id, c.record_id)
    end = None if found is None else found[0]
    if not isinstance(end, float | None):
        raise RecordUnreadable(f"the reservation of record {c.record_id[:6].hex()} is corrupt")
    first = None
    if end is None or end <= now:
        others = min(c.limit - 1, _LARGEST)
        first = session.row(statements.FIRST_OF_MORE_THAN, c.scope_id, now, c.scope_id, now, others)
    # How many there are does not matter, but whether they are as many as the limit.
    taken, earliest = (0, now) if first is None else (c.limit, first[0])
    return *decisions.reserve(end, taken, earliest, c, now), found is not None
