"""The SQLite backend: works across the processes of one machine, and is the default for embedded use.

What only reads (a replay, a 409, a 422) is one SELECT and takes no lock. What writes reads again inside a write
transaction, where ``open_idempotency.decisions`` decides.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from open_idempotency import decisions
from open_idempotency.backend import (
    Backend,
    Claim,
    ClaimAnswer,
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
    ReserveAnswer,
    SaveStage,
    StageSaved,
    Unreserve,
)
from open_idempotency.backends import urls
from open_idempotency.backends.sqlite import rows, statements
from open_idempotency.backends.sqlite.connections import Connections
from open_idempotency.backends.sqlite.location import database_path
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.exceptions import ConfigurationError, RecordUnreadable

_PURGED_PER_CLAIM = 4
_BATCH = 100
_LARGEST = 2**63 - 1
_SYNCHRONOUS = ("full", "normal")
_OPTIONS = {"timeout": urls.seconds, "synchronous": urls.choice(*_SYNCHRONOUS)}


class SqliteBackend(Backend):
    """The blocking colour, on the database file at ``path``, which is created; its directory must exist.

    ``timeout``: seconds to wait for another writer. ``synchronous``: ``"full"``, where an acknowledged write
    survives a power cut, or ``"normal"``, where it survives a crash of the process. ``clock``: seconds, for tests.
    Raises ``ConfigurationError``. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        path: str,
        *,
        timeout: float = 2.0,
        synchronous: str = "full",
        clock: Callable[[], float] | None = None,
    ) -> None:
        if synchronous not in _SYNCHRONOUS:
            raise ConfigurationError(f"synchronous: {synchronous!r} is none of {', '.join(_SYNCHRONOUS)}")
        try:
            urls.positive(timeout)
        except ValueError as error:
            raise ConfigurationError(f"timeout: {error}") from None
        self._path = database_path(path)
        self._now = clock or time.time
        self._connections = Connections(self._path, timeout, synchronous)
        # The turn among this process's threads, the opening of a connection, the turn among processes.
        self.call_timeout = 3 * timeout
        self._async = AsyncSqliteBackend(self._path, over=self)

    @classmethod
    def from_url(cls, url: str, *, clock: Callable[[], float] | None = None) -> SqliteBackend:
        """``sqlite:///relative.db``, ``sqlite:////absolute.db``, with ``timeout`` and ``synchronous``."""
        parts = urls.split(url)
        if parts.netloc:
            raise ConfigurationError(
                "backend: sqlite:// takes no host; write sqlite:///relative.db or sqlite:////absolute.db"
            )
        return cls(urls.path(parts), clock=clock, **urls.options(parts, _OPTIONS))

    def __repr__(self) -> str:
        return f"SqliteBackend({self._path!r})"

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        with self._connections.reading() as connection:
            record = self._find(connection, c)
            if record is not None:
                answer, kept = decisions.claim(record, c, self._now())
                if kept is record:
                    return answer
        with self._connections.writing() as connection:
            return self._claim(connection, c)

    def _claim(self, connection: sqlite3.Connection, c: Claim) -> ClaimAnswer:
        record = self._find(connection, c)
        now = self._now()
        if record is not None and record.expires_at > now:
            record = rows.with_stages(record, connection.execute(statements.READ_STAGES, (c.record_id,)))
        answer, kept = decisions.claim(record, c, now)
        if kept is not None and kept is not record:
            if not kept.stages:  # also where somebody deleted the record by hand
                connection.execute(statements.DELETE_STAGES, (c.record_id,))
            connection.execute(statements.WRITE, rows.row_of(kept))
            _purge(connection, now, _PURGED_PER_CLAIM)
        return answer

    @staticmethod
    def _find(connection: sqlite3.Connection, c: Claim) -> Record | None:
        return _read(connection, c.record_id, statements.READ_FOR_CLAIM, c.fingerprint)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; a record that cannot be read is LOST, so that the others are renewed."""
        if not c.leases:
            return []
        with self._connections.writing() as connection:
            now = self._now()
            return [_renew(connection, lease, now) for lease in c.leases]

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        record_id = c.lease.record_id
        key = rows.stage_key(record_id, c.stage)
        with self._connections.writing() as connection:
            record, now = _read(connection, record_id), self._now()
            if record is not None and record.expires_at > now:
                record = rows.with_stages(record, connection.execute(statements.READ_STAGE, key))
            answer, kept = decisions.save_stage(record, c, now)
            if kept is not record:
                if answer.recreated:
                    connection.execute(statements.DELETE_STAGES, (record_id,))
                connection.execute(statements.WRITE, rows.row_of(kept))
                connection.execute(statements.ADD_STAGE, (*key, c.stage.frame))
            return answer

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        with self._connections.writing() as connection:
            record = _read(connection, c.lease.record_id)
            answer, kept = decisions.complete(record, c, self._now())
            if answer.recreated and record is not None:
                connection.execute(statements.DELETE_STAGES, (c.lease.record_id,))
            _keep(connection, record, kept)
            return answer

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        with self._connections.writing() as connection:
            record = _read(connection, c.lease.record_id)
            _, kept = decisions.fail(record, c, self._now())
            _keep(connection, record, kept)

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        record_id = c.lease.record_id
        with self._connections.writing() as connection:
            record = _read(connection, record_id)
            if record is not None:
                record = rows.with_stages(record, connection.execute(statements.HAS_STAGES, (record_id,)))
            _, kept = decisions.release(record, c, self._now())
            _keep(connection, record, kept)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        with self._connections.reading() as connection:
            # Both reads see one state of the database.
            connection.execute("BEGIN")
            try:
                return self._get(connection, c.record_id)
            finally:
                connection.execute(statements.COMMIT)

    def _get(self, connection: sqlite3.Connection, record_id: bytes) -> Record | None:
        record = _read(connection, record_id, statements.READ_WHOLE)
        if record is None or record.expires_at <= self._now():
            return None
        return rows.with_stages(record, connection.execute(statements.READ_STAGES, (record_id,)))

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes a record that cannot be read as well."""
        with self._connections.writing() as connection:
            row = connection.execute(statements.READ_HEADER, (record_id,)).fetchone()
            _delete(connection, record_id)
        return row is not None and _is_live(record_id, row, self._now())

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        last = b""
        while True:
            with self._connections.reading() as connection:
                found = connection.execute(statements.SCAN, (last, self._now(), _BATCH)).fetchall()
            for (record_id,) in found:
                record = self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < _BATCH:
                return
            last = found[-1][0]

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        purged = 0
        while purged < limit:
            with self._connections.writing() as connection:
                now, most = self._now(), min(_BATCH, limit - purged)
                batch = _purge(connection, now, most)
                batch += connection.execute(statements.PURGE_RESERVATIONS, (now, most - batch)).rowcount
            purged += batch
            if batch < _BATCH:
                break
        return purged

    def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``; a key that counts already and a caller over its quota only read, mostly."""
        with self._connections.reading() as connection:
            answer, end = _reservation(connection, c, self._now())
        if end is None:
            return answer
        with self._connections.writing() as connection:
            now = self._now()
            answer, end = _reservation(connection, c, now)
            if end is not None:
                connection.execute(statements.WRITE_RESERVATION, (c.scope_id, c.record_id, end))
                connection.execute(statements.PURGE_RESERVATIONS, (now, _PURGED_PER_CLAIM))
        return answer

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        with self._connections.writing() as connection:
            connection.execute(statements.DELETE_RESERVATION, (c.scope_id, c.record_id))

    def to_async(self) -> AsyncSqliteBackend:
        """The asynchronous colour on the same file."""
        return self._async

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._connections.close()


class AsyncSqliteBackend(ThreadedBackend):
    """The asynchronous colour: ``SqliteBackend`` in threads; takes the same arguments. Since 0.1."""

    def __init__(self, path: str, *, over: SqliteBackend | None = None, **options: Any) -> None:
        if over is None:
            over = SqliteBackend(path, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other colour
        super().__init__(over)


def _read(
    connection: sqlite3.Connection, record_id: bytes, statement: str = statements.READ_HEADER, *more: bytes
) -> Record | None:
    row = connection.execute(statement, (record_id, *more)).fetchone()
    return None if row is None else rows.record_of(record_id, row)


def _keep(connection: sqlite3.Connection, before: Record | None, after: Record | None) -> None:
    if after is before:
        return
    if after is None:
        assert before is not None
        _delete(connection, before.record_id)
    else:
        connection.execute(statements.WRITE, rows.row_of(after))


def _delete(connection: sqlite3.Connection, record_id: bytes) -> None:
    connection.execute(statements.DELETE, (record_id,))
    connection.execute(statements.DELETE_STAGES, (record_id,))


def _renew(connection: sqlite3.Connection, lease: Lease, now: float) -> Renewal:
    try:
        record = _read(connection, lease.record_id)
    except RecordUnreadable:
        return Renewal.LOST
    answer, kept = decisions.renew(record, lease, now)
    if kept is not None and kept is not record:
        connection.execute(statements.EXTEND, (lease.record_id, kept.lease_end, kept.expires_at))
    return answer


def _purge(connection: sqlite3.Connection, now: float, limit: int) -> int:
    expired = connection.execute(statements.FIND_EXPIRED, (now, limit)).fetchall()
    for (record_id,) in expired:
        _delete(connection, record_id)
    return len(expired)


def _reservation(connection: sqlite3.Connection, c: Reserve, now: float) -> tuple[ReserveAnswer, float | None]:
    found = connection.execute(statements.READ_RESERVATION, (c.scope_id, c.record_id)).fetchone()
    end = None if found is None else found[0]
    if not isinstance(end, float | None):
        raise RecordUnreadable(f"the reservation of record {c.record_id[:6].hex()} is corrupt")
    first = None
    if end is None or end <= now:
        others = min(c.limit - 1, _LARGEST)
        first = connection.execute(statements.FIRST_OF_MORE_THAN, (c.scope_id, now, others)).fetchone()
    # How many there are does not matter, but whether they are as many as the limit.
    taken, earliest = (0, now) if first is None else (c.limit, first[0])
    return decisions.reserve(end, taken, earliest, c, now)


def _is_live(record_id: bytes, row: Sequence[Any], now: float) -> bool:
    try:
        return rows.record_of(record_id, row).expires_at > now
    except RecordUnreadable:
        return True
