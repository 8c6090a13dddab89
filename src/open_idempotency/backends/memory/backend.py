"""The memory backend: the verbs on a table in this process's memory.

One table serves the sync and the async front. It has the records, the callers that wait for them, and the reservations;
the fronts decide under its lock. It is bounded, in records and in bytes. When it is full of live records a new claim is
refused, since an evicted record would let its request run twice. A forked child continues with a copy.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from open_idempotency import decisions
from open_idempotency._runtime import clocks, loops
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Free,
    Freed,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Status,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency.backends._shared import urls
from open_idempotency.backends._shared.one_process import warn_of_other_workers
from open_idempotency.backends._shared.waiters import Waiter, Waiters
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError

# The table

# About what a record takes beside its response and its stages: the object, its ids, and its entry in the table.
_BYTES_A_RECORD = 600
_PURGED_PER_INSERT = 2
_LOOKED_AT_PER_INSERT = 2
_NEVER = float("inf")


class _Here:
    """The lock and the waiters of one process: an inherited lock could be held for ever, and a parent's callers do not
    wait here.
    """

    __slots__ = ("lock", "waiters")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiters = Waiters()
        warn_of_other_workers("memory://")  # in each process that uses the table, so after a fork too


class Table:
    """The records, in the order in which they were last looked at for purging."""

    def __init__(self, max_records: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_records = max_records
        self.max_bytes = max_bytes
        # The bytes of the records' responses and stages, without those that every record takes.
        self._frames = 0
        self.now = clock
        self._here = PerProcess(_Here)
        warn_of_other_workers("memory://")
        # Whether callers may be waiting, so that most verbs need not look for them.
        self._awaited = False
        self.records: OrderedDict[bytes, Record] = OrderedDict()
        self.reservations = Reservations(max_records)
        # The end for each record and owner, in the order of the withdrawals.
        self._withdrawn: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()
        # No record expires before this moment, so a full table need not be searched.
        self._earliest = _NEVER

    @property
    def lock(self) -> threading.Lock:
        """This process's lock."""
        return self._here.get().lock

    def keep(self, record_id: bytes, before: Record | None, after: Record | None) -> None:
        """Save the result of a decision about a record. The caller holds the lock."""
        if after is before:
            return
        if self._awaited and (after is None or after.status is not Status.IN_PROGRESS):
            self._here.get().waiters.wake(record_id)
        if after is None:
            self._drop(record_id)
            return
        self.records[record_id] = after
        self._frames += _size(after) - (0 if before is None else _size(before))
        if after.expires_at < self._earliest:
            self._earliest = after.expires_at
        if before is None and self._earliest <= after.claimed_at:
            self._purge_some(after.claimed_at)

    def _purge_some(self, now: float) -> None:
        """Check the two oldest records, once for each new one, so that expired records do not pile up."""
        for _ in range(_PURGED_PER_INSERT):
            record_id = next(iter(self.records), None)
            if record_id is None:
                return
            if self.records[record_id].expires_at <= now:
                self._drop(record_id)
            else:
                self.records.move_to_end(record_id)

    def make_room(self, record_id: bytes, now: float) -> None:
        """Refuse a new record while the table is full of live ones. The lock is held."""
        if not self._is_full() or record_id in self.records:
            return
        if self._earliest <= now:
            self.purge(len(self.records), now)
        if self._is_full():
            raise BackendUnavailable(f"memory backend is full: {len(self.records)} live records")

    def _is_full(self) -> bool:
        count = len(self.records)
        return count >= self.max_records or count * _BYTES_A_RECORD + self._frames >= self.max_bytes

    def _drop(self, record_id: bytes) -> None:
        record = self.records.pop(record_id, None)
        if record is not None:
            self._frames -= _size(record)

    def purge(self, limit: int, now: float) -> int:
        """Delete expired records, at most ``limit``. The lock is held."""
        expired = [key for key, record in self.records.items() if record.expires_at <= now]
        for record_id in expired[: max(0, limit)]:
            self._drop(record_id)
        self._earliest = min((r.expires_at for r in self.records.values()), default=_NEVER)
        return min(max(0, limit), len(expired))

    def forget(self, record_id: bytes) -> bool:
        """Delete a record for an operator. Returns whether it was live. The lock is held."""
        there = self.live(record_id) is not None
        self._drop(record_id)
        self._here.get().waiters.wake(record_id)
        return there

    def withdraw(self, c: Claim, now: float) -> None:
        """Remember the owner of a withdrawn claim; at most the latest ``max_records`` owners. The lock is held."""
        withdrawn, key = self._withdrawn, (c.record_id, c.owner)
        withdrawn[key] = now + decisions.WITHDRAWN_FOR
        withdrawn.move_to_end(key)
        while len(withdrawn) > self.max_records or next(iter(withdrawn.values())) <= now:
            withdrawn.popitem(last=False)

    def is_withdrawn(self, c: Claim, now: float) -> bool:
        """Whether the claim's owner has withdrawn it. The lock is held."""
        return bool(self._withdrawn) and self._withdrawn.get((c.record_id, c.owner), now) > now

    def enter(self, record_id: bytes, waiter: Waiter) -> bool:
        """Wake ``waiter`` when the running attempt ends. False if no attempt runs. Takes the lock."""
        with self.lock:
            record = self.records.get(record_id)
            running = record is not None and record.status is Status.IN_PROGRESS
            if running:
                self._here.get().waiters.add(record_id, waiter)
                self._awaited = True
        return running

    def leave(self, record_id: bytes, waiter: Waiter) -> None:
        """Stop waiting. Takes the lock."""
        with self.lock:
            waiters = self._here.get().waiters
            waiters.discard(record_id, waiter)
            self._awaited = bool(waiters)

    def live(self, record_id: bytes) -> Record | None:
        """A copy of the record unless it expired. The lock is held."""
        record = self.records.get(record_id)
        return None if record is None or record.expires_at <= self.now() else replace(record)


