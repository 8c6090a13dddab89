"""The statements, built once for each backend. No value ever becomes part of a statement.

Reads take their columns as the driver gives them: ``sql_rows`` checks their types, which a conversion would hide.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Executable,
    Select,
    bindparam,
    case,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.engine.interfaces import Dialect as SqlalchemyDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator

from open_idempotency.backends._shared import sql_rows
from open_idempotency.backends.sqlalchemy.dialects import Dialect
from open_idempotency.backends.sqlalchemy.tables import records, reservations, scopes, stages

_IN_PROGRESS = 1


def _raw(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return type_coerce(column, NullType())


class _Seconds(TypeDecorator[Any]):
    """A time as ``_sent`` lets it cross over."""

    impl = NullType
    cache_ok = True

    def result_processor(self, dialect: SqlalchemyDialect, coltype: object) -> Any:
        """What makes seconds of it again, if need be."""
        return sql_rows.in_seconds if dialect.name == "postgresql" else None


class _sent(FunctionElement[Any]):  # noqa: N801 (reads as a function)
    """A time that the database sends: see ``sql_rows.MICROSECONDS``. Other databases send it as it is."""

    inherit_cache = True
    type = _Seconds()


@compiles(_sent)
def _send_as_it_is(element: _sent, compiler: Any, **options: Any) -> str:
    sent: str = compiler.process(element.clauses.clauses[0], **options)
    return sent


@compiles(_sent, "postgresql")
def _send_as_a_number(element: _sent, compiler: Any, **options: Any) -> str:
    return sql_rows.MICROSECONDS.format(_send_as_it_is(element, compiler, **options))


HEADER = [_sent(records.c[name]) if name in sql_rows.SECONDS else _raw(records.c[name]) for name in sql_rows.HEADER]
_STAGE = [_raw(stages.c.name), _raw(stages.c.stage_key), _raw(stages.c.frame)]
# A claim needs the response only to replay it, so not while it runs and not for another request.
_REPLAY = case(
    (
        (records.c.status != _IN_PROGRESS) & (records.c.fingerprint == bindparam("fingerprint")),
        records.c.response,
    )
)
_THIS = records.c.record_id == bindparam("id")
_OF_THIS = stages.c.record_id == bindparam("id")
_RESERVATION = (reservations.c.scope_id == bindparam("scope"), reservations.c.record_id == bindparam("id"))
_NOW: ColumnElement[float] = bindparam("now", type_=Double())
_END: ColumnElement[float] = bindparam("end", type_=Double())

LOCK = select(*HEADER, null()).where(_THIS).with_for_update()
LOCK_FOR_CLAIM = select(*HEADER, _raw(_REPLAY)).where(_THIS).with_for_update()
# In one order, so that two renewals of the same records never wait for each other.
LOCK_MANY = (
    select(_raw(records.c.record_id), *HEADER, null())
    .where(records.c.record_id.in_(bindparam("ids", expanding=True)))
    .order_by(records.c.record_id)
    .with_for_update()
)
INSERT = insert(records)
UPDATE = update(records).where(_THIS)
EXTEND = (
    update(records)
    .where(records.c.record_id.in_(bindparam("ids", expanding=True)))
    .values(lease_end=_END, expires_at=_END + records.c.ttl)
)
DELETE = delete(records).where(_THIS)
EXPIRED = (
    select(_raw(records.c.record_id))
    .where(records.c.expires_at <= _NOW)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)

STAGES = select(*_STAGE).where(_OF_THIS).order_by(stages.c.position)
FIRST_STAGE = STAGES.limit(1)
STAGE = select(*_STAGE).where(_OF_THIS, stages.c.stage_id == bindparam("stage"))
LAST_POSITION = select(func.coalesce(func.max(stages.c.position), 0)).where(_OF_THIS)
ADD_STAGE = insert(stages)
DELETE_STAGES = delete(stages).where(_OF_THIS)

LOCK_SCOPE = select(_raw(scopes.c.ends)).where(scopes.c.scope_id == bindparam("scope")).with_for_update()
INSERT_SCOPE = insert(scopes)
EXTEND_SCOPE = update(scopes).where(scopes.c.scope_id == bindparam("scope"), scopes.c.ends < _END).values(ends=_END)
INSERT_RESERVATION = insert(reservations)
EXTEND_RESERVATION = update(reservations).where(*_RESERVATION).values(ends=_END)
DELETE_RESERVATION = delete(reservations).where(*_RESERVATION)
DELETE_SCOPE = delete(scopes).where(scopes.c.scope_id == bindparam("scope"))
_TAKEN = (reservations.c.scope_id == bindparam("scope"), reservations.c.ends > _NOW)
# The first end, where there are more than so many. Skipping rows is the cheapest way to count them.
FIRST_OF_MORE_THAN = (
    select(select(_sent(func.min(reservations.c.ends))).where(*_TAKEN).scalar_subquery())
    .select_from(reservations)
    .where(*_TAKEN)
    .order_by(reservations.c.ends)
    .limit(1)
    .offset(bindparam("others"))
)
EXPIRED_RESERVATIONS = (
    select(_raw(reservations.c.scope_id), _raw(reservations.c.record_id))
    .where(reservations.c.ends <= _NOW)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
EXPIRED_SCOPES = (
    select(_raw(scopes.c.scope_id))
    .where(scopes.c.ends <= _NOW)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)


class Statements:
    """The statements that read the time. ``own_clock``: whether each gets it, instead of the database's clock."""

    def __init__(self, dialect: Dialect, own_clock: bool, timeout: float) -> None:
        database_clock = None if own_clock else dialect.clock
        self.needs_clock = database_clock is None
        time: ColumnElement[float] = _NOW if database_clock is None else database_clock
        self.now = select(_sent(time))
        #: the first one of a write transaction: the time, and settings that bound the transaction
        self.open = _open(dialect, time, timeout)
        self.peek = select(_sent(time), *HEADER, _raw(_REPLAY)).where(_THIS)
        first_row = or_(stages.c.position.is_(None), stages.c.position == 1)
        #: a row for each stage, the response with the first one alone: all of one moment, without a transaction
        self.get = (
            select(_sent(time), *HEADER, _raw(case((first_row, records.c.response))), *_STAGE)
            .select_from(records.outerjoin(stages, stages.c.record_id == records.c.record_id))
            .where(_THIS)
            .order_by(stages.c.position)
        )
        self.scan = (
            select(_raw(records.c.record_id))
            .where(records.c.record_id > bindparam("after"), records.c.expires_at > time)
            .order_by(records.c.record_id)
            .limit(bindparam("limit"))
        )
        end = select(_sent(reservations.c.ends)).where(*_RESERVATION).scalar_subquery()
        self.reservation: Executable = select(_sent(time), end)


def _open(dialect: Dialect, time: ColumnElement[float], timeout: float) -> Select[Any]:
    limit = str(max(1, round(timeout * 1000)))
    return select(_sent(time), *(func.set_config(name, limit, True) for name in dialect.limits))
