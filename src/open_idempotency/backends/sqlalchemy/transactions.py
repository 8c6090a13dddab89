"""One transaction on a connection of SQLAlchemy's: the ``Table`` that the shared verbs read and write.

It is written against the sync connection, which an async connection lends to a function as well. So sync and async
engines run the same code.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable
from sqlalchemy.exc import OperationalError

from open_idempotency.backend import Record, Stage
from open_idempotency.backends._shared import sql_verbs
from open_idempotency.backends._shared.sql_verbs import Step, Table
from open_idempotency.backends.sqlalchemy import statements
from open_idempotency.backends.sqlalchemy.engines import LARGEST
from open_idempotency.backends.sqlalchemy.statements import Dialect, Statements, begin


@dataclass
class Settings:
    """The settings of all transactions of a backend. ``clock``: instead of the database's. ``timeout``: seconds."""

    dialect: Dialect
    timeout: float
    clock: Callable[[], float] | None
    statements: Statements = field(init=False)

    def __post_init__(self) -> None:
        self.statements = Statements(self.dialect, self.clock is not None, self.timeout)


def carry_out(connection: Connection, settings: Settings, step: Step) -> Any:
    """Carry out one step of a verb. A write is rolled back where it raises."""
    if step.mode != "write":
        table: Table = Transaction(connection, settings)
        return step.work(table, *step.arguments)
    with connection.begin():
        begin(connection, settings.dialect)
        transaction = Transaction(connection, settings)
        transaction.begin_writing()
        return step.work(transaction, *step.arguments)


