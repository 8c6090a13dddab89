"""The verbs of the PostgreSQL backend, each one function on the server, and their binary formats.

The client library's own adaptation inspects each value of each call, which costs more than the call of a small
function. Here a statement names the type of each parameter once, parameters are written as the server takes them, and
rows are read as it sends them. No value ever becomes part of a statement.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from open_idempotency import decisions
from open_idempotency.backend import (
    Busy,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Finished,
    Free,
    Freed,
    Get,
    Lease,
    Leased,
    Mismatch,
    OverQuota,
    Record,
    Refusal,
    Refused,
    Release,
    Renew,
    Renewal,
    Reserve,
    Reserved,
    ReserveResult,
    SaveStage,
    Stage,
    StageSaved,
    Status,
    Unreserve,
    Withdraw,
)
from open_idempotency.backends._shared import fronts
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost, RecordUnreadable

# Binary formats

Encoder = Callable[[Any], bytes]
Row = tuple[Any, ...]

_long = struct.Struct(">i")
_two_longs = struct.Struct(">2i")
_array = struct.Struct(">5i")
_NULL = _long.pack(-1)

#: the types' numbers on every server
_BOOL, _BYTEA, _BIGINT, _INTEGER, _TEXT, _DOUBLE, _BYTEAS, _INTEGERS = 16, 17, 20, 23, 25, 701, 1001, 1007


def _packed(code: str) -> Encoder:
    return struct.Struct(f">{code}").pack


def _of_bytes(values: Sequence[bytes | None]) -> bytes:
    parts = [_array.pack(1, int(None in values), _BYTEA, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_long.pack(len(value)), value)
    return b"".join(parts)


def _of_numbers(oid: int, code: str) -> Encoder:
    """An array of numbers of one size, none of them NULL."""
    size = struct.calcsize(f">{code}")

    def encode(values: Sequence[Any]) -> bytes:
        flat = [part for value in values for part in (size, value)]
        return _array.pack(1, 0, oid, len(values), 1) + struct.pack(">" + f"i{code}" * len(values), *flat)

    return encode


_ENCODERS: dict[str, Encoder] = {
    "bytea": lambda value: value,
    "integer": _packed("i"),
    "bigint": _packed("q"),
    "double precision": _packed("d"),
    "boolean": _packed("?"),
    "bytea[]": _of_bytes,
    "integer[]": _of_numbers(_INTEGER, "i"),
    "bigint[]": _of_numbers(_BIGINT, "q"),
    "double precision[]": _of_numbers(_DOUBLE, "d"),
    "boolean[]": _of_numbers(_BOOL, "?"),
}


class Statement:
    """A statement whose parameters are written as ``{type}``; no value ever becomes part of it.

    ``older``: the form for a database that lacks the latest migrations. It takes only the first of the parameters.
    """

    __slots__ = ("_encoders", "formats", "name", "older", "text")

    def __init__(self, text: str, older: Statement | None = None) -> None:
        types: list[str] = []

        def numbered(found: re.Match[str]) -> str:
            types.append(found[1])
            return f"${len(types)}::{found[1]}"

        self.text = re.sub(r"\{([^}]+)\}", numbered, text).encode()
        #: the name under which it may be prepared. The name depends only on the text, so a prepared statement of this
        #: name on a shared connection is the same statement, whichever client prepared it
        self.name = b"open_idempotency_" + hashlib.sha256(self.text).hexdigest()[:32].encode()
        self._encoders = [_ENCODERS[kind] for kind in types]
        #: every parameter is binary
        self.formats = [1] * len(types)
        self.older = older

    def encoded(self, values: Sequence[Any]) -> list[bytes | None]:
        """The values of the parameters as the server takes them; None is NULL."""
        return [None if value is None else encode(value) for encode, value in zip(self._encoders, values, strict=True)]


def _elements(data: bytes) -> list[bytes | None]:
    """The elements of an array of one dimension; None is NULL."""
    dimensions, _, _ = struct.unpack_from(">3i", data)
    if not dimensions:
        return []
    count, _ = _two_longs.unpack_from(data, 12)
    values: list[bytes | None] = []
    at = 20
    for _ in range(count):
        (size,) = _long.unpack_from(data, at)
        at += 4
        if size < 0:
            values.append(None)
        else:
            values.append(data[at : at + size])
            at += size
    return values


def _unpacked(code: str) -> Callable[[bytes], Any]:
    unpack = struct.Struct(f">{code}").unpack
    return lambda data: unpack(data)[0]


_integer = _unpacked("i")
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _BOOL: _unpacked("?"),
    _BYTEA: bytes,
    _BIGINT: _unpacked("q"),
    _INTEGER: _integer,
    _TEXT: bytes.decode,
    _DOUBLE: _unpacked("d"),
    _BYTEAS: _elements,
    _INTEGERS: lambda data: [None if value is None else _integer(value) for value in _elements(data)],
}


class Result(Protocol):
    """The part of the client library's result that is used; its columns are binary."""

    @property
    def ntuples(self) -> int: ...
    @property
    def nfields(self) -> int: ...
    def ftype(self, column_number: int) -> int: ...
    def get_value(self, row_number: int, column_number: int) -> bytes | None: ...


