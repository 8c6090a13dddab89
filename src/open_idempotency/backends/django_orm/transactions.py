"""One call on a connection of Django's making: the ``Table`` that the shared verbs read and write.

Statements are SQL text. What locks rows is appended here, since SQLite has no such clause.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import Error, OperationalError

from open_idempotency.backend import Record, Stage
from open_idempotency.backends._shared import sql_verbs
from open_idempotency.backends._shared.sql_verbs import Step, Table
from open_idempotency.backends.django_orm import dialects
from open_idempotency.backends.django_orm.dialects import Dialect


class Statements:
    """The statements that differ with the database. ``clock``: seconds; None where the database's own clock decides."""

    def __init__(self, dialect: Dialect, clock: Callable[[], float] | None) -> None:
        #: the time, if the database's clock is not read
        self.clock = clock or (None if dialect.clock else time.time)
        expression = "0" if self.clock is not None or dialect.clock is None else dialect.clock

        def made(statement: str) -> str:
            return dialects.with_times(statement, expression, dialect.sent)

        self.now = made(dialects.NOW)
        self.now_and_reservation = made(dialects.NOW_AND_RESERVATION)
        self.first_of_more_than = made(dialects.FIRST_OF_MORE_THAN)
        self.peek = made(dialects.PEEK)
        self.read_whole = made(dialects.READ_WHOLE)
        self.scan_headers = made(dialects.SCAN_HEADERS)
        lock = dialect.lock
        self.lock = made(dialects.READ_HEADER) + lock
        self.lock_for_claim = made(dialects.READ_FOR_CLAIM) + lock
        self.lock_many = made(dialects.READ_MANY) + lock
        self.lock_scope = dialects.READ_SCOPE + lock


