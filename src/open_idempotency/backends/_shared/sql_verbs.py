"""The verbs of backends whose records are rows that a transaction can lock: SQLAlchemy's and Django's.

A verb is a generator of transactions. Its executor, sync or async, runs each and sends back what it returned. A claim
that only reads (a replay, a 409, a 422) locks nothing (B-11b). A verb that writes reads again under the lock of the
record's row, where ``open_idempotency.decisions`` decides. Of two transactions that insert the same row the second one
fails; its executor then runs it again.

A claim reads the clock, and whether its owner was withdrawn, only once it holds the row: an earlier time could be older
than that of a claim which was made and released in the meantime (B-02). A row that does not exist cannot be locked, so
it is inserted first.

A row that is corrupt, foreign or newer is refused when it is read. Types are checked, since SQLite takes values of any
type, and drivers differ in how they return bytes and booleans.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from open_idempotency import decisions
from open_idempotency._runtime.processes import PerProcess
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

# Between rows and records

RECORD_VERSION = 1
#: the columns of a row, in this order, followed by the response
HEADER = (
    "record_version", "fingerprint", "status", "owner", "token", "attempt",
    "claimed_at", "lease_end", "ttl", "expires_at", "final", "about",
)  # fmt: skip
#: the columns that are times and durations, in seconds
SECONDS = frozenset({"claimed_at", "lease_end", "ttl", "expires_at"})
_BYTES = (bytes, bytearray, memoryview)
_SECONDS = (float, int)
_KINDS: tuple[Any, ...] = (
    int, _BYTES, int, _BYTES, int, int, _SECONDS, _SECONDS, _SECONDS, _SECONDS, int, (*_BYTES, type(None)),
    (*_BYTES, type(None)),
)  # fmt: skip
_STATUSES = {int(status): status for status in Status if status is not Status.NONE}
#: stands for infinity in databases that have none
LARGEST = sys.float_info.max
#: How PostgreSQL sends a time. As text, its digits would depend on ``extra_float_digits``, which a role, a database or
#: a URL may set so low that a lease ends years later or sooner. Infinity and larger values are cut to 9e12. LEAST
#: ignores NULL, so this is only for columns without NULL.
MICROSECONDS = "CAST(LEAST({}, 9e12) * 1000000 AS bigint)"
_NO_TIME = 9 * 10**18


def in_seconds(value: Any) -> Any:
    """A time that ``MICROSECONDS`` has converted, in seconds again. None and other types are returned unchanged."""
    if not isinstance(value, int):
        return value
    return LARGEST if value >= _NO_TIME else value / 1_000_000


def record_of(record_id: bytes, row: Sequence[Any]) -> Record:
    """The record in a row of ``HEADER`` and the response, without its stages. Raises ``RecordUnreadable``."""
    if row[0] != RECORD_VERSION:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has the unknown version {row[0]!r:.20}")
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, about, response = row
    if not all(map(isinstance, row, _KINDS)) or status not in _STATUSES or final not in (0, 1):
        raise RecordUnreadable(f"record {record_id[:6].hex()} is corrupt")
    return Record(
        record_id, bytes(fingerprint), _STATUSES[status], bytes(owner), token, attempt,
        float(claimed_at), float(lease_end), math.inf if ttl >= LARGEST else float(ttl),
        math.inf if expires_at >= LARGEST else float(expires_at), bool(final),
        None if response is None else bytes(response),
        # Rows of workers that do not know the column have NULL there.
        about=b"" if about is None else bytes(about),
    )  # fmt: skip


def values_of(record: Record) -> dict[str, Any]:
    """The columns that write a record, by their names."""
    return {
        "record_id": record.record_id,
        "record_version": RECORD_VERSION,
        "fingerprint": record.fingerprint,
        "status": int(record.status),
        "owner": record.owner,
        "token": record.token,
        "attempt": record.attempt,
        "claimed_at": record.claimed_at,
        "lease_end": record.lease_end,
        "ttl": record.ttl,
        "expires_at": record.expires_at,
        "final": record.final,
        "about": record.about,
        "response": record.response,
    }


def with_stages(record: Record, rows: Iterable[Sequence[Any]]) -> Record:
    """The record with the stages of rows of name, key and frame. Raises ``RecordUnreadable``."""
    return replace(record, stages=tuple([_stage_of(record.record_id, row) for row in rows]))


def _stage_of(record_id: bytes, row: Sequence[Any]) -> Stage:
    name, key, frame = row
    try:
        if isinstance(name, _BYTES) and isinstance(key, _BYTES) and isinstance(frame, _BYTES):
            texts = bytes(name).decode("utf-8", "surrogatepass"), bytes(key).decode("utf-8", "surrogatepass")
            return Stage(*texts, bytes(frame))
    except UnicodeDecodeError as error:
        raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt") from error
    raise RecordUnreadable(f"a stage of record {record_id[:6].hex()} is corrupt")


def stage_names(stage: Stage) -> tuple[bytes, bytes]:
    """Name and key as bytes; they may hold any character, lone surrogates and NUL included."""
    return stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")


def end_of(record_id: bytes, value: object) -> float | None:
    """The end of a reservation in seconds, None where there is no reservation. Raises ``RecordUnreadable``."""
    if value is None:
        return None
    if not isinstance(value, float):
        raise RecordUnreadable(f"the reservation of record {record_id[:6].hex()} is corrupt")
    return math.inf if value >= LARGEST else value


# The verbs

C = TypeVar("C")
R = TypeVar("R")

_PURGED_PER_RESERVATION = 4
# Every 16th new record deletes up to 64 expired ones, so that these do not pile up.
_PURGED_EVERY, _PURGED_AT_ONCE = 16, 64
# Each process begins counting at another number, so that processes which end after a few records purge as well.
_NEW_RECORDS = PerProcess(lambda: itertools.count(os.getpid()))
_LARGEST_OFFSET = 2**31 - 1
_SCANNED_AT_ONCE, _HEADERS_AT_ONCE = 100, 500


class Table(Protocol):
    """The rows of records, stages and reservations, in one transaction. All of its methods may raise the driver's
    errors, and those that return records ``RecordUnreadable``.
    """

    @property
    def began(self) -> float:
        """About when the transaction began, in seconds. No decision depends on it."""
        ...

    @property
    def can_skip_locked(self) -> bool:
        """Whether rows that another transaction has locked can be left out, so that purging delays no call."""
        ...

    def now(self) -> float:
        """Seconds on the clock that decides. Read it after the record is locked."""
        ...

    def peek(self, record_id: bytes, fingerprint: bytes) -> tuple[Record, float] | None:
        """The record, not locked, and the time, in one statement. ``fingerprint``: see ``lock_for_claim``."""
        ...

    def lock(self, record_id: bytes) -> Record | None:
        """The record without its response and its stages, locked until the transaction ends."""
        ...

    def lock_for_claim(self, record_id: bytes, fingerprint: bytes) -> Record | None:
        """``lock``, with the response that a claim of this fingerprint may replay."""
        ...

    def lock_many(self, record_ids: Sequence[bytes]) -> Mapping[bytes, Sequence[Any]]:
        """The rows of records by id, as ``record_of`` reads them; locked in one order, so that no calls deadlock."""
        ...

    def with_stages(self, record: Record) -> Record:
        """The record with all of its stages, in order."""
        ...

    def with_stage(self, record: Record, stage: Stage) -> Record:
        """The record with only the stage of this name and key, if there is one."""
        ...

    def with_first_stage(self, record: Record) -> Record:
        """The record with one of its stages, if it has any."""
        ...

    def get(self, record_id: bytes) -> Record | None:
        """The live record with its response and stages."""
        ...

    def ids_after(self, record_id: bytes, most: int) -> Sequence[bytes]:
        """The ids of live records that come after this one, in order."""
        ...

    def headers_after(self, record_id: bytes, most: int) -> Sequence[Record]:
        """The live records that come after this one, in order, without responses and stages."""
        ...

    def insert(self, record: Record) -> None:
        """Add the row of a record."""

    def update(self, record: Record) -> None:
        """Write the row of a record that is locked."""

    def extend(self, record_ids: Sequence[bytes], lease_end: float) -> None:
        """Move the ends of leases that are locked, and with each its record's expiry: the end and the record's TTL."""

    def delete(self, record_ids: Sequence[bytes]) -> None:
        """Delete the rows of records, if they exist, and of their stages."""

    def add_stage(self, record_id: bytes, stage: Stage) -> None:
        """Append a stage."""

    def delete_stages(self, record_id: bytes) -> None:
        """Delete the stages of a record."""

    def now_and_reservation(self, scope_id: bytes, record_id: bytes) -> tuple[float, float | None]:
        """The time, and the end of a reservation, None where there is none; in one statement."""
        ...

    def lock_scope(self, scope_id: bytes) -> None:
        """Lock the row of a caller, which is inserted if need be, so that one transaction counts at a time."""

    def first_end(self, scope_id: bytes, now: float, others: int) -> float | None:
        """The first end of a caller's reservations, where more than ``others`` of them end after ``now``."""
        ...

    def put_reservation(self, scope_id: bytes, record_id: bytes, end: float, is_there: bool) -> None:
        """Write the end of a reservation; ``is_there``: whether it has a row."""

    def extend_scope(self, scope_id: bytes, end: float) -> None:
        """Keep the row of a caller until ``end`` at least."""

    def delete_reservation(self, scope_id: bytes, record_id: bytes) -> None:
        """Delete a reservation, if it exists."""

    def purge_records(self, now: float, most: int) -> int:
        """Delete at most ``most`` expired records with their stages. Returns how many. Locked rows may be left."""
        ...

    def purge_reservations(self, now: float, most: int) -> int:
        """Delete at most ``most`` expired reservations. Returns how many. Locked rows may be left."""
        ...

    def purge_scopes(self, now: float, most: int) -> None:
        """Delete at most ``most`` expired rows of callers. Locked rows may be left."""


