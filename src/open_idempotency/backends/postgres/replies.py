"""What the functions of the PostgreSQL backend answer, as the answers of the verbs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_idempotency.backend import (
    Busy,
    Claim,
    ClaimAnswer,
    Completed,
    Finished,
    Lease,
    Leased,
    Mismatch,
    OverQuota,
    Record,
    Refusal,
    Refused,
    Renewal,
    ReserveAnswer,
    Reserved,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost, RecordUnreadable

_UNREADABLE, _LOST = -1, -2


def code(number: int) -> int:
    """The verb's own answer. Raises what a number below 0 stands for."""
    if number >= 0:
        return number
    if number == _UNREADABLE:
        raise RecordUnreadable("the record has an unknown version or status")
    if number == _LOST:
        raise LeaseLost("another attempt owns the record, or it has ended")
    raise AlreadyCompleted("the response is recorded; stages belong before it")


def claimed(c: Claim, row: Sequence[Any]) -> ClaimAnswer:
    """The answer to a claim."""
    number, reason, token, attempt, elapsed, remaining, response, names, keys, frames = row
    match code(number):
        case 0:
            lease = Lease(c.record_id, c.owner, token, attempt, c.fingerprint, c.lease, c.ttl)
            return Leased(lease, stages(names, keys, frames))
        case 1:
            return Busy(elapsed, remaining)
        case 2:
            return Finished(response or b"")
        case 3:
            return Refused(Refusal(reason), attempt, response)
        case _:
            return Mismatch()


def renewed(numbers: Sequence[int]) -> list[Renewal]:
    """The answers to a renewal."""
    return [Renewal(number) for number in numbers]


def stage_saved(row: Sequence[Any]) -> StageSaved:
    """The answer to ``save_stage``."""
    return StageSaved(row[1], recreated=code(row[0]) == 1)


def completed(number: int) -> Completed:
    """The answer to ``complete``."""
    return Completed(recreated=code(number) == 1)


def reserved(row: Sequence[Any]) -> ReserveAnswer:
    """The answer to ``reserve``."""
    return Reserved() if row[0] == 0 else OverQuota(row[1])


def record(record_id: bytes, row: Sequence[Any] | None) -> Record | None:
    """The answer to ``get``."""
    if row is None:
        return None
    sound, fingerprint, status, *fields, response, names, keys, frames = row
    code(0 if sound else _UNREADABLE)
    owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final = fields
    return Record(
        record_id,
        fingerprint,
        Status(status),
        owner,
        token,
        attempt,
        claimed_at,
        lease_end,
        ttl,
        expires_at,
        final,
        response,
        stages(names, keys, frames),
    )


def stages(names: list[bytes] | None, keys: list[bytes] | None, frames: list[bytes] | None) -> tuple[Stage, ...]:
    """The stages in three columns, of which SQL makes NULL where there are none."""
    if names is None or keys is None or frames is None:
        return ()
    return tuple(Stage(_text(name), _text(key), frame) for name, key, frame in zip(names, keys, frames, strict=True))


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise RecordUnreadable("the name of a stage is corrupt") from error