class Transaction:
    """See ``sql_verbs.Table``. Rows that another transaction has locked are left out by every purge."""

    __slots__ = ("_connection", "_deadline", "_settings", "_statements", "began")
    can_skip_locked = True

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + settings.timeout
        self._settings = settings
        self._statements = settings.statements
        self.began = 0.0
        # Only connections of some drivers can bound each of their waits (see ``engines``).
        driver: Any = connection.connection.driver_connection
        if hasattr(driver, "deadline"):
            driver.deadline = self._deadline

    def begin_writing(self) -> None:
        """Set the limits of the transaction if the database needs a statement for that, which also reads the time."""
        if self._settings.dialect.limits:
            self.began = float(self._timed(self._statements.open)[0][0])
        else:
            self.began = (self._settings.clock or time.time)()

    def now(self) -> float:
        """See ``Table``. A time that came with the beginning is used, except for claims, which read it anew. If the
        database has one writer at a time, the transaction has not waited since its beginning.
        """
        dialect = self._settings.dialect
        if self.began and (dialect.limits or dialect.begin is not None):
            return self.began
        return float(self._timed(self._statements.now)[0][0])

    def peek(self, record_id: bytes, fingerprint: bytes) -> tuple[Record, float] | None:
        """See ``Table``."""
        found = self._timed(self._statements.peek, id=record_id, fingerprint=fingerprint)
        if not found:
            return None
        now, *row = found[0]
        return sql_verbs.record_of(record_id, row), float(now)

    def lock(self, record_id: bytes) -> Record | None:
        """See ``Table``."""
        row = self._row(statements.LOCK, id=record_id)
        return None if row is None else sql_verbs.record_of(record_id, row)

    def lock_for_claim(self, record_id: bytes, fingerprint: bytes) -> Record | None:
        """See ``Table``."""
        row = self._row(statements.LOCK_FOR_CLAIM, id=record_id, fingerprint=fingerprint)
        return None if row is None else sql_verbs.record_of(record_id, row)

    def lock_many(self, record_ids: Sequence[bytes]) -> Mapping[bytes, Sequence[Any]]:
        """See ``Table``."""
        return {bytes(row[0]): row[1:] for row in self._rows(statements.LOCK_MANY, ids=record_ids)}

    def with_stages(self, record: Record) -> Record:
        """See ``Table``."""
        return sql_verbs.with_stages(record, self._rows(statements.STAGES, id=record.record_id))

    def with_stage(self, record: Record, stage: Stage) -> Record:
        """See ``Table``."""
        found = self._rows(statements.STAGE, id=record.record_id, stage=_stage_id(stage))
        return sql_verbs.with_stages(record, found)

    def with_first_stage(self, record: Record) -> Record:
        """See ``Table``."""
        return sql_verbs.with_stages(record, self._rows(statements.FIRST_STAGE, id=record.record_id))

    def get(self, record_id: bytes) -> Record | None:
        """See ``Table``."""
        found = self._timed(self._statements.get, id=record_id)
        if not found:
            return None
        now, *row = found[0][:-3]
        record = sql_verbs.record_of(record_id, row)
        if record.expires_at <= float(now):
            return None
        return sql_verbs.with_stages(record, [each[-3:] for each in found if each[-3] is not None])

    def ids_after(self, record_id: bytes, most: int) -> Sequence[bytes]:
        """See ``Table``."""
        return [bytes(found[0]) for found in self._timed(self._statements.scan, after=record_id, limit=most)]

    def headers_after(self, record_id: bytes, most: int) -> Sequence[Record]:
        """See ``Table``."""
        rows = self._timed(self._statements.scan_headers, after=record_id, limit=most)
        return [sql_verbs.record_of(bytes(row[0]), row[1:]) for row in rows]

    def insert(self, record: Record) -> None:
        """See ``Table``."""
        if not self._settings.dialect.cascades:
            # The stages of a record that somebody deleted by hand.
            self.delete_stages(record.record_id)
        self._check(record.response)
        self._run(statements.INSERT, _values_of(record))

    def update(self, record: Record) -> None:
        """See ``Table``."""
        self._check(record.response)
        values = _values_of(record)
        self._run(statements.UPDATE, {"id": values.pop("record_id"), **values})

    def extend(self, record_ids: Sequence[bytes], lease_end: float) -> None:
        """See ``Table``."""
        self._run(statements.EXTEND, {"end": _finite(lease_end), "ids": record_ids})

    def delete(self, record_ids: Sequence[bytes]) -> None:
        """See ``Table``."""
        parameters = [{"id": record_id} for record_id in record_ids]
        self._run(statements.DELETE_STAGES, parameters)
        self._run(statements.DELETE, parameters)

    def add_stage(self, record_id: bytes, stage: Stage) -> None:
        """See ``Table``."""
        self._check(stage.frame)
        name, key = sql_verbs.stage_names(stage)
        position = self._row(statements.LAST_POSITION, id=record_id)[0] + 1
        values = {"record_id": record_id, "stage_id": _stage_id(stage), "name": name, "stage_key": key}
        self._run(statements.ADD_STAGE, {**values, "position": position, "frame": stage.frame})

    def delete_stages(self, record_id: bytes) -> None:
        """See ``Table``."""
        self._run(statements.DELETE_STAGES, {"id": record_id})

    def now_and_reservation(self, scope_id: bytes, record_id: bytes) -> tuple[float, float | None]:
        """See ``Table``."""
        ((now, end),) = self._timed(self._statements.reservation, scope=scope_id, id=record_id)
        return float(now), sql_verbs.end_of(record_id, end)

    def lock_scope(self, scope_id: bytes) -> None:
        """See ``Table``."""
        if self._row(statements.LOCK_SCOPE, scope=scope_id) is None:
            self._run(statements.INSERT_SCOPE, {"scope_id": scope_id, "ends": 0.0})

    def first_end(self, scope_id: bytes, now: float, others: int) -> float | None:
        """See ``Table``."""
        first = self._row(statements.FIRST_OF_MORE_THAN, scope=scope_id, now=now, others=others)
        return None if first is None else sql_verbs.end_of(scope_id, first[0])

    def put_reservation(self, scope_id: bytes, record_id: bytes, end: float, is_there: bool) -> None:
        """See ``Table``."""
        if is_there:
            self._run(statements.EXTEND_RESERVATION, {"scope": scope_id, "id": record_id, "end": _finite(end)})
        else:
            values = {"scope_id": scope_id, "record_id": record_id, "ends": _finite(end)}
            self._run(statements.INSERT_RESERVATION, values)

    def extend_scope(self, scope_id: bytes, end: float) -> None:
        """See ``Table``."""
        self._run(statements.EXTEND_SCOPE, {"scope": scope_id, "end": _finite(end)})

    def delete_reservation(self, scope_id: bytes, record_id: bytes) -> None:
        """See ``Table``."""
        self._run(statements.DELETE_RESERVATION, {"scope": scope_id, "id": record_id})

    def purge_records(self, now: float, most: int) -> int:
        """See ``Table``."""
        expired = [bytes(row[0]) for row in self._rows(statements.EXPIRED, now=now, limit=most)]
        if expired:
            self.delete(expired)
        return len(expired)

    def purge_reservations(self, now: float, most: int) -> int:
        """See ``Table``."""
        expired = self._rows(statements.EXPIRED_RESERVATIONS, now=now, limit=most)
        if expired:
            keys = [{"scope": bytes(row[0]), "id": bytes(row[1])} for row in expired]
            self._run(statements.DELETE_RESERVATION, keys)
        return len(expired)

    def purge_scopes(self, now: float, most: int) -> None:
        """See ``Table``."""
        expired = self._rows(statements.EXPIRED_SCOPES, now=now, limit=most)
        if expired:
            self._run(statements.DELETE_SCOPE, [{"scope": bytes(row[0])} for row in expired])

    def _check(self, value: bytes | None) -> None:
        largest = self._settings.dialect.largest
        if largest is not None:
            largest.check(value, self._connection.info.get(LARGEST))

    def _run(self, statement: Executable, parameters: Any) -> CursorResult[Any]:
        """Run a statement, once or for each of several sets of parameters."""
        if time.monotonic() > self._deadline:
            raise OperationalError(None, None, TimeoutError("the transaction took too long"))
        return self._connection.execute(statement, parameters)

    def _rows(self, statement: Executable, **parameters: Any) -> Sequence[Any]:
        return self._run(statement, parameters).all()

    def _row(self, statement: Executable, **parameters: Any) -> Any:
        """The row of a read, or None."""
        return self._run(statement, parameters).one_or_none()

    def _timed(self, statement: Executable, **parameters: Any) -> Sequence[Any]:
        """All rows of a statement that reads the time, which is a parameter where it is not the database's."""
        if self._statements.needs_clock:
            settings = self._settings
            # If the database has one writer at a time, the time of the transaction's beginning decides.
            at_once = self.began and settings.dialect.begin is not None
            parameters["now"] = self.began if at_once else (settings.clock or time.time)()
        return self._run(statement, parameters).all()


def _values_of(record: Record) -> dict[str, Any]:
    values = sql_verbs.values_of(record)
    for name in ("lease_end", "ttl", "expires_at"):
        values[name] = _finite(values[name])
    values["final"] = int(record.final)
    return values


def _finite(seconds: float) -> float:
    """A time or duration as it is stored: some databases have no infinity."""
    return min(float(seconds), sql_verbs.LARGEST)


def _stage_id(stage: Stage) -> bytes:
    """The digest that identifies a stage of a record; name and key may be too long for an index."""
    name, key = sql_verbs.stage_names(stage)
    return hashlib.sha256(len(name).to_bytes(8, "big") + name + key).digest()