class Step(NamedTuple):
    """One transaction: ``work(table, *arguments)``. ``mode``: ``"read"`` for a single statement that reads,
    ``"snapshot"`` for several reads of one state, ``"write"`` for work that locks and writes.
    """

    mode: Literal["read", "snapshot", "write"]
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


Steps = Generator[Step, Any, R]


@dataclass(frozen=True, slots=True)
class Verb(fronts.Verb[C, R]):
    """The transactions that carry out a command."""

    steps: Callable[[C], Steps[R]]


def carry_out(run: Callable[[Step], Any], verb: Verb[C, R], command: C) -> R:
    """The result of a command. ``run``: carries out each of its transactions."""
    steps = verb.steps(command)
    try:
        step = next(steps)
        while True:
            step = steps.send(run(step))
    except StopIteration as stop:
        result: R = stop.value
        return result


async def carry_out_async(run: Callable[[Step], Awaitable[Any]], verb: Verb[C, R], command: C) -> R:
    """``carry_out``, awaited."""
    steps = verb.steps(command)
    try:
        step = next(steps)
        while True:
            step = steps.send(await run(step))
    except StopIteration as stop:
        result: R = stop.value
        return result


def _in_one(mode: Literal["snapshot", "write"], work: Callable[[Table, C], R]) -> Verb[C, R]:
    """A verb of one transaction."""

    def steps(command: C) -> Steps[R]:
        found: R = yield Step(mode, work, (command,))
        return found

    return Verb(steps)


