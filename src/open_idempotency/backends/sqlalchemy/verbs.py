"""The verbs, each written once for both colours: what is read first, and what is decided in a write transaction.

A verb is a generator of steps, resumed with what each of them found. What only reads (a replay, a 409, a 422) takes
no lock and begins no write transaction (B-11b); what writes reads again under the lock of the record's row, where
``open_idempotency.decisions`` decides. Two inserts of one row end in an error for the second, and it is tried again.

A claim reads the time, and whether its owner was withdrawn, once it holds the row: a time from before could be older
than that of a claim that was made and given back meanwhile (B-02). A row that is not there is inserted for that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple, TypeVar

from open_idempotency import decisions
from open_idempotency.backend import (
    Claim,
    ClaimAnswer,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    SaveStage,
    StageSaved,
    Withdraw,
)
from open_idempotency.backends.sqlalchemy import cleaning, rows, statements
from open_idempotency.backends.sqlalchemy.transactions import Transaction
from open_idempotency.exceptions import RecordUnreadable

T = TypeVar("T")

#: how many records go into one transaction
BATCH = 100


class Step(NamedTuple):
    """One transaction."""

    mode: Literal["read", "write"]
    work: Callable[[Transaction], Any]


Steps = Generator[Step, Any, T]


def once(mode: Literal["read", "write"], work: Callable[..., T], *arguments: Any) -> Steps[T]:
    """A verb of a single step."""

    def on(transaction: Transaction) -> T:
        return work(transaction, *arguments)

    found: T = yield Step(mode, on)
    return found


def claim(c: Claim) -> Steps[ClaimAnswer]:
    """See ``Backend.claim``."""
    answer, is_there = yield Step("read", partial(_peek, c=c))
    if answer is None:
        # Where nothing was found there is mostly nothing to lock. Tried again, as after another's insert, there is.
        answer = yield Step("write", partial(_claim, c=c, lock=chain([is_there], repeat(True))))
    claimed: ClaimAnswer = answer
    return claimed


def _peek(tx: Transaction, c: Claim) -> tuple[ClaimAnswer | None, bool]:
    """The answer, None where the claim has to write; and whether there is a row."""
    found = tx.timed(tx.statements.peek, id=c.record_id, fingerprint=c.fingerprint)
    if not found:
        return None, False
    now, *row = found[0]
    record = rows.record_of(c.record_id, row)
    answer, kept = decisions.claim(record, c, float(now))
    return (answer if kept is record else None), True


def _claim(tx: Transaction, c: Claim, lock: Iterator[bool]) -> ClaimAnswer:
    row = tx.row(statements.LOCK_FOR_CLAIM, id=c.record_id, fingerprint=c.fingerprint) if next(lock) else None
    if row is None:
        return _insert(tx, c)
    record = rows.record_of(c.record_id, row)
    now, withdrawn = _now(tx, c)
    if record.expires_at > now:
        record = rows.with_stages(record, tx.rows(statements.STAGES, id=c.record_id))
    answer, kept = decisions.claim(record, c, now, withdrawn=withdrawn)
    if kept is not None and kept is not record:
        if not kept.stages:
            tx.run(statements.DELETE_STAGES, {"id": c.record_id})
        _keep(tx, record, kept)
    return answer


def _insert(tx: Transaction, c: Claim) -> ClaimAnswer:
    """Claim a record that is not there: its row first, and what the time says once it is in."""
    _, draft = decisions.claim(None, c, tx.now)
    _keep(tx, None, draft)
    now, withdrawn = _now(tx, c)
    answer, kept = decisions.claim(None, c, now, withdrawn=withdrawn)
    if kept != draft:
        _keep(tx, draft, kept)
    if kept is not None:
        cleaning.now_and_then(tx)
    return answer


def _now(tx: Transaction, c: Claim) -> tuple[float, bool]:
    """The time, under the lock, and whether the claim's owner was withdrawn."""
    scope_id = decisions.withdrawn_id(c.owner)
    ((read_at, end),) = tx.timed(tx.statements.reservation, scope=scope_id, id=c.record_id)
    # The one writer of a database needs no second look at the clock.
    now = float(read_at) if tx.waits else tx.now
    return now, end is not None and float(end) > now


def renew(c: Renew) -> Steps[Sequence[Renewal]]:
    """See ``Backend.renew``; a record that cannot be read is LOST, so that the others are renewed."""
    answers: list[Renewal] = []
    for start in range(0, len(c.leases), BATCH):
        answers += yield Step("write", partial(_renew, c=Renew(c.leases[start : start + BATCH])))
    return answers


def _renew(tx: Transaction, c: Renew) -> list[Renewal]:
    ids = [lease.record_id for lease in c.leases]
    found = {bytes(row[0]): row[1:] for row in tx.rows(statements.LOCK_MANY, ids=ids)}
    extended: dict[float, list[bytes]] = {}
    answers: list[Renewal] = []
    for lease in c.leases:
        try:
            row = found.get(lease.record_id)
            record = None if row is None else rows.record_of(lease.record_id, row)
        except RecordUnreadable:
            answers.append(Renewal.LOST)
            continue
        answer, kept = decisions.renew(record, lease, tx.now)
        answers.append(answer)
        if kept is not None and kept is not record:
            extended.setdefault(rows.seconds(kept.lease_end), []).append(lease.record_id)
    for end, extended_ids in extended.items():
        tx.run(statements.EXTEND, {"end": end, "ids": extended_ids})
    return answers


