"""The Lua scripts, their keys, arguments and replies: pure functions, shared by the sync and the async backend.

Times are whole microseconds in arguments and replies. A stage is one frame of ours (identity and value), which the
scripts neither read nor change. A reply begins with a number. A number below 0 is an error of ours. A reply of another
shape raises ``RecordUnreadable``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from importlib.resources import files
from typing import Any, NoReturn, TypeVar

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
    Lease,
    Leased,
    Mismatch,
    OverQuota,
    Record,
    Refusal,
    Refused,
    Release,
    Renewal,
    Reserve,
    Reserved,
    ReserveResult,
    SaveStage,
    Stage,
    StageSaved,
    Status,
    Withdraw,
)
from open_idempotency.exceptions import AlreadyCompleted, BackendUnavailable, LeaseLost, RecordUnreadable

R = TypeVar("R")

Argument = bytes | int
Arguments = tuple[Argument, ...]
#: the keys of a script, and its arguments after the time
Keyed = tuple[Sequence[bytes], Arguments]
Reply = Sequence[Any]

# What one script may do without delaying the server's other clients.
RENEWED_AT_ONCE = 500
SCANNED_AT_ONCE = 100
HEADERS_AT_ONCE = 500
RESERVATIONS_PURGED_AT_ONCE = 1000

# Lua's numbers are exact up to 2**53; a lease and a ttl of 95 years each, from now, stay below it.
_MICRO = 1_000_000
_LONGEST = 3_000_000_000.0
_FLAGS = (b"0", b"1")
_STAGE_IDENTITY = struct.Struct("!I")


class Script:
    """One script: its ``source`` with the prelude, and the ``sha`` by which the server knows it.

    ``called``: the first words of the command that runs it on one key.
    """

    __slots__ = ("called", "name", "sha", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = _PRELUDE + _read(name)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
        self.called = (b"EVALSHA", self.sha.encode(), b"1")


def _read(name: str) -> bytes:
    return (files("open_idempotency.backends.redis") / "lua" / f"{name}.lua").read_bytes()


# Scripts cannot call each other, so each has these functions in front of it.
_PRELUDE = _read("prelude")

CLAIM = Script("claim")
RENEW = Script("renew")
SAVE_STAGE = Script("save_stage")
COMPLETE = Script("complete")
FAIL = Script("fail")
RELEASE = Script("release")
WITHDRAW = Script("withdraw")
GET = Script("get")
HEADERS = Script("headers")
DELETE = Script("delete")
FREE = Script("free")
PURGE = Script("purge")
PURGE_RESERVATIONS = Script("purge_reservations")
RESERVE = Script("reserve")
UNRESERVE = Script("unreserve")
STATUS = Script("status")


_RESERVATIONS = b"quota:"
_GLOB_CHARACTERS = frozenset(b"*?[]\\")


class Keys:
    """The names of the backend's keys on the servers, after a prefix."""

    __slots__ = ("_prefix",)

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix

    def record(self, record_id: bytes) -> bytes:
        """The key of a record."""
        return self._prefix + record_id.hex().encode()

    def reservations(self, scope_id: bytes) -> bytes:
        """The key of a caller's reservations. No record's key has a colon after the prefix."""
        return self._prefix + _RESERVATIONS + scope_id.hex().encode()

    def is_reservations(self, key: bytes) -> bool:
        """Whether this is a key of reservations."""
        return key.startswith(self._prefix + _RESERVATIONS)

    def record_id(self, key: bytes) -> bytes | None:
        """The id of the record at a key; None for a key that is no record's."""
        try:
            return bytes.fromhex(key[len(self._prefix) :].decode("ascii"))
        except ValueError:
            return None

    def pattern(self, beginning: bytes = b"") -> bytes:
        """The pattern for ``SCAN`` of the backend's keys. ``beginning``: hexadecimal digits after the prefix."""
        escaped = b"".join(b"\\%c" % byte if byte in _GLOB_CHARACTERS else b"%c" % byte for byte in self._prefix)
        return escaped + beginning + b"*"


def evaluation(script: Script, keyed: Keyed, now: Argument, source: bool = False) -> tuple[Any, ...]:
    """The command that runs a script by its digest. ``source``: send it in full, to a server that does not know it."""
    keys, arguments = keyed
    words = ("EVAL", script.source) if source else ("EVALSHA", script.sha)
    return (*words, len(keys), *keys, now, *arguments)