def _claim(c: Claim) -> Steps[ClaimResult]:
    claimed: ClaimResult | None
    claimed, is_there = yield Step("read", _peek, (c,))
    if claimed is None:
        # If no row was found, there is none to lock. If this runs again, another transaction has inserted one.
        lock = itertools.chain([is_there], itertools.repeat(True))
        claimed = yield Step("write", _claim_locked, (c, lock))
        assert claimed is not None
    return claimed


def _peek(table: Table, c: Claim) -> tuple[ClaimResult | None, bool]:
    """The result, or None if the claim has to write; and whether the record has a row."""
    found = table.peek(c.record_id, c.fingerprint)
    if found is None:
        return None, False
    record, now = found
    claimed, after = decisions.claim(record, c, now)
    return (claimed if after is record and decisions.rebased(record, now) is record else None), True


def _claim_locked(table: Table, c: Claim, lock: Iterator[bool]) -> ClaimResult:
    record = table.lock_for_claim(c.record_id, c.fingerprint) if next(lock) else None
    if record is None:
        return _insert(table, c)
    now, withdrawn = _now_and_withdrawn(table, c)
    found = record
    # What has expired is claimed as new, so its stages are not read.
    if record.expires_at > now:
        found = table.with_stages(record)
        record = decisions.rebased(found, now)
    claimed, after = decisions.claim(record, c, now, withdrawn=withdrawn)
    if after is not None and after is not found:
        if not after.stages:
            table.delete_stages(c.record_id)
        _keep(table, found, after)
    return claimed