def rows(result: Result) -> list[Row]:
    """The rows of a result, each value by its column's type; of a type that is not known here, as bytes."""
    columns = [(number, _DECODERS.get(result.ftype(number), bytes)) for number in range(result.nfields)]
    get = result.get_value
    return [
        tuple([None if (data := get(row, number)) is None else decode(data) for number, decode in columns])
        for row in range(result.ntuples)
    ]


# The verbs: parameters, and what their rows mean

C = TypeVar("C")
R = TypeVar("R")
Parameters = tuple[Any, ...]
Rows = Sequence[Row]

_LEASE = (
    "({bytea}, {bytea}, {bigint}, {integer}, {bytea}, {double precision}, {double precision})::open_idempotency.lease"
)
#: the time of a test's clock, or NULL
_NOW = "{double precision}"
#: the same in a statement that waits only briefly for a locked row; the time is read after that limit was set
_HURRIED_NOW = "CASE WHEN hurry.made IS NOT NULL THEN {double precision} END"
_HURRY = "set_config('lock_timeout', '100ms', true) AS hurry (made), LATERAL"


_UNREADABLE, _LOST = -1, -2
_FREED = tuple(Freed)
#: how many leases, and ids of records, go into one call
_AT_ONCE = 500


@dataclass(frozen=True, slots=True, eq=False)
class Verb(fronts.Verb[C, R]):
    """A statement whose first parameter is the time, the other parameters of a command, and the response in its rows.

    ``hurried``: of a verb that may go into a batch, the statement for a batch of one, which waits only briefly for a
    locked row; None for other verbs. ``size``: about how many bytes a command adds to a batch.
    """

    statement: Statement
    parameters: Callable[[C], Parameters]
    response: Callable[[C, Rows], R]
    hurried: Statement | None = None
    size: Callable[[C], int] = lambda c: 0


def _statement(text: str, older: str | None = None) -> Statement:
    return Statement(text.replace(":now", _NOW), None if older is None else _statement(older))


def _batched(
    columns: str,
    call: str,
    parameters: Callable[[C], Parameters],
    response: Callable[[C, Rows], R],
    size: Callable[[C], int] = lambda c: 0,
    older: str | None = None,
) -> Verb[C, R]:
    """A verb that may go into a batch. ``call``: of its function; ``:now`` is the time and ``:lease`` the lease.

    ``older``: the call for a database that lacks the latest migrations.
    """

    def statement(call: str, hurried: bool) -> str:
        call = "open_idempotency." + call.replace(":lease", _LEASE)
        if hurried:
            return " ".join(("SELECT", columns, "FROM", _HURRY, call.replace(":now", _HURRIED_NOW)))
        return " ".join(("SELECT", columns, "FROM", call.replace(":now", _NOW)))

    plain, hurried = (
        Statement(statement(call, hurried), None if older is None else Statement(statement(older, hurried)))
        for hurried in (False, True)
    )
    return Verb(plain, parameters, response, hurried, size)


# Parameters, after the time


def _lease(lease: Lease) -> Parameters:
    return (
        lease.record_id, lease.owner, lease.token, lease.attempt, lease.fingerprint, lease.duration, lease.ttl,
    )  # fmt: skip


def _claim(c: Claim) -> Parameters:
    lease = (c.record_id, c.owner, 0, 0, c.fingerprint, c.lease, c.ttl)
    return (*lease, c.resume_failed, c.resume_abandoned, c.max_attempts, c.about)


