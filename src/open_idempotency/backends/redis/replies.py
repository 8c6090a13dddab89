"""Reading the scripts' replies: pure functions, shared by both colours.

A reply begins with a number; below 0 it is an error of ours. A reply of another shape raises ``RecordUnreadable``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar

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
from open_idempotency.backends.redis.scripts import stage_of
from open_idempotency.exceptions import AlreadyCompleted, BackendUnavailable, LeaseLost, RecordUnreadable

R = TypeVar("R")
Reply = Sequence[Any]
_MICRO = 1_000_000


def _strictly(parse: Callable[..., R]) -> Callable[..., R]:
    @wraps(parse)
    def parsed(*arguments: Any) -> R:
        try:
            return parse(*arguments)
        except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            raise RecordUnreadable(f"malformed record: {error}") from error

    return parsed


def _lost(reply: Reply) -> NoReturn:
    raise LeaseLost(f"another attempt owns the record, or it has ended: token {_text(reply[1])}")


def _unreadable(reply: Reply) -> NoReturn:
    raise RecordUnreadable(_text(reply[1]))


def _completed_already(_: Reply) -> NoReturn:
    raise AlreadyCompleted("the response is recorded; stages belong before it")


_ERRORS: dict[int, Callable[[Reply], NoReturn]] = {-1: _unreadable, -2: _lost, -3: _completed_already}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def code(reply: Reply) -> int:
    """The number at the start of a reply; errors are raised."""
    number: int = reply[0]
    if number < 0:
        _ERRORS[number](reply)
    return number


def _stages(frames: Iterable[bytes]) -> tuple[Stage, ...]:
    return tuple(map(stage_of, frames))


def _leased(c: Claim, reply: Reply) -> Leased:
    lease = Lease(c.record_id, c.owner, int(reply[1]), int(reply[2]), c.fingerprint, c.lease, c.ttl)
    return Leased(lease, _stages(reply[3:]))


def _busy(_: Claim, reply: Reply) -> Busy:
    return Busy(reply[1] / _MICRO, reply[2] / _MICRO)


def _finished(_: Claim, reply: Reply) -> Finished:
    return Finished(reply[1])


def _refused(_: Claim, reply: Reply) -> Refused:
    return Refused(Refusal(_text(reply[1])), int(reply[2]), reply[3])


def _mismatch(_c: Claim, _reply: Reply) -> Mismatch:
    return Mismatch()


_CLAIMED: tuple[Callable[[Claim, Reply], ClaimAnswer], ...] = (_leased, _busy, _finished, _refused, _mismatch)


@_strictly
def claimed(c: Claim, reply: Reply) -> ClaimAnswer:
    """The answer to a claim."""
    return _CLAIMED[code(reply)](c, reply)


def is_running(status: Any) -> bool:
    """Whether an attempt holds the record, from what ``status.lua`` read."""
    return bool(status == Status.IN_PROGRESS)


@_strictly
def renewed(reply: Reply) -> Sequence[Renewal]:
    """The answers to a renewal."""
    return [Renewal(number) for number in reply]


@_strictly
def stage_saved(reply: Reply) -> StageSaved:
    """The answer to a stage."""
    number = code(reply)
    return StageSaved(stage_of(reply[1]).frame, recreated=number == 1)


def held(reply: Reply) -> None:
    """Raise ``BackendUnavailable`` unless a renewal says that the claim still holds."""
    if renewed(reply) != [Renewal.OWNED]:
        raise BackendUnavailable("Redis: the claim was gone before replicas confirmed it")


def confirmed(found: Sequence[Any], replicas: int) -> Any:
    """The script's reply, where the reply to ``WAIT`` after it says that enough replicas have what it wrote."""
    reply, having = found
    # A refusal wrote nothing, and says more.
    if reply[0] >= 0 and having < replicas:
        raise BackendUnavailable(f"Redis: {having} of {replicas} replicas confirmed the write in time (min_replicas)")
    return reply


@_strictly
def completed(reply: Reply) -> Completed:
    """The answer to a completion."""
    return Completed(recreated=code(reply) == 1)


@_strictly
def reserved(reply: Reply) -> ReserveAnswer:
    """The answer to a reservation."""
    return OverQuota(reply[1] / _MICRO) if code(reply) == 1 else Reserved()


@_strictly
def record(record_id: bytes, reply: Reply) -> Record | None:
    """The record that ``get.lua`` found."""
    if code(reply) == 1:
        return None
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, response = reply[:12]
    return Record(
        record_id,
        fingerprint,
        Status(status),
        owner,
        int(token),
        attempt,
        claimed_at / _MICRO,
        lease_end / _MICRO,
        ttl / _MICRO,
        expires_at / _MICRO,
        bool(final),
        response,
        _stages(reply[12:]),
    )