def _insert(table: Table, c: Claim) -> ClaimResult:
    """Claim a record that has no row. A draft is inserted to hold the row; a time read after that decides."""
    _, draft = decisions.claim(None, c, table.began)
    assert draft is not None
    table.insert(draft)
    now, withdrawn = _now_and_withdrawn(table, c)
    claimed, after = decisions.claim(None, c, now, withdrawn=withdrawn)
    if after != draft:
        _keep(table, draft, after)
    if after is not None:
        _purge_sometimes(table, now)
    return claimed


def _now_and_withdrawn(table: Table, c: Claim) -> tuple[float, bool]:
    """The time, and whether the owner of the claim has withdrawn it (B-08c)."""
    now, end = table.now_and_reservation(decisions.withdrawn_id(c.owner), c.record_id)
    return now, end is not None and end > now


def _renew(table: Table, c: Renew) -> list[Renewal]:
    rows = table.lock_many([lease.record_id for lease in c.leases])
    now = table.now()
    extended: dict[float, list[bytes]] = {}
    renewals: list[Renewal] = []
    for lease in c.leases:
        renewal, after = _renewed(lease, rows.get(lease.record_id), now)
        renewals.append(renewal)
        if after is not None:
            extended.setdefault(after.lease_end, []).append(lease.record_id)
    # One statement for all leases that end at the same time, not one for each.
    for lease_end, record_ids in extended.items():
        table.extend(record_ids, lease_end)
    return renewals


def _renewed(lease: Lease, row: Sequence[Any] | None, now: float) -> tuple[Renewal, Record | None]:
    """The result, and the record if it is to be written. An unreadable record does not stop the other renewals."""
    try:
        record = None if row is None else record_of(lease.record_id, row)
    except RecordUnreadable:
        return Renewal.LOST, None
    renewal, after = decisions.renew(record, lease, now)
    return renewal, None if after is record else after


def _save_stage(table: Table, c: SaveStage) -> StageSaved:
    record_id = c.lease.record_id
    found = table.lock(record_id)
    now = table.now()
    record = found
    if record is not None and record.expires_at > now:
        record = table.with_stage(record, c.stage)
    saved, after = decisions.save_stage(record, c, now)
    if after is not record:
        # Stages of an expired record must not be taken for stages of the new one.
        if saved.recreated:
            table.delete_stages(record_id)
        _keep(table, found, after)
        table.add_stage(record_id, c.stage)
    return saved


def _complete(table: Table, c: Complete) -> Completed:
    record = table.lock(c.lease.record_id)
    completed, after = decisions.complete(record, c, table.now())
    if completed.recreated and record is not None:
        table.delete_stages(c.lease.record_id)
    _keep(table, record, after)
    return completed


def _fail(table: Table, c: Fail) -> None:
    record = table.lock(c.lease.record_id)
    _, after = decisions.fail(record, c, table.now())
    _keep(table, record, after)


def _release(table: Table, c: Release) -> None:
    record = table.lock(c.lease.record_id)
    now = table.now()
    if record is not None:
        # The record stays if it has any stage, so it is enough to read one.
        record = table.with_first_stage(record)
    _, after = decisions.release(record, c, now)
    _keep(table, record, after)


def _withdraw(table: Table, c: Withdraw) -> None:
    record_id, scope_id = c.claim.record_id, decisions.withdrawn_id(c.claim.owner)
    record = table.lock(record_id)
    if record is None:
        # The claim may be inserting its row at this moment. The second of the two inserts waits for the first.
        _, draft = decisions.claim(None, c.claim, table.began)
        assert draft is not None
        table.insert(draft)
        table.delete([record_id])
    else:
        record = table.with_first_stage(record)
    now, end = table.now_and_reservation(scope_id, record_id)
    _, after = decisions.withdraw(record, c, now)
    _keep(table, record, after)
    table.put_reservation(scope_id, record_id, now + decisions.WITHDRAWN_FOR, end is not None)


def _get(table: Table, c: Get) -> Record | None:
    return table.get(c.record_id)


