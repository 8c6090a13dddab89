"""Records in a session: what is found, locked, kept and forgotten, and what time it is.

Decides nothing; what a verb does with a record is in ``backend``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from open_idempotency import decisions
from open_idempotency.backend import Claim, Lease, Record, Renewal
from open_idempotency.backends.django_orm import rows, statements
from open_idempotency.backends.django_orm.dialects import Dialect
from open_idempotency.backends.django_orm.sessions import Session
from open_idempotency.exceptions import RecordUnreadable


class Records:
    """The table of records. ``clock``: seconds; None where the database's own clock decides."""

    def __init__(self, dialect: Dialect, clock: Callable[[], float] | None) -> None:
        self._clock = clock
        self._lock = dialect.lock
        expression = "0" if clock is not None or dialect.clock is None else dialect.clock
        self._now = statements.NOW.format(clock=expression)
        self._now_and_reservation = statements.NOW_AND_RESERVATION.format(clock=expression)
        self._find_for_claim = statements.FIND_FOR_CLAIM.format(clock=expression)

    def now(self, session: Session) -> float:
        """Seconds since 1970; asked for after what has to be locked, since waiting for it takes time."""
        if self._clock is not None:
            return self._clock()
        found = session.row(self._now)
        assert found is not None
        return float(found[0])

    def now_and_withdrawn(self, session: Session, c: Claim) -> tuple[float, bool]:
        """The time, asked for when the record is locked, and whether the claim's owner was withdrawn."""
        found = session.row(self._now_and_reservation, decisions.withdrawn_id(c.owner), c.record_id)
        assert found is not None
        now = float(found[0]) if self._clock is None else self._clock()
        return now, found[1] is not None and float(found[1]) > now

    def find_for_claim(self, session: Session, c: Claim) -> tuple[Record | None, float]:
        """What a claim looks at first, and the time, in one statement. Raises ``RecordUnreadable``."""
        found = session.row(self._find_for_claim, c.fingerprint, c.record_id)
        assert found is not None
        now, record_id, *row = found
        time = float(now) if self._clock is None else self._clock()
        return (None if record_id is None else rows.record_of(c.record_id, row)), time

    def lock(
        self, session: Session, record_id: bytes, statement: str = statements.READ_HEADER, *more: bytes
    ) -> tuple[Record | None, float]:
        """The record, locked until the transaction ends, and the time since then. Raises ``RecordUnreadable``."""
        found = session.row(statement + self._lock, *more, record_id)
        return (None if found is None else rows.record_of(record_id, found)), self.now(session)

    def get(self, session: Session, record_id: bytes) -> Record | None:
        """The live record with its stages. Raises ``RecordUnreadable``."""
        found = session.row(statements.READ_WHOLE, record_id)
        if found is None:
            return None
        record = rows.record_of(record_id, found)
        if record.expires_at <= self.now(session):
            return None
        return rows.with_stages(record, session.rows(statements.READ_STAGES, record_id))

    def ids_after(self, last: bytes, most: int, session: Session) -> list[bytes]:
        """The ids of the next live records, in order."""
        return [bytes(row[0]) for row in session.rows(statements.SCAN, last, self.now(session), most)]

    def renew(self, leases: Sequence[Lease], session: Session) -> list[Renewal]:
        """Extend leases; one statement for all that have the same durations."""
        statement = statements.for_many(statements.READ_MANY, len(leases)) + self._lock
        found = {bytes(row[0]): row[1:] for row in session.rows(statement, *(lease.record_id for lease in leases))}
        now = self.now(session)
        answers: list[Renewal] = []
        extended: defaultdict[tuple[float, float], list[bytes]] = defaultdict(list)
        for lease in leases:
            answer, kept = _renewed(lease, found.get(lease.record_id), now)
            answers.append(answer)
            if kept is not None:
                extended[kept.lease_end, kept.expires_at].append(lease.record_id)
        for ends, record_ids in extended.items():
            session.run(statements.for_many(statements.EXTEND, len(record_ids)), *ends, *record_ids)
        return answers

    def keep(self, session: Session, before: Record | None, after: Record | None) -> None:
        """Write what a decision left of a locked record."""
        if after is before:
            return
        if after is None:
            assert before is not None
            self.forget(session, [before.record_id])
        else:
            session.run(statements.INSERT if before is None else statements.UPDATE, *rows.row_of(after))

    def forget(self, session: Session, record_ids: Sequence[bytes]) -> None:
        """Delete records with their stages."""
        session.run(statements.for_many(statements.DELETE, len(record_ids)), *record_ids)
        self.forget_stages(session, record_ids)

    def forget_stages(self, session: Session, record_ids: Sequence[bytes]) -> None:
        """Delete the stages of records."""
        session.run(statements.for_many(statements.DELETE_STAGES, len(record_ids)), *record_ids)


def _renewed(lease: Lease, row: Sequence[object] | None, now: float) -> tuple[Renewal, Record | None]:
    """The answer, and the record if it is to be written."""
    try:
        record = None if row is None else rows.record_of(lease.record_id, row)
    except RecordUnreadable:
        return Renewal.LOST, None
    answer, kept = decisions.renew(record, lease, now)
    return answer, None if kept is record else kept