class Transaction:
    """See ``sql_verbs.Table``. It ends at ``deadline``, in seconds on the monotonic clock.

    ``begin``: the statements that begin it, None if each statement is its own transaction. ``sound``: whether the
    connection can be used afterwards. ``late``: whether the deadline has passed.
    """

    def __init__(
        self,
        connection: Any,
        dialect: Dialect,
        sql: Statements,
        deadline: float,
        begin: Sequence[str] | None,
    ) -> None:
        self.sound = True
        self._dialect = dialect
        self._connection = connection
        self._sql = sql
        self._deadline = deadline
        self._begin = begin
        self._cursor: Any = None
        self.began = 0.0

    @property
    def late(self) -> bool:
        """See above."""
        return time.monotonic() >= self._deadline

    @property
    def can_skip_locked(self) -> bool:
        """See ``Table``; where one transaction writes at a time, nothing else has locked a row."""
        return self._dialect.one_writer or self._skips_locked()

    def _skips_locked(self) -> bool:
        """Whether this very server can leave out rows that are locked."""
        return bool(self._connection.features.has_select_for_update_skip_locked)

    def carry_out(self, step: Step) -> Any:
        """Do the work of a step. Raises what it raises, and Django's errors."""
        table: Table = self
        with self._connection.cursor() as self._cursor:
            if self._begin is None:
                return step.work(table, *step.arguments)
            try:
                for statement in self._begin:
                    self._run(statement)
                if step.mode == "write":
                    # Read after the beginning, which waits for the lock if one transaction writes at a time (B-02).
                    self.began = (self._sql.clock or time.time)()
                found = step.work(table, *step.arguments)
                self._cursor.execute("COMMIT")
            except Exception:
                self._roll_back()
                raise
            return found

    def now(self) -> float:
        """See ``Table``."""
        sql = self._sql
        if sql.clock is None:
            return self._time(self._rows(sql.now)[0][0])
        # If the database has one writer at a time, the time of the transaction's beginning decides.
        return self.began if self.began and self._dialect.one_writer else sql.clock()

    def peek(self, record_id: bytes, fingerprint: bytes) -> tuple[Record, float] | None:
        """See ``Table``."""
        row = self._row(self._sql.peek, fingerprint, record_id)
        if row is None:
            return None
        clock = self._sql.clock
        return self._record(record_id, row[1:]), self._time(row[0]) if clock is None else clock()

    def lock(self, record_id: bytes) -> Record | None:
        """See ``Table``."""
        row = self._row(self._sql.lock, record_id)
        return None if row is None else self._record(record_id, row)

    def lock_for_claim(self, record_id: bytes, fingerprint: bytes) -> Record | None:
        """See ``Table``."""
        row = self._row(self._sql.lock_for_claim, fingerprint, record_id)
        return None if row is None else self._record(record_id, row)

    def lock_many(self, record_ids: Sequence[bytes]) -> Mapping[bytes, Sequence[Any]]:
        """See ``Table``."""
        statement = dialects.for_many(self._sql.lock_many, len(record_ids))
        return {bytes(row[0]): self._in_seconds(row[1:]) for row in self._rows(statement, *record_ids)}

    def with_stages(self, record: Record) -> Record:
        """See ``Table``."""
        return sql_verbs.with_stages(record, self._rows(dialects.READ_STAGES, record.record_id))

    def with_stage(self, record: Record, stage: Stage) -> Record:
        """See ``Table``."""
        found = self._rows(dialects.READ_STAGE, record.record_id, _stage_id(stage))
        return sql_verbs.with_stages(record, found)

    def with_first_stage(self, record: Record) -> Record:
        """See ``Table``."""
        return sql_verbs.with_stages(record, self._rows(dialects.READ_FIRST_STAGE, record.record_id))

    def get(self, record_id: bytes) -> Record | None:
        """See ``Table``."""
        row = self._row(self._sql.read_whole, record_id)
        if row is None:
            return None
        record = self._record(record_id, row)
        return None if record.expires_at <= self.now() else self.with_stages(record)

    def ids_after(self, record_id: bytes, most: int) -> Sequence[bytes]:
        """See ``Table``."""
        return [bytes(row[0]) for row in self._rows(dialects.SCAN, record_id, self.now(), most)]

    def headers_after(self, record_id: bytes, most: int) -> Sequence[Record]:
        """See ``Table``."""
        rows = self._rows(self._sql.scan_headers, record_id, self.now(), most)
        return [self._record(bytes(row[0]), row[1:]) for row in rows]

    def insert(self, record: Record) -> None:
        """See ``Table``."""
        self._check(record.response)
        self._run(dialects.INSERT, *_values_of(record))

    def update(self, record: Record) -> None:
        """See ``Table``."""
        self._check(record.response)
        self._run(dialects.UPDATE, *_values_of(record))

    def extend(self, record_ids: Sequence[bytes], lease_end: float) -> None:
        """See ``Table``."""
        statement = dialects.for_many(dialects.EXTEND, len(record_ids))
        self._run(statement, lease_end, lease_end, *record_ids)

    def delete(self, record_ids: Sequence[bytes]) -> None:
        """See ``Table``."""
        self._run(dialects.for_many(dialects.DELETE, len(record_ids)), *record_ids)
        self._run(dialects.for_many(dialects.DELETE_STAGES, len(record_ids)), *record_ids)

    def add_stage(self, record_id: bytes, stage: Stage) -> None:
        """See ``Table``."""
        self._check(stage.frame)
        name, key = sql_verbs.stage_names(stage)
        self._run(dialects.ADD_STAGE, record_id, _stage_id(stage), name, key, stage.frame)

    def delete_stages(self, record_id: bytes) -> None:
        """See ``Table``."""
        self._run(dialects.for_many(dialects.DELETE_STAGES, 1), record_id)

    def now_and_reservation(self, scope_id: bytes, record_id: bytes) -> tuple[float, float | None]:
        """See ``Table``."""
        ((now, end),) = self._rows(self._sql.now_and_reservation, scope_id, record_id)
        return self._time(now) if self._sql.clock is None else self.now(), self._end(record_id, end)

    def lock_scope(self, scope_id: bytes) -> None:
        """See ``Table``."""
        if self._row(self._sql.lock_scope, scope_id) is None:
            self._run(dialects.INSERT_SCOPE, scope_id, 0.0)

    def first_end(self, scope_id: bytes, now: float, others: int) -> float | None:
        """See ``Table``."""
        first = self._row(self._sql.first_of_more_than, scope_id, now, scope_id, now, others)
        return None if first is None else self._end(scope_id, first[0])

    def put_reservation(self, scope_id: bytes, record_id: bytes, end: float, is_there: bool) -> None:
        """See ``Table``."""
        statement = dialects.UPDATE_RESERVATION if is_there else dialects.INSERT_RESERVATION
        self._run(statement, end, scope_id, record_id)

    def extend_scope(self, scope_id: bytes, end: float) -> None:
        """See ``Table``."""
        self._run(dialects.EXTEND_SCOPE, end, scope_id, end)

    def delete_reservation(self, scope_id: bytes, record_id: bytes) -> None:
        """See ``Table``."""
        self._run(dialects.DELETE_RESERVATION, scope_id, record_id)

    def purge_records(self, now: float, most: int) -> int:
        """See ``Table``."""
        expired = [bytes(record_id) for record_id in self._expired(dialects.FIND_EXPIRED, now, most)]
        if expired:
            self.delete(expired)
        return len(expired)

    def purge_reservations(self, now: float, most: int) -> int:
        """See ``Table``."""
        expired = self._expired(dialects.FIND_EXPIRED_RESERVATIONS, now, most)
        if expired:
            self._run(dialects.for_many(dialects.DELETE_RESERVATIONS, len(expired)), *expired)
        return len(expired)

    def purge_scopes(self, now: float, most: int) -> None:
        """See ``Table``."""
        expired = [bytes(scope_id) for scope_id in self._expired(dialects.FIND_EXPIRED_SCOPES, now, most)]
        if expired:
            self._run(dialects.for_many(dialects.DELETE_SCOPES, len(expired)), *expired)

    def _expired(self, statement: str, now: float, most: int) -> list[Any]:
        """The ids in expired rows, which are locked. Rows that another transaction has locked may be left out."""
        lock = self._dialect.lock
        if lock and self._skips_locked():
            lock += " SKIP LOCKED"
        return [row[0] for row in self._rows(statement + lock, now, most)]

    def _time(self, sent: Any) -> float:
        """Seconds, as the database has sent them."""
        seconds = self._dialect.seconds
        return float(sent if seconds is None else seconds(sent))

    def _end(self, record_id: bytes, sent: Any) -> float | None:
        seconds = self._dialect.seconds
        return sql_verbs.end_of(record_id, sent if seconds is None else seconds(sent))

    def _record(self, record_id: bytes, row: Sequence[Any]) -> Record:
        return sql_verbs.record_of(record_id, self._in_seconds(row))

    def _in_seconds(self, row: Sequence[Any]) -> Sequence[Any]:
        """A row of ``HEADER`` and the response with its times in seconds."""
        seconds = self._dialect.seconds
        if seconds is None:
            return row
        times = zip(sql_verbs.HEADER, row, strict=False)
        return (*(seconds(value) if name in sql_verbs.SECONDS else value for name, value in times), row[-1])

    def _check(self, value: bytes | None) -> None:
        if self._dialect.largest is not None:
            self._dialect.largest.check(value, self._connection.largest)

    def _rows(self, statement: str, *parameters: object) -> Sequence[Sequence[Any]]:
        self._run(statement, *parameters)
        rows: Sequence[Sequence[Any]] = self._cursor.fetchall()
        return rows

    def _row(self, statement: str, *parameters: object) -> Sequence[Any] | None:
        """The first row, or None."""
        self._run(statement, *parameters)
        rows = self._cursor.fetchall()
        return rows[0] if rows else None

    def _run(self, statement: str, *values: object) -> None:
        parameters: Sequence[object] = values
        if time.monotonic() >= self._deadline:
            raise OperationalError("the call took too long")
        if parameters and self._dialect.is_mysql:
            statement = dialects.with_marked_bytes(statement, tuple(isinstance(value, bytes) for value in parameters))
            parameters = [sql_verbs.LARGEST if value == math.inf else value for value in parameters]
        self._cursor.execute(statement, parameters or None)

    def _roll_back(self) -> None:
        try:
            self._cursor.execute("ROLLBACK")
        except Error:
            self.sound = False


def _values_of(record: Record) -> Sequence[Any]:
    """The parameters that write a record, in the order of ``INSERT`` and ``UPDATE``."""
    values = sql_verbs.values_of(record)
    return [values[name] for name in dialects.WRITTEN]


def _stage_id(stage: Stage) -> bytes:
    """The digest that identifies a stage of a record; name and key may be too long for an index."""
    name, key = sql_verbs.stage_names(stage)
    return hashlib.sha256(struct.pack("!I", len(name)) + name + key).digest()
