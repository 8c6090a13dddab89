"""Records in this process's memory: for tests, examples and applications of one process.

One table serves both colours. It is bounded: when it is full of live records a new claim is refused, since an
evicted record would let its request run twice. A forked child goes on with a copy of its own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace

from open_idempotency import decisions
from open_idempotency._perform import loops
from open_idempotency._perform.processes import PerProcess
from open_idempotency.backend import (
    AsyncBackend,
    Backend,
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
    Reserve,
    ReserveAnswer,
    SaveStage,
    StageSaved,
    Status,
    Unreserve,
    Wait,
)
from open_idempotency.backends import urls
from open_idempotency.backends.reservations import Reservations
from open_idempotency.backends.waiters import Waiter, Waiters
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError

_PURGED_PER_INSERT = 2
_SCAN_BATCH = 100


class _Table:
    """The records, in the order in which they were last looked at for purging."""

    def __init__(self, max_records: int, clock: Callable[[], float]) -> None:
        if max_records < 1:
            raise ConfigurationError(f"max_records: must be at least 1, got {max_records}")
        self.max_records = max_records
        self.now = clock
        self._locks = PerProcess(threading.Lock)
        # A child has none of the threads and tasks that wait in its parent.
        self._waiters = PerProcess(Waiters)
        self.records: OrderedDict[bytes, Record] = OrderedDict()
        self.reservations = Reservations(max_records)
        # No record expires before this moment, so a full table is not searched in vain.
        self._earliest = float("inf")

    @property
    def lock(self) -> threading.Lock:
        """This process's lock; an inherited one could be held for ever."""
        return self._locks.get()

    def keep(self, record_id: bytes, before: Record | None, after: Record | None) -> None:
        """Save what was decided. The lock is held."""
        if after is before:
            return
        if after is None or after.status is not Status.IN_PROGRESS:
            self._waiters.get().wake(record_id)
        if after is None:
            del self.records[record_id]
            return
        self.records[record_id] = after
        self._earliest = min(self._earliest, after.expires_at)
        if before is None:
            self._purge_some(after.claimed_at)

    def _purge_some(self, now: float) -> None:
        """Each new record looks at the two oldest, so expired ones never outnumber the live ones for long."""
        for _ in range(_PURGED_PER_INSERT):
            record_id = next(iter(self.records), None)
            if record_id is None:
                return
            if self.records[record_id].expires_at <= now:
                del self.records[record_id]
            else:
                self.records.move_to_end(record_id)

    def make_room(self, record_id: bytes, now: float) -> None:
        """Refuse a new record while the table is full of live ones. The lock is held."""
        if len(self.records) < self.max_records or record_id in self.records:
            return
        if self._earliest <= now:
            self.purge(len(self.records), now)
        if len(self.records) >= self.max_records:
            raise BackendUnavailable(f"memory backend is full: {self.max_records} live records")

    def purge(self, limit: int, now: float) -> int:
        """Delete expired records, at most ``limit``. The lock is held."""
        expired = [key for key, record in self.records.items() if record.expires_at <= now]
        for record_id in expired[: max(0, limit)]:
            del self.records[record_id]
        self._earliest = min((r.expires_at for r in self.records.values()), default=float("inf"))
        return min(max(0, limit), len(expired))

    def forget(self, record_id: bytes) -> bool:
        """Delete a record, for an operator; whether it was live. The lock is held."""
        there = self.live(record_id) is not None
        self.records.pop(record_id, None)
        self._waiters.get().wake(record_id)
        return there

    def enter(self, record_id: bytes, waiter: Waiter) -> bool:
        """Have it woken when the running attempt ends; false where none runs. Takes the lock."""
        with self.lock:
            record = self.records.get(record_id)
            running = record is not None and record.status is Status.IN_PROGRESS
            if running:
                self._waiters.get().add(record_id, waiter)
        return running

    def leave(self, record_id: bytes, waiter: Waiter) -> None:
        """It has stopped waiting. Takes the lock."""
        with self.lock:
            self._waiters.get().discard(record_id, waiter)

    def live(self, record_id: bytes) -> Record | None:
        """A copy of the record unless it expired. The lock is held."""
        record = self.records.get(record_id)
        return None if record is None or record.expires_at <= self.now() else replace(record)


class MemoryBackend(Backend):
    """The blocking colour. ``max_records``: how many live records it takes; ``clock``: seconds, for tests.

    Since 0.1.
    """

    quotas = True

    def __init__(self, *, max_records: int = 100_000, clock: Callable[[], float] | None = None) -> None:
        self._table = _Table(max_records, clock or time.time)
        self._async = AsyncMemoryBackend(over=self)

    @classmethod
    def from_url(cls, url: str, *, clock: Callable[[], float] | None = None) -> MemoryBackend:
        """``memory://`` or ``memory://?max_records=N``. Raises ``ConfigurationError``."""
        parts = urls.split(url)
        if parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError("backend: memory:// takes neither host nor path")
        return cls(clock=clock, **urls.options(parts, {"max_records": urls.count}))

    def __repr__(self) -> str:
        return f"MemoryBackend(max_records={self._table.max_records})"

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``. Raises ``BackendUnavailable`` while the table is full of live records."""
        table = self._table
        with table.lock:
            now = table.now()
            table.make_room(c.record_id, now)
            record = table.records.get(c.record_id)
            answer, kept = decisions.claim(record, c, now)
            table.keep(c.record_id, record, kept)
        return answer

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        table = self._table
        answers: list[Renewal] = []
        with table.lock:
            now = table.now()
            for lease in c.leases:
                record = table.records.get(lease.record_id)
                answer, kept = decisions.renew(record, lease, now)
                table.keep(lease.record_id, record, kept)
                answers.append(answer)
        return answers

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            answer, kept = decisions.save_stage(record, c, table.now())
            table.keep(c.lease.record_id, record, kept)
        return answer

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``; never refused for want of room."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            answer, kept = decisions.complete(record, c, table.now())
            table.keep(c.lease.record_id, record, kept)
        return answer

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            _, kept = decisions.fail(record, c, table.now())
            table.keep(c.lease.record_id, record, kept)

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            _, kept = decisions.release(record, c, table.now())
            table.keep(c.lease.record_id, record, kept)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        with self._table.lock:
            return self._table.live(c.record_id)

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""
        with self._table.lock:
            return self._table.forget(record_id)

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

    def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``. Raises ``BackendUnavailable`` while there are ``max_records`` of all callers."""
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
        """The asynchronous colour over the same table."""
        return self._async


class AsyncMemoryBackend(AsyncBackend):
    """The asynchronous colour: the same calls on the same table, without a thread, since none of them waits.

    Takes ``max_records`` and ``clock`` as ``MemoryBackend`` does. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        *,
        max_records: int = 100_000,
        clock: Callable[[], float] | None = None,
        over: MemoryBackend | None = None,
    ) -> None:
        if over is None:
            over = MemoryBackend(max_records=max_records, clock=clock)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other colour
        self._sync = over

    def __repr__(self) -> str:
        return f"Async{self._sync!r}"

    async def claim(self, c: Claim, /) -> ClaimAnswer:
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

    async def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``."""
        return self._sync.reserve(c)

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self._sync.unreserve(c)

    async def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``."""
        table = self._sync._table  # pyright: ignore[reportPrivateUsage]
        ended = loops.signal()
        if table.enter(c.record_id, ended):
            try:
                await ended.wait(c.seconds)
            finally:
                table.leave(c.record_id, ended)

    def to_sync(self) -> MemoryBackend:
        """The blocking colour over the same table."""
        return self._sync