def _save_stage(c: SaveStage) -> Parameters:
    return (*_lease(c.lease), *stage_key(c.stage), c.stage.frame)


def _complete(c: Complete) -> Parameters:
    return (*_lease(c.lease), c.response)


def _fail(c: Fail) -> Parameters:
    return (*_lease(c.lease), c.final, c.response)


def _release(c: Release) -> Parameters:
    return _lease(c.lease)


def _renew(c: Renew) -> Parameters:
    return (
        [lease.record_id for lease in c.leases],
        [lease.owner for lease in c.leases],
        [lease.token for lease in c.leases],
        [lease.duration for lease in c.leases],
    )


def _get(c: Get) -> Parameters:
    return (c.record_id,)


def _alone(value: bytes | int) -> Parameters:
    return (value,)


def _scan(after: bytes) -> Parameters:
    return after, _AT_ONCE


def _reserve(c: Reserve) -> Parameters:
    return (c.scope_id, c.record_id, c.limit, c.lease + c.ttl, 2 * c.lease + c.ttl)


def _unreserve(c: Unreserve) -> Parameters:
    return c.scope_id, c.record_id


def _withdraw(c: Withdraw) -> Parameters:
    return c.claim.record_id, c.claim.owner, decisions.WITHDRAWN_FOR


def _free(c: Free) -> Parameters:
    return c.record_id, c.token, int(c.status), c.keep_stages, c.alive


def stage_key(stage: Stage) -> tuple[bytes, bytes]:
    """Name and key as bytes; they may hold any character, lone surrogates and NUL included."""
    return stage.name.encode("utf-8", "surrogatepass"), stage.key.encode("utf-8", "surrogatepass")


# Responses


def _code(number: int) -> int:
    """The number at the start of a response. Raises the error that a number below 0 stands for."""
    if number >= 0:
        return number
    if number == _UNREADABLE:
        raise RecordUnreadable("the record has an unknown version or status")
    if number == _LOST:
        raise LeaseLost("another attempt owns the record, or it has ended")
    raise AlreadyCompleted("the response is recorded; stages belong before it")


def _claimed(c: Claim, rows: Rows) -> ClaimResult:
    number, reason, token, attempt, elapsed, remaining, response, names, keys, frames = rows[0]
    match _code(number):
        case 0:
            lease = Lease(c.record_id, c.owner, token, attempt, c.fingerprint, c.lease, c.ttl)
            return Leased(lease, _stages(names, keys, frames))
        case 1:
            return Busy(elapsed, remaining)
        case 2:
            return Finished(response or b"")
        case 3:
            return Refused(Refusal(reason), attempt, response)
        case _:
            return Mismatch()


def _renewed(c: Renew, rows: Rows) -> Sequence[Renewal]:
    return [Renewal(number) for number in rows[0][0]]


def _stage_saved(c: SaveStage, rows: Rows) -> StageSaved:
    number, frame = rows[0]
    return StageSaved(frame, recreated=_code(number) == 1)


def _completed(c: Complete, rows: Rows) -> Completed:
    return Completed(recreated=_code(rows[0][0]) == 1)


def _ended(c: Fail | Release, rows: Rows) -> None:
    _code(rows[0][0])


def _nothing(c: Withdraw | Unreserve, rows: Rows) -> None:
    """The function returns nothing, or raises."""


#: the columns of a record that were there from the beginning
_READ = 15


def _record(c: Get, rows: Rows) -> Record | None:
    if not rows:
        return None
    sound, fingerprint, status, *fields, response, names, keys, frames = rows[0][:_READ]
    about: tuple[bytes, ...] = rows[0][_READ:]
    _code(0 if sound else _UNREADABLE)
    owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final = fields
    return Record(
        c.record_id, fingerprint, Status(status), owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final,
        response, _stages(names, keys, frames), *about,
    )  # fmt: skip


def _reserved(c: Reserve, rows: Rows) -> ReserveResult:
    number, remaining = rows[0]
    return Reserved() if number == 0 else OverQuota(remaining)


def _headers(after: bytes, rows: Rows) -> Sequence[Record]:
    return [_header(row) for row in rows]


