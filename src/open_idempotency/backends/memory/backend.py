"""The memory backend: the verbs on a table in this process's memory.

One table serves the sync and the async front. It is bounded, in records and in bytes: when it is full of live records a
new claim is refused, since an evicted record would let its request run twice. A forked child continues with a copy.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from open_idempotency import decisions
from open_idempotency._runtime import clocks, loops
from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency.backends._shared import urls
from open_idempotency.backends.memory.table import Table
from open_idempotency.exceptions import ConfigurationError

_MAX_RECORDS, _MAX_BYTES = 100_000, 256 * 1024 * 1024
_SCAN_BATCH = 100


class MemoryBackend(Backend):
    """The sync front.

    ``max_records``: how many live records it takes; ``max_bytes``: about how many bytes these may take. An attempt that
    runs when it is full is still recorded. ``clock``: seconds, for tests. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        *,
        max_records: int = _MAX_RECORDS,
        max_bytes: int = _MAX_BYTES,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._table = Table(max_records, max_bytes, clock or clocks.growing())
        self._async = AsyncMemoryBackend(over=self)

    @classmethod
    def from_url(cls, url: str, *, clock: Callable[[], float] | None = None) -> MemoryBackend:
        """``memory://``, ``memory://?max_records=N&max_bytes=N``. Raises ``ConfigurationError``."""
        parts = urls.split(url)
        if parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError("backend: memory:// takes neither host nor path")
        return cls(clock=clock, **urls.options(parts, {"max_records": urls.count, "max_bytes": urls.count}))

    def __repr__(self) -> str:
        return f"MemoryBackend(max_records={self._table.max_records})"

    def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``. Raises ``BackendUnavailable`` while the table is full of live records."""
        table = self._table
        with table.lock:
            now = table.now()
            table.make_room(c.record_id, now)
            record = table.records.get(c.record_id)
            claimed, kept = decisions.claim(record, c, now, withdrawn=table.is_withdrawn(c, now))
            table.keep(c.record_id, record, kept)
        return claimed

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        table = self._table
        renewals: list[Renewal] = []
        with table.lock:
            now = table.now()
            for lease in c.leases:
                record = table.records.get(lease.record_id)
                renewal, kept = decisions.renew(record, lease, now)
                table.keep(lease.record_id, record, kept)
                renewals.append(renewal)
        return renewals

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            saved, kept = decisions.save_stage(record, c, table.now())
            table.keep(c.lease.record_id, record, kept)
        return saved

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``; never refused for want of room."""
        table = self._table
        with table.lock:
            record = table.records.get(c.lease.record_id)
            completed, kept = decisions.complete(record, c, table.now())
            table.keep(c.lease.record_id, record, kept)
        return completed

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

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        table = self._table
        with table.lock:
            now = table.now()
            record = table.records.get(c.claim.record_id)
            _, kept = decisions.withdraw(record, c, now)
            table.keep(c.claim.record_id, record, kept)
            table.withdraw(c.claim, now)

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

    def reserve(self, c: Reserve, /) -> ReserveResult:
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
        """The async front over the same table."""
        return self._async


class AsyncMemoryBackend(AsyncBackend):
    """The async front: the same calls on the same table, without a thread, since none of them waits.

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