def microseconds(seconds: float) -> int:
    """A duration or a time as the scripts take it."""
    return round(seconds * _MICRO)


# A policy has few leases and TTLs.
@lru_cache(64)
def _duration(seconds: float) -> bytes:
    return b"%d" % microseconds(min(seconds, _LONGEST))


def claim_arguments(c: Claim) -> Arguments:
    """For ``claim.lua``, after the time."""
    return (
        c.fingerprint,
        c.owner,
        _duration(c.lease),
        _duration(c.ttl),
        _FLAGS[c.resume_failed],
        _FLAGS[c.resume_abandoned],
        b"" if c.max_attempts is None else c.max_attempts,
        c.about,
    )


def _lease_arguments(lease: Lease) -> Arguments:
    return (
        lease.owner,
        lease.token,
        lease.attempt,
        lease.fingerprint,
        _duration(lease.duration),
        _duration(lease.ttl),
    )


def renew_arguments(lease: Lease) -> Arguments:
    """For ``renew.lua``: the arguments for one of its keys."""
    return (lease.owner, lease.token, _duration(lease.duration))


def save_stage_arguments(c: SaveStage) -> Arguments:
    """For ``save_stage.lua``, after the time."""
    identity = stage_identity(c.stage)
    return (*_lease_arguments(c.lease), identity, _STAGE_IDENTITY.pack(len(identity)) + identity + c.stage.frame)


def complete_arguments(c: Complete) -> Arguments:
    """For ``complete.lua``, after the time."""
    return (*_lease_arguments(c.lease), c.response)


def fail_arguments(c: Fail) -> Arguments:
    """For ``fail.lua``, after the time."""
    response = () if c.response is None else (c.response,)
    return (*_lease_arguments(c.lease), int(c.final), *response)


def release_arguments(c: Release) -> Arguments:
    """For ``release.lua``, after the time."""
    return _lease_arguments(c.lease)


def withdraw_arguments(c: Withdraw) -> Arguments:
    """For ``withdraw.lua``, after the time."""
    return (c.claim.owner, _duration(decisions.WITHDRAWN_FOR))


def free_arguments(c: Free) -> Arguments:
    """For ``free.lua``, after the time."""
    return (c.token, int(c.status), _FLAGS[c.keep_stages], _FLAGS[c.alive])


def reserve_arguments(c: Reserve) -> Arguments:
    """For ``reserve.lua``, after the time. A reservation is kept one lease longer than it counts."""
    needed, lease = int(_duration(c.lease)) + int(_duration(c.ttl)), int(_duration(c.lease))
    return (c.record_id, c.limit, needed, needed + lease)


def purging(reservations: bool, left: int) -> tuple[Script, Argument]:
    """The script that purges a key, and its argument after the time: the largest number of deletions."""
    if reservations:
        return PURGE_RESERVATIONS, min(left, RESERVATIONS_PURGED_AT_ONCE)
    return PURGE, left


def stage_identity(stage: Stage) -> bytes:
    """Name and key of a stage as bytes, different for any two stages. They may contain any character."""
    name = stage.name.encode("utf-8", "surrogatepass")
    return _STAGE_IDENTITY.pack(len(name)) + name + stage.key.encode("utf-8", "surrogatepass")


def stage_of(frame: bytes) -> Stage:
    """The stage in a frame. Raises ``ValueError`` or ``struct.error`` for other bytes."""
    (identity_length,) = _STAGE_IDENTITY.unpack_from(frame)
    (name_length,) = _STAGE_IDENTITY.unpack_from(frame, 4)
    name_end, identity_end = 8 + name_length, 4 + identity_length
    if not 8 <= name_end <= identity_end <= len(frame):
        raise ValueError("the lengths do not add up")
    name, key = frame[8:name_end], frame[name_end:identity_end]
    return Stage(name.decode("utf-8", "surrogatepass"), key.decode("utf-8", "surrogatepass"), frame[identity_end:])


#: the errors that parsing raises for a malformed reply
_MALFORMED = (IndexError, KeyError, TypeError, ValueError, struct.error)


def _malformed(error: Exception) -> RecordUnreadable:
    return RecordUnreadable(f"malformed record: {error}")