def _header(row: Row) -> Record:
    record_id, sound, fingerprint, status, *fields, about = row
    if not sound:
        raise RecordUnreadable(f"record {record_id[:6].hex()} has an unknown version or status")
    owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final = fields
    return Record(
        record_id, fingerprint, Status(status), owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final,
        about=about,
    )  # fmt: skip


def _freed(c: Free, rows: Rows) -> Freed:
    return _FREED[_code(rows[0][0])]


def _is_true(c: bytes, rows: Rows) -> bool:
    return bool(rows[0][0])


def _stages(names: list[bytes] | None, keys: list[bytes] | None, frames: list[bytes] | None) -> tuple[Stage, ...]:
    """The stages in three columns, which are NULL where there are none."""
    if names is None or keys is None or frames is None:
        return ()
    return tuple(Stage(_text(name), _text(key), frame) for name, key, frame in zip(names, keys, frames, strict=True))


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise RecordUnreadable("the name of a stage is corrupt") from error


CLAIM = _batched(
    "code, reason, token, attempt, elapsed, remaining, response, names, keys, frames",
    "claim(:now, :lease, {boolean}, {boolean}, {integer}, {bytea})",
    _claim,
    _claimed,
    older="claim(:now, :lease, {boolean}, {boolean}, {integer})",
)
SAVE_STAGE = _batched(
    "code, frame",
    "save_stage(:now, :lease, {bytea}, {bytea}, {bytea})",
    _save_stage,
    _stage_saved,
    lambda c: len(c.stage.frame),
)
COMPLETE = _batched("code", "complete(:now, :lease, {bytea})", _complete, _completed, lambda c: len(c.response))
FAIL = _batched("code", "fail(:now, :lease, {boolean}, {bytea})", _fail, _ended, lambda c: len(c.response or b""))
RELEASE = _batched("code", "release(:now, :lease)", _release, _ended)
#: whether an attempt runs; if so, the server will report its end to all listeners
AWAIT: Verb[bytes, bool] = Verb(_statement("SELECT open_idempotency.await(:now, {bytea})"), _alone, _is_true)

VERBS = fronts.Verbs(
    claim=CLAIM,
    renew=Verb(
        _statement("SELECT open_idempotency.renew(:now, {bytea[]}, {bytea[]}, {bigint[]}, {double precision[]})"),
        _renew,
        _renewed,
    ),
    save_stage=SAVE_STAGE,
    complete=COMPLETE,
    fail=FAIL,
    release=RELEASE,
    withdraw=Verb(
        _statement("SELECT open_idempotency.withdraw(:now, {bytea}, {bytea}, {double precision})"),
        _withdraw,
        _nothing,
    ),
    get=Verb(
        _statement(
            "SELECT * FROM open_idempotency.read(:now, {bytea})",
            older="SELECT * FROM open_idempotency.get(:now, {bytea})",
        ),
        _get,
        _record,
    ),
    delete=Verb(_statement("SELECT open_idempotency.forget(:now, {bytea})"), _alone, _is_true),
    free=Verb(
        _statement("SELECT open_idempotency.free(:now, {bytea}, {bigint}, {integer}, {boolean}, {boolean})"),
        _free,
        _freed,
    ),
    now=Verb(_statement("SELECT open_idempotency.seconds(:now)"), lambda c: (), lambda c, rows: float(rows[0][0])),
    scan=Verb(
        _statement("SELECT open_idempotency.scan(:now, {bytea}, {integer})"),
        _scan,
        lambda c, rows: [record_id for (record_id,) in rows],
    ),
    headers=Verb(_statement("SELECT * FROM open_idempotency.headers(:now, {bytea}, {integer})"), _scan, _headers),
    purge=Verb(_statement("SELECT open_idempotency.purge(:now, {integer})"), _alone, lambda c, rows: int(rows[0][0])),
    reserve=Verb(
        _statement(
            "SELECT code, remaining FROM open_idempotency.reserve("
            ":now, {bytea}, {bytea}, {integer}, {double precision}, {double precision})"
        ),
        _reserve,
        _reserved,
    ),
    unreserve=Verb(_statement("SELECT open_idempotency.unreserve(:now, {bytea}, {bytea})"), _unreserve, _nothing),
    renewed_at_once=_AT_ONCE,
    scanned_at_once=_AT_ONCE,
    headers_at_once=_AT_ONCE,
    # The function on the server bounds its own work.
    purged_at_once=2**31 - 1,
)