def _delete(table: Table, record_id: bytes) -> bool:
    try:
        record = table.lock(record_id)
        is_live = record is not None and record.expires_at > table.now()
    except RecordUnreadable:
        # An unreadable record counts as live, since something was deleted.
        is_live = True
    table.delete([record_id])
    return is_live


def _free(table: Table, c: Free) -> Freed:
    record = table.lock(c.record_id)
    freed, after = decisions.free(record, c, table.now())
    _keep(table, record, after)
    return freed


def _now(table: Table, c: None) -> float:
    return table.now()


def _scan(table: Table, after: bytes) -> Sequence[bytes]:
    return table.ids_after(after, _SCANNED_AT_ONCE)


def _headers(table: Table, after: bytes) -> Sequence[Record]:
    return table.headers_after(after, _HEADERS_AT_ONCE)


def _keep(table: Table, before: Record | None, after: Record | None) -> None:
    """Write the result of a decision about a locked record."""
    if after is before:
        return
    if after is None:
        assert before is not None
        table.delete([before.record_id])
    elif before is None:
        table.insert(after)
    else:
        table.update(after)


def _purge_sometimes(table: Table, now: float) -> None:
    """Delete expired records along with some of the new ones, where that delays no call."""
    if next(_NEW_RECORDS.get()) % _PURGED_EVERY == 0 and table.can_skip_locked:
        table.purge_records(now, _PURGED_AT_ONCE)


def _purge(table: Table, most: int) -> int:
    now = table.now()
    purged = table.purge_records(now, most)
    table.purge_scopes(now, most)
    return purged + (table.purge_reservations(now, most - purged) if purged < most else 0)


def _reserve(c: Reserve) -> Steps[ReserveResult]:
    reserved: ReserveResult | None = yield Step("snapshot", _peek_reservation, (c,))
    if reserved is None:
        reserved = yield Step("write", _reserve_locked, (c,))
        assert reserved is not None
    return reserved


def _peek_reservation(table: Table, c: Reserve) -> ReserveResult | None:
    """The result, or None if a reservation has to be written."""
    reserved, _, _, end = _decide(table, c)
    return reserved if end is None else None


def _reserve_locked(table: Table, c: Reserve) -> ReserveResult:
    table.lock_scope(c.scope_id)
    reserved, now, before, end = _decide(table, c)
    if end is not None:
        table.extend_scope(c.scope_id, end)
        table.put_reservation(c.scope_id, c.record_id, end, before is not None)
        if table.can_skip_locked:
            table.purge_reservations(now, _PURGED_PER_RESERVATION)
    return reserved


def _decide(table: Table, c: Reserve) -> tuple[ReserveResult, float, float | None, float | None]:
    """The result, the time, the present end of the reservation, and the end to write, or None if it does not change."""
    now, before = table.now_and_reservation(c.scope_id, c.record_id)
    first = None
    if before is None or before <= now:
        first = table.first_end(c.scope_id, now, min(c.limit - 1, _LARGEST_OFFSET))
    # The exact number of reservations does not matter, only whether it reaches the limit.
    taken, earliest = (0, now) if first is None else (c.limit, first)
    reserved, end = decisions.reserve(before, taken, earliest, c, now)
    return reserved, now, before, end


def _unreserve(table: Table, c: Unreserve) -> None:
    table.delete_reservation(c.scope_id, c.record_id)


#: the verbs of the fronts of SQLAlchemy and Django
VERBS = fronts.Verbs(
    claim=Verb(_claim),
    renew=_in_one("write", _renew),
    save_stage=_in_one("write", _save_stage),
    complete=_in_one("write", _complete),
    fail=_in_one("write", _fail),
    release=_in_one("write", _release),
    withdraw=_in_one("write", _withdraw),
    get=_in_one("snapshot", _get),
    delete=_in_one("write", _delete),
    free=_in_one("write", _free),
    now=_in_one("snapshot", _now),
    scan=_in_one("snapshot", _scan),
    headers=_in_one("snapshot", _headers),
    purge=_in_one("write", _purge),
    reserve=Verb(_reserve),
    unreserve=_in_one("write", _unreserve),
    scanned_at_once=_SCANNED_AT_ONCE,
    headers_at_once=_HEADERS_AT_ONCE,
)