def save_stage(tx: Transaction, c: SaveStage) -> StageSaved:
    """See ``Backend.save_stage``."""
    record_id, stage_id = c.lease.record_id, rows.stage_id(c.stage)
    record = _lock(tx, record_id)
    if record is not None and record.expires_at > tx.now:
        record = rows.with_stages(record, tx.rows(statements.STAGE, id=record_id, stage=stage_id))
    answer, kept = decisions.save_stage(record, c, tx.now)
    if kept is not record:
        if answer.recreated:
            tx.run(statements.DELETE_STAGES, {"id": record_id})
        _keep(tx, record, kept)
        name, key = rows.stage_names(c.stage)
        place = {"position": tx.row(statements.LAST_POSITION, id=record_id)[0] + 1, "frame": c.stage.frame}
        tx.run(
            statements.ADD_STAGE,
            {"record_id": record_id, "stage_id": stage_id, "name": name, "stage_key": key, **place},
        )
    return answer


def complete(tx: Transaction, c: Complete) -> Completed:
    """See ``Backend.complete``."""
    record = _lock(tx, c.lease.record_id)
    answer, kept = decisions.complete(record, c, tx.now)
    if answer.recreated and record is not None:
        tx.run(statements.DELETE_STAGES, {"id": c.lease.record_id})
    _keep(tx, record, kept)
    return answer


def fail(tx: Transaction, c: Fail) -> None:
    """See ``Backend.fail``."""
    record = _lock(tx, c.lease.record_id)
    _, kept = decisions.fail(record, c, tx.now)
    _keep(tx, record, kept)


def release(tx: Transaction, c: Release) -> None:
    """See ``Backend.release``."""
    record = _lock(tx, c.lease.record_id)
    if record is not None:
        record = rows.with_stages(record, tx.rows(statements.HAS_STAGES, id=c.lease.record_id))
    _, kept = decisions.release(record, c, tx.now)
    _keep(tx, record, kept)


def withdraw(tx: Transaction, c: Withdraw) -> None:
    """See ``Backend.withdraw``."""
    record_id, scope_id = c.claim.record_id, decisions.withdrawn_id(c.claim.owner)
    record = _lock(tx, record_id)
    if record is None:
        # The claim may be inserting its row: this waits for it, and makes it wait for this.
        _, draft = decisions.claim(None, c.claim, tx.now)
        _keep(tx, None, draft)
        _keep(tx, draft, None)
    else:
        record = rows.with_stages(record, tx.rows(statements.HAS_STAGES, id=record_id))
    ((read_at, before),) = tx.timed(tx.statements.reservation, scope=scope_id, id=record_id)
    now = float(read_at)
    _, kept = decisions.withdraw(record, c, now)
    _keep(tx, record, kept)
    end = now + decisions.WITHDRAWN_FOR
    if before is None:
        tx.run(statements.INSERT_RESERVATION, {"scope_id": scope_id, "record_id": record_id, "ends": end})
    else:
        tx.run(statements.EXTEND_RESERVATION, {"scope": scope_id, "id": record_id, "end": end})


def get(tx: Transaction, c: Get) -> Record | None:
    """See ``Backend.get``."""
    found = tx.timed(tx.statements.get, id=c.record_id)
    if not found:
        return None
    now, *row = found[0][:-3]
    record = rows.record_of(c.record_id, row)
    if record.expires_at <= float(now):
        return None
    return rows.with_stages(record, [each[-3:] for each in found if each[-3] is not None])


def delete(tx: Transaction, record_id: bytes) -> bool:
    """See ``Backend.delete``; deletes a record that cannot be read as well."""
    row = tx.row(statements.LOCK, id=record_id)
    if row is None:
        return False
    cleaning.forget(tx, [record_id])
    try:
        return rows.record_of(record_id, row).expires_at > tx.now
    except RecordUnreadable:
        return True


def scan(tx: Transaction, after: bytes) -> list[bytes]:
    """The ids of the next live records."""
    return [bytes(found[0]) for found in tx.timed(tx.statements.scan, after=after, limit=BATCH)]


def purge(limit: int) -> Steps[int]:
    """See ``Backend.purge``."""
    purged = 0
    while purged < limit:
        batch: int = yield Step("write", partial(cleaning.purge, limit=min(BATCH, limit - purged)))
        purged += batch
        if batch < BATCH:
            break
    return purged


def _lock(tx: Transaction, record_id: bytes) -> Record | None:
    row = tx.row(statements.LOCK, id=record_id)
    return None if row is None else rows.record_of(record_id, row)


def _keep(tx: Transaction, before: Record | None, after: Record | None) -> None:
    if after is before:
        return
    if after is None:
        assert before is not None
        cleaning.forget(tx, [before.record_id])
    elif before is None:
        if not tx.cascades:
            # Those of a record that somebody deleted by hand.
            tx.run(statements.DELETE_STAGES, {"id": after.record_id})
        tx.run(statements.INSERT, rows.values_of(after))
    else:
        values = rows.values_of(after)
        tx.run(statements.UPDATE, {"id": values.pop("record_id"), **values})
