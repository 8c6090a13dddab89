"""Deleting what has expired: a few rows with each claim, and whatever there is for an operator, in bounded batches.

Where the server can, rows that somebody has locked are left for another time; so batches may run side by side.
"""

from __future__ import annotations

from typing import Any

from open_idempotency.backends.django_orm import statements
from open_idempotency.backends.django_orm.records import Records
from open_idempotency.backends.django_orm.sessions import Session


def purge_in_passing(session: Session, now: float, limit: int) -> None:
    """Delete a few expired records, where that cannot make anybody wait."""
    if session.dialect.one_writer or session.can_skip_locked():
        _purge_records(session, now, limit)


def purge(records: Records, limit: int, session: Session) -> int:
    """Delete expired records and reservations, at most ``limit``; how many were."""
    now = records.now(session)
    purged = _purge_records(session, now, limit)
    purged += purge_reservations(session, now, limit - purged)
    scopes = _expired(session, statements.FIND_EXPIRED_SCOPES, now, limit)
    _delete(session, statements.DELETE_SCOPES, scopes)
    return purged


def purge_reservations(session: Session, now: float, limit: int) -> int:
    """Delete expired reservations, at most ``limit``; how many were."""
    expired = _expired(session, statements.FIND_EXPIRED_RESERVATIONS, now, limit)
    _delete(session, statements.DELETE_RESERVATIONS, expired)
    return len(expired)


def _purge_records(session: Session, now: float, limit: int) -> int:
    expired = _expired(session, statements.FIND_EXPIRED, now, limit)
    _delete(session, statements.DELETE, expired)
    _delete(session, statements.DELETE_STAGES, expired)
    return len(expired)


def _expired(session: Session, statement: str, now: float, limit: int) -> list[Any]:
    lock = session.dialect.lock
    if lock and session.can_skip_locked():
        lock += " SKIP LOCKED"
    found = [row[0] for row in session.rows(statement + lock, now, limit)] if limit > 0 else []
    return [value if isinstance(value, int) else bytes(value) for value in found]


def _delete(session: Session, statement: str, values: list[Any]) -> None:
    if values:
        session.run(statements.for_many(statement, len(values)), *values)
