"""Reservations: which keys count towards which caller's quota. Counting is done under the lock of the caller's row."""

from __future__ import annotations

from functools import partial

from open_idempotency import decisions
from open_idempotency.backend import Reserve, ReserveAnswer, Unreserve
from open_idempotency.backends.sqlalchemy import cleaning, rows, statements
from open_idempotency.backends.sqlalchemy.transactions import Transaction
from open_idempotency.backends.sqlalchemy.verbs import Step, Steps

_MOST = 2**31 - 1
_PURGED_PER_RESERVATION = 4


def reserve(c: Reserve) -> Steps[ReserveAnswer]:
    """See ``Backend.reserve``; a key that counts already and a caller over its quota only read, mostly."""
    answer: ReserveAnswer | None = yield Step("read", partial(_peek, c=c))
    if answer is None:
        answer = yield Step("write", partial(_reserve, c=c))
    assert answer is not None
    return answer


def unreserve(tx: Transaction, c: Unreserve) -> None:
    """See ``Backend.unreserve``."""
    tx.run(statements.DELETE_RESERVATION, {"scope": c.scope_id, "id": c.record_id})


def _peek(tx: Transaction, c: Reserve) -> ReserveAnswer | None:
    answer, _, to_write = _decide(tx, c)
    return answer if to_write is None else None


def _reserve(tx: Transaction, c: Reserve) -> ReserveAnswer:
    scope = {"scope_id": c.scope_id, "ends": rows.seconds(tx.now + c.lease + c.ttl)}
    if tx.row(statements.LOCK_SCOPE, scope=c.scope_id) is None:
        tx.run(statements.INSERT_SCOPE, scope)
    answer, before, end = _decide(tx, c)
    if end is not None:
        end = rows.seconds(end)
        tx.run(statements.EXTEND_SCOPE, {"scope": c.scope_id, "end": end})
        if before is None:
            values = {"scope_id": c.scope_id, "record_id": c.record_id, "ends": end}
            tx.run(statements.INSERT_RESERVATION, values)
        else:
            tx.run(statements.EXTEND_RESERVATION, {"scope": c.scope_id, "id": c.record_id, "end": end})
        cleaning.reservations(tx, _PURGED_PER_RESERVATION)
    return answer


def _decide(tx: Transaction, c: Reserve) -> tuple[ReserveAnswer, float | None, float | None]:
    """The answer, the end that the reservation has, and the one to write."""
    ((read_at, found),) = tx.timed(tx.statements.reservation, scope=c.scope_id, id=c.record_id)
    now, end = float(read_at), rows.end_of(c.record_id, found)
    first = None
    if end is None or end <= now:
        others = min(c.limit - 1, _MOST)
        first = tx.row(statements.FIRST_OF_MORE_THAN, scope=c.scope_id, now=now, others=others)
    # How many there are does not matter, but whether they are as many as the limit.
    taken, earliest = (0, now) if first is None else (c.limit, rows.end_of(c.record_id, first[0]) or now)
    answer, to_write = decisions.reserve(end, taken, earliest, c, now)
    return answer, end, to_write