def _strictly(parse: Callable[..., R]) -> Callable[..., R]:
    @wraps(parse)
    def parsed(*arguments: Any) -> R:
        try:
            return parse(*arguments)
        except _MALFORMED as error:
            raise _malformed(error) from error

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
    """The number at the start of a reply. Raises the error that a number below 0 stands for."""
    number: int = reply[0]
    if number < 0:
        _ERRORS[number](reply)
    return number


def _leased(c: Claim, reply: Reply) -> Leased:
    lease = Lease(c.record_id, c.owner, int(reply[1]), int(reply[2]), c.fingerprint, c.lease, c.ttl)
    return Leased(lease, tuple(map(stage_of, reply[3:])))


def _busy(_: Claim, reply: Reply) -> Busy:
    return Busy(reply[1] / _MICRO, reply[2] / _MICRO)


def _finished(_: Claim, reply: Reply) -> Finished:
    return Finished(reply[1])


def _refused(_: Claim, reply: Reply) -> Refused:
    return Refused(Refusal(_text(reply[1])), int(reply[2]), reply[3])


def _mismatch(_c: Claim, _reply: Reply) -> Mismatch:
    return Mismatch()


def _no_result(_: Claim, reply: Reply) -> NoReturn:
    raise ValueError(f"no reply to a claim begins with {code(reply)}")


_CLAIMED: dict[int, Callable[[Claim, Reply], ClaimResult]] = {
    0: _leased,
    1: _busy,
    2: _finished,
    3: _refused,
    4: _mismatch,
}


def claimed(c: Claim, reply: Reply) -> ClaimResult:
    """The result in a reply of ``claim.lua``."""
    try:
        return _CLAIMED.get(reply[0], _no_result)(c, reply)
    except _MALFORMED as error:
        raise _malformed(error) from error


def is_running(status: Any) -> bool:
    """Whether an attempt holds the record, from the reply of ``status.lua``."""
    return bool(status == Status.IN_PROGRESS)


@_strictly
def renewed(reply: Reply) -> Sequence[Renewal]:
    """The results in a reply of ``renew.lua``, one for each key."""
    return [Renewal(number) for number in reply]


@_strictly
def stage_saved(reply: Reply) -> StageSaved:
    """The result in a reply of ``save_stage.lua``."""
    number = code(reply)
    return StageSaved(stage_of(reply[1]).frame, recreated=number == 1)


GONE = "Redis: the claim was gone before replicas confirmed it"


def is_held(reply: Reply) -> bool:
    """Whether the reply of ``renew.lua`` for one key says that the claim still holds."""
    return renewed(reply) == [Renewal.OWNED]


class Unconfirmed(BackendUnavailable):
    """Too few replicas confirmed a write. Its server may be a primary that was replaced."""


def confirmed(found: Sequence[Any], replicas: int) -> Any:
    """The reply of a script, after a check of the reply to ``WAIT``: ``replicas`` replicas must have what it wrote.

    Raises ``Unconfirmed`` if fewer have it.
    """
    reply, having = found
    # A refusal of the script wrote nothing, and says more than Unconfirmed.
    if reply[0] >= 0 and having < replicas:
        raise Unconfirmed(f"Redis: {having} of {replicas} replicas confirmed the write in time (min_replicas)")
    return reply


def completed(reply: Reply) -> Completed:
    """The result in a reply of ``complete.lua``."""
    try:
        return Completed(recreated=code(reply) == 1)
    except _MALFORMED as error:
        raise _malformed(error) from error


_FREED = tuple(Freed)


@_strictly
def freed(reply: Reply) -> Freed:
    """The result in a reply of ``free.lua``."""
    return _FREED[code(reply)]


@_strictly
def reserved(reply: Reply) -> ReserveResult:
    """The result in a reply of ``reserve.lua``."""
    return OverQuota(reply[1] / _MICRO) if code(reply) == 1 else Reserved()


@_strictly
def record(record_id: bytes, reply: Reply) -> Record | None:
    """The record that ``get.lua`` found; None where there is none."""
    if code(reply) == 1:
        return None
    _, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at, final, *rest = reply[:13]
    response, about = rest
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
        tuple(map(stage_of, reply[13:])),
        about or b"",
    )