def _size(record: Record) -> int:
    """The bytes that the application gave to be stored."""
    size = len(record.response) if record.response else 0
    return size + sum([len(stage.frame) for stage in record.stages]) if record.stages else size


class _Scope:
    """One caller's reservations, and the ``earliest`` of their ends, so that a full list need not be searched."""

    __slots__ = ("earliest", "ends")

    def __init__(self) -> None:
        self.ends: dict[bytes, float] = {}
        self.earliest = _NEVER

    def drop_expired(self, now: float, limit: int) -> int:
        if self.earliest > now:
            return 0
        expired = [record_id for record_id, end in self.ends.items() if end <= now][:limit]
        for record_id in expired:
            del self.ends[record_id]
        self._find_earliest()
        return len(expired)

    def put(self, record_id: bytes, end: float) -> None:
        before = self.ends.get(record_id)
        self.ends[record_id] = end
        if before == self.earliest:
            self._find_earliest()
        self.earliest = min(self.earliest, end)

    def pop(self, record_id: bytes) -> bool:
        end = self.ends.pop(record_id, None)
        if end == self.earliest:
            self._find_earliest()
        return end is not None

    def _find_earliest(self) -> None:
        self.earliest = min(self.ends.values(), default=_NEVER)


class Reservations:
    """All callers' reservations, at most ``most``; callers in the order in which they were last looked at.

    It has no lock and no clock: the table has both.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._scopes: OrderedDict[bytes, _Scope] = OrderedDict()

    def reserve(self, c: Reserve, now: float) -> ReserveResult:
        """See ``Backend.reserve``. Raises ``BackendUnavailable`` where there is no room for another."""
        scope = self._scopes.get(c.scope_id) or _Scope()
        if len(scope.ends) >= c.limit:
            self._count -= scope.drop_expired(now, len(scope.ends))
        before = scope.ends.get(c.record_id)
        reserved, end = decisions.reserve(before, len(scope.ends), scope.earliest, c, now)
        if end is not None:
            if before is None:
                self._make_room(now)
                self._count += 1
            scope.put(c.record_id, end)
            self._scopes[c.scope_id] = scope
        return reserved

    def unreserve(self, scope_id: bytes, record_id: bytes) -> None:
        """See ``Backend.unreserve``."""
        scope = self._scopes.get(scope_id)
        if scope is not None and scope.pop(record_id):
            self._count -= 1
            if not scope.ends:
                del self._scopes[scope_id]

    def purge(self, limit: int, now: float) -> int:
        """Delete expired reservations, at most ``limit``."""
        purged = 0
        for scope_id in list(self._scopes):
            purged += self._drop_expired(scope_id, now, limit - purged)
        return purged

    def _drop_expired(self, scope_id: bytes, now: float, limit: int) -> int:
        scope = self._scopes[scope_id]
        dropped = scope.drop_expired(now, limit)
        self._count -= dropped
        if not scope.ends:
            del self._scopes[scope_id]
        return dropped

    def _make_room(self, now: float) -> None:
        """Check the two oldest callers, once for each new reservation, so that expired ones do not pile up."""
        for scope_id in list(islice(self._scopes, _LOOKED_AT_PER_INSERT)):
            self._drop_expired(scope_id, now, self._most)
            if scope_id in self._scopes:
                self._scopes.move_to_end(scope_id)
        if self._count >= self._most:
            self.purge(self._most, now)
        if self._count >= self._most:
            raise BackendUnavailable(f"memory backend is full: {self._most} reservations")


# The verbs

_MAX_RECORDS, _MAX_BYTES = 100_000, 256 * 1024 * 1024
_OPTIONS: dict[str, urls.Parser] = {"max_records": urls.count, "max_bytes": urls.count}
_SCAN_BATCH = 100


class MemoryBackend(Backend):
    """The sync front.

    ``max_records``: how many live records it takes; ``max_bytes``: about how many bytes these may take. An attempt that
    runs when it is full is still recorded. ``clock``: seconds, for tests. Since 0.1.
    """

    quotas = True
    in_memory = True
    frees = True

    def __init__(
        self,
        *,
        max_records: int = _MAX_RECORDS,
        max_bytes: int = _MAX_BYTES,
        clock: Callable[[], float] | None = None,
    ) -> None:
        read = urls.keywords({"max_records": max_records, "max_bytes": max_bytes}, _OPTIONS)
        self._table = Table(read["max_records"], read["max_bytes"], clock or clocks.growing())
        self._async = AsyncMemoryBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> MemoryBackend:
        """``memory://``, ``memory://?max_records=N&max_bytes=N``. Raises ``ConfigurationError``."""
        parts = urls.split(url)
        if parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError("backend: memory:// takes neither host nor path")
        return cls(**urls.options(parts, _OPTIONS) | urls.keywords(options, _OPTIONS, "memory://"))

    def __repr__(self) -> str:
        return f"MemoryBackend(max_records={self._table.max_records})"

    def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``. Raises ``BackendUnavailable`` while the table is full of live records."""
        table = self._table
        with table.lock:
            now = table.now()
            table.make_room(c.record_id, now)
            record = table.records.get(c.record_id)
            claimed, after = decisions.claim(record, c, now, withdrawn=table.is_withdrawn(c, now))
            table.keep(c.record_id, record, after)
        return claimed

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        table = self._table
        renewals: list[Renewal] = []
        with table.lock:
            now = table.now()
            for lease in c.leases:
                record = table.records.get(lease.record_id)
                renewal, after = decisions.renew(record, lease, now)
                table.keep(lease.record_id, record, after)
                renewals.append(renewal)
        return renewals

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            saved, after = decisions.save_stage(record, c, table.now())
            table.keep(c.lease.record_id, record, after)
        return saved

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``. It succeeds even if the table is full."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            completed, after = decisions.complete(record, c, table.now())
            table.keep(c.lease.record_id, record, after)
        return completed

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            _, after = decisions.fail(record, c, table.now())
            table.keep(c.lease.record_id, record, after)

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            _, after = decisions.release(record, c, table.now())
            table.keep(c.lease.record_id, record, after)

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        table = self._table
        with table.lock:
            now = table.now()
            record = table.records.get(c.claim.record_id)
            _, after = decisions.withdraw(record, c, now)
            table.keep(c.claim.record_id, record, after)
            table.withdraw(c.claim, now)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        with self._table.lock:
            return self._table.live(c.record_id)

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""
        with self._table.lock:
            return self._table.forget(record_id)

    def free(self, c: Free, /) -> Freed:
        """See ``Backend.free``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.record_id)
            freed, after = decisions.free(record, c, table.now())
            table.keep(c.record_id, record, after)
        return freed

    def now(self) -> float:
        """See ``Backend.now``."""
        return self._table.now()

    def ids(self, prefix: bytes = b"") -> Iterator[bytes]:
        """See ``Backend.ids``."""
        with self._table.lock:
            found = [key for key in self._table.records if key.startswith(prefix)]
        for start in range(0, len(found), _SCAN_BATCH):
            with self._table.lock:
                batch = [key for key in found[start : start + _SCAN_BATCH] if self._table.live(key) is not None]
            yield from batch

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        with self._table.lock:
            record_ids = list(self._table.records)
        for start in range(0, len(record_ids), _SCAN_BATCH):
            with self._table.lock:
                batch = [self._table.live(key) for key in record_ids[start : start + _SCAN_BATCH]]
            yield from (record for record in batch if record is not None)

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        table = self._table
        with table.lock:
            now = table.now()
            purged = table.purge(limit, now)
            return purged + table.reservations.purge(limit - purged, now)

    def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``. Raises ``BackendUnavailable`` while all callers have ``max_records`` together."""
        with self._table.lock:
            return self._table.reservations.reserve(c, self._table.now())

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        with self._table.lock:
            self._table.reservations.unreserve(c.scope_id, c.record_id)

    def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``; woken by the verb that ends the attempt."""
        ended = threading.Event()
        if self._table.enter(c.record_id, ended):
            try:
                ended.wait(c.seconds)
            finally:
                self._table.leave(c.record_id, ended)

    def to_async(self) -> AsyncMemoryBackend:
        """The async front over the same table."""
        return self._async


