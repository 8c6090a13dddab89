"""The Django backend: records in a database of the project itself, through connections of Django's making.

``open_idempotency.decisions`` decides, inside a transaction that has locked the record's row. What only reads (a
replay, a 409, a 422) is one SELECT and locks nothing. A row that is not there cannot be locked, so a new record is
inserted first, and its token is taken from the clock after that: nobody can have had a later one (B-02).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from open_idempotency import decisions
from open_idempotency.backend import (
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
    Unreserve,
    Withdraw,
)
from open_idempotency.backends import urls
from open_idempotency.backends.django_orm import operating, places, reserving, rows, schema, statements
from open_idempotency.backends.django_orm.connections import Connections
from open_idempotency.backends.django_orm.failures import Overtaken
from open_idempotency.backends.django_orm.records import Records
from open_idempotency.backends.django_orm.sessions import Session
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.exceptions import ConfigurationError, RecordUnreadable

T = TypeVar("T")

_PURGED_PER_CLAIM = 4
_BATCH = 100
_RENEWED_AT_ONCE = 500
_OPTIONS = {"timeout": urls.seconds, "max_connections": urls.count}


class DjangoBackend(Backend):
    """The blocking colour, on the database ``alias`` of ``DATABASES``; ``"open_idempotency.django"`` makes its tables.

    ``timeout``: seconds for each wait: for a connection, a lock, an answer. ``max_connections``: for each process,
    beside those of the application's threads. ``clock``: seconds, for tests; without it the database's clock decides.
    Raises ``ConfigurationError``. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        alias: str = "default",
        *,
        timeout: float = 2.0,
        max_connections: int = 10,
        clock: Callable[[], float] | None = None,
    ) -> None:
        try:
            urls.positive(timeout)
        except ValueError as error:
            raise ConfigurationError(f"timeout: {error}") from None
        if max_connections < 1:
            raise ConfigurationError(f"max_connections: must be at least 1, got {max_connections}")
        dialect = places.dialect_of(alias)
        #: the database's name in ``DATABASES``
        self.alias = alias
        self._timeout = timeout
        self._connections = Connections(alias, dialect, timeout, max_connections)
        self._records = Records(dialect, clock or (None if dialect.clock else time.time))
        # Once more than one try: a call that was overtaken is made again.
        self.call_timeout = timeout + dialect.slowest(timeout)
        self._async = AsyncDjangoBackend(over=self)

    @classmethod
    def from_url(cls, url: str, *, clock: Callable[[], float] | None = None) -> DjangoBackend:
        """``django://alias``, with ``timeout`` and ``max_connections``."""
        parts = urls.split(url)
        if not parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError("backend: django:// takes an alias of DATABASES; write django://default")
        return cls(parts.netloc, clock=clock, **urls.options(parts, _OPTIONS))

    def __repr__(self) -> str:
        return f"DjangoBackend({self.alias!r})"

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return self._repeat(partial(self._claim, c))

    def _claim(self, c: Claim) -> ClaimAnswer:
        record, now = self._connections.read(lambda session: self._records.find_for_claim(session, c))
        answer, kept = decisions.claim(record, c, now)
        if kept is record or kept is None:
            return answer
        if record is None:
            return self._connections.write(lambda session: self._insert(session, c, kept))
        return self._connections.write(lambda session: self._take(session, c))

    def _insert(self, session: Session, c: Claim, draft: Record) -> ClaimAnswer:
        """Claim a record that is not there; whoever else is doing so waits for this, and is then overtaken."""
        session.run(statements.INSERT, *rows.row_of(draft))
        now, withdrawn = self._records.now_and_withdrawn(session, c)
        answer, kept = decisions.claim(None, c, now, withdrawn=withdrawn)
        self._records.keep(session, draft, kept)
        operating.purge_in_passing(session, now, _PURGED_PER_CLAIM)
        return answer

    def _take(self, session: Session, c: Claim) -> ClaimAnswer:
        """Claim a record that is there."""
        record, _ = self._records.lock(session, c.record_id, statements.READ_FOR_CLAIM, c.fingerprint)
        if record is None:
            raise Overtaken("the record was deleted while it was being claimed")
        now, withdrawn = self._records.now_and_withdrawn(session, c)
        if record.expires_at > now:
            record = rows.with_stages(record, session.rows(statements.READ_STAGES, c.record_id))
        answer, kept = decisions.claim(record, c, now, withdrawn=withdrawn)
        if kept is not None and kept is not record:
            if not kept.stages:
                self._records.forget_stages(session, [c.record_id])
            session.run(statements.UPDATE, *rows.row_of(kept))
            operating.purge_in_passing(session, now, _PURGED_PER_CLAIM)
        return answer

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; a record that cannot be read is LOST. More than 500 leases take several calls."""
        answers: list[Renewal] = []
        for start in range(0, len(c.leases), _RENEWED_AT_ONCE):
            batch = c.leases[start : start + _RENEWED_AT_ONCE]
            answers += self._write(partial(self._records.renew, batch))
        return answers

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return self._write(partial(self._save_stage, c))

    def _save_stage(self, c: SaveStage, session: Session) -> StageSaved:
        record_id, stage = c.lease.record_id, rows.stage_row(c.lease.record_id, c.stage)
        record, now = self._records.lock(session, record_id)
        found = record
        if record is not None and record.expires_at > now:
            record = rows.with_stages(record, session.rows(statements.READ_STAGE, *stage[:2]))
        answer, kept = decisions.save_stage(record, c, now)
        if kept is not record:
            if answer.recreated:
                self._records.forget_stages(session, [record_id])
            self._records.keep(session, found, kept)
            session.run(statements.ADD_STAGE, *stage)
        return answer

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return self._write(partial(self._complete, c))

    def _complete(self, c: Complete, session: Session) -> Completed:
        record, now = self._records.lock(session, c.lease.record_id)
        answer, kept = decisions.complete(record, c, now)
        if answer.recreated and record is not None:
            self._records.forget_stages(session, [c.lease.record_id])
        self._records.keep(session, record, kept)
        return answer

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self._write(partial(self._fail, c))

    def _fail(self, c: Fail, session: Session) -> None:
        record, now = self._records.lock(session, c.lease.record_id)
        self._records.keep(session, record, decisions.fail(record, c, now)[1])

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self._write(partial(self._release, c))

    def _release(self, c: Release, session: Session) -> None:
        found, now = self._records.lock(session, c.lease.record_id)
        record = found
        if record is not None:
            record = rows.with_stages(record, session.rows(statements.HAS_STAGES, c.lease.record_id))
        _, kept = decisions.release(record, c, now)
        if kept is not record:
            self._records.keep(session, found, kept)

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self._write(partial(self._withdraw, c))

    def _withdraw(self, c: Withdraw, session: Session) -> None:
        record_id, scope_id = c.claim.record_id, decisions.withdrawn_id(c.claim.owner)
        found, now = self._records.lock(session, record_id)
        if found is None:
            # The claim may be inserting its row: this waits for it, and makes it wait for this.
            _, draft = decisions.claim(None, c.claim, now)
            self._records.keep(session, None, draft)
            self._records.forget(session, [record_id])
        else:
            record = rows.with_stages(found, session.rows(statements.HAS_STAGES, record_id))
            _, kept = decisions.withdraw(record, c, now)
            if kept is not record:
                self._records.keep(session, found, kept)
        end = now + decisions.WITHDRAWN_FOR
        if not session.run(statements.UPDATE_RESERVATION, end, scope_id, record_id):
            session.run(statements.INSERT_RESERVATION, end, scope_id, record_id)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return self._connections.read_together(lambda session: self._records.get(session, c.record_id))

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes a record that cannot be read as well."""
        return self._write(partial(self._delete, record_id))

    def _delete(self, record_id: bytes, session: Session) -> bool:
        try:
            record, now = self._records.lock(session, record_id)
            live = record is not None and record.expires_at > now
        except RecordUnreadable:
            live = True
        self._records.forget(session, [record_id])
        return live

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        last = b""
        while True:
            found = self._connections.read_together(partial(self._records.ids_after, last, _BATCH))
            for record_id in found:
                record = self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < _BATCH:
                return
            last = found[-1]

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        purged = 0
        while purged < limit:
            most = min(_BATCH, limit - purged)
            batch = self._write(partial(operating.purge, self._records, most))
            purged += batch
            if batch < _BATCH:
                break
        return purged

    def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``; a key that counts already and a caller over its quota only read, mostly."""
        answer, end = self._connections.read_together(partial(reserving.look, self._records, c))
        if end is None:
            return answer
        return self._write(partial(reserving.reserve, self._records, c))

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self._write(lambda session: session.run(statements.DELETE_RESERVATION, c.scope_id, c.record_id))

    def now(self) -> float:
        """Seconds since 1970 on the clock that decides; for operators."""
        return self._connections.read(self._records.now)

    def to_async(self) -> AsyncDjangoBackend:
        """The asynchronous colour on the same database."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """Apply what migrations of ``open_idempotency.django`` the database has not had; their names."""
        return schema.migrate(self.alias)

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._connections.close()

    def _write(self, work: Callable[[Session], T]) -> T:
        return self._repeat(lambda: self._connections.write(work))

    def _repeat(self, verb: Callable[[], T]) -> T:
        """Do it again while others are first, as long as there is time."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return verb()
            except Overtaken:
                if time.monotonic() >= deadline:
                    raise


class AsyncDjangoBackend(ThreadedBackend):
    """The asynchronous colour: ``DjangoBackend`` in threads; takes the same arguments. Since 0.1.

    Django's connections block. Those of this backend belong to no thread, so none is left behind in one.
    """

    def __init__(self, alias: str = "default", *, over: DjangoBackend | None = None, **options: Any) -> None:
        if over is None:
            over = DjangoBackend(alias, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other colour
        super().__init__(over)
