"""The Lua scripts and their arguments: pure functions, shared by both colours.

Times cross over as whole microseconds. A stage travels as one frame of our own (identity and value), which the
scripts neither read nor change.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from open_idempotency import decisions
from open_idempotency.backend import Claim, Complete, Fail, Lease, Release, Reserve, SaveStage, Stage, Withdraw

Argument = bytes | int
Arguments = tuple[Argument, ...]
#: the keys of a script, and its arguments after the time
Keyed = tuple[Sequence[bytes], Arguments]

# What one script may do before the server's other clients notice.
RENEWED_AT_ONCE = 500
SCANNED_AT_ONCE = 100
RESERVATIONS_PURGED_AT_ONCE = 1000

# Lua's numbers are exact up to 2**53; a lease and a ttl of 95 years each, from now, stay below it.
_LONGEST = 3_000_000_000.0
_FLAGS = (b"0", b"1")
_STAGE_IDENTITY = struct.Struct("!I")


class Script:
    """One script: ``source`` with the prelude before it, and the ``sha`` by which the server knows it.

    ``called``: the words with which a call of it for one key begins, as they are sent.
    """

    __slots__ = ("called", "name", "sha", "source")

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = _PRELUDE + _read(name)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
        self.called = (b"EVALSHA", self.sha.encode(), b"1")


def _read(name: str) -> bytes:
    return (files("open_idempotency.backends.redis") / "lua" / f"{name}.lua").read_bytes()


_PRELUDE = _read("prelude")

CLAIM = Script("claim")
RENEW = Script("renew")
SAVE_STAGE = Script("save_stage")
COMPLETE = Script("complete")
FAIL = Script("fail")
RELEASE = Script("release")
WITHDRAW = Script("withdraw")
GET = Script("get")
DELETE = Script("delete")
PURGE = Script("purge")
PURGE_RESERVATIONS = Script("purge_reservations")
RESERVE = Script("reserve")
UNRESERVE = Script("unreserve")
STATUS = Script("status")


def evaluation(script: Script, keyed: Keyed, now: Argument, source: bool = False) -> tuple[Any, ...]:
    """The command that runs a script by its name, or by its ``source`` where the server does not know it."""
    keys, arguments = keyed
    words = ("EVAL", script.source) if source else ("EVALSHA", script.sha)
    return (*words, len(keys), *keys, now, *arguments)


def microseconds(seconds: float) -> int:
    """A duration or a time as the scripts take it."""
    return round(seconds * 1_000_000)


# A policy's leases and TTLs are always the same few.
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
    """For ``renew.lua``: what it takes for each of its keys."""
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


def reserve_arguments(c: Reserve) -> Arguments:
    """For ``reserve.lua``, after the time. What is written lasts one lease longer than what is needed."""
    needed, lease = int(_duration(c.lease)) + int(_duration(c.ttl)), int(_duration(c.lease))
    return (c.record_id, c.limit, needed, needed + lease)


def purging(reservations: bool, left: int) -> tuple[Script, Argument]:
    """The script that purges a key, and its argument after the time: how many it may delete."""
    if reservations:
        return PURGE_RESERVATIONS, min(left, RESERVATIONS_PURGED_AT_ONCE)
    return PURGE, left


def stage_identity(stage: Stage) -> bytes:
    """Name and key so that no two pairs are alike; any character may be in them."""
    name = stage.name.encode("utf-8", "surrogatepass")
    return _STAGE_IDENTITY.pack(len(name)) + name + stage.key.encode("utf-8", "surrogatepass")


def stage_of(frame: bytes) -> Stage:
    """The stage in a frame. Raises ``ValueError`` or ``struct.error`` where the frame is not one of ours."""
    (identity_length,) = _STAGE_IDENTITY.unpack_from(frame)
    (name_length,) = _STAGE_IDENTITY.unpack_from(frame, 4)
    name_end, identity_end = 8 + name_length, 4 + identity_length
    if not 8 <= name_end <= identity_end <= len(frame):
        raise ValueError("the lengths do not add up")
    name, key = frame[8:name_end], frame[name_end:identity_end]
    return Stage(name.decode("utf-8", "surrogatepass"), key.decode("utf-8", "surrogatepass"), frame[identity_end:])