class AsyncMemoryBackend(AsyncBackend):
    """The async front: the same calls on the same table, without a thread, since none of them blocks.

    Takes ``max_records``, ``max_bytes`` and ``clock`` as ``MemoryBackend`` does. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        *,
        max_records: int = _MAX_RECORDS,
        max_bytes: int = _MAX_BYTES,
        clock: Callable[[], float] | None = None,
        over: MemoryBackend | None = None,
    ) -> None:
        if over is None:
            over = MemoryBackend(max_records=max_records, max_bytes=max_bytes, clock=clock)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other front
        self._sync = over

    def __repr__(self) -> str:
        return f"Async{self._sync!r}"

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""
        return self._sync.claim(c)

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        return self._sync.renew(c)

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return self._sync.save_stage(c)

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return self._sync.complete(c)

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self._sync.fail(c)

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self._sync.release(c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self._sync.withdraw(c)

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return self._sync.get(c)

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""
        return self._sync.delete(record_id)

    async def scan(self) -> AsyncIterator[Record]:
        """See ``Backend.scan``."""
        for record in self._sync.scan():
            yield record

    async def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        return self._sync.purge(limit)

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``."""
        return self._sync.reserve(c)

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self._sync.unreserve(c)

    async def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``."""
        table = self._sync._table  # pyright: ignore[reportPrivateUsage]  # its other front
        ended = loops.signal()
        if table.enter(c.record_id, ended):
            try:
                await ended.wait(c.seconds)
            finally:
                table.leave(c.record_id, ended)

    def to_sync(self) -> MemoryBackend:
        """The sync front over the same table."""
        return self._sync
