"""Requests whose view changes the caller: a login, a logout, a registration, a new password (O-14).

The scope of a request is fixed at the claim. Its retry comes from the new caller, whose scope would lead to another
record. The session leads the retry to the right record. A new session carries the id of the record at which it began.
If the view has ended a session, a pointer to the record is stored under the digest of the session's secret. No other
client has the new session or that secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Claim, Complete, Get, Steps, ask
from open_idempotency._core.keys import Caller
from open_idempotency._core.models import Leased, Response, Status
from open_idempotency._core.notify import warn
from open_idempotency._core.stored_response import decode_response, encode_response, seal, unseal
from open_idempotency.exceptions import RecordUnreadable

_POINTER = b"pointer"
_FIELD = b"record"


class Session(Protocol):
    """The session of a request, as an adapter knows it. Its methods are called after ``identify``."""

    def carried(self, caller: Caller) -> bytes | None:
        """The id of the record at which this session began, if an attempt at this request began it; else None."""
        ...

    def lost(self) -> str | None:
        """The digest of the session that the client presents, if no such session exists (any more); else None."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A view has changed its caller. ``carried``: whether the new session carries the id of the record.

    ``lost``: the digest of the session with which the request came, if the view has ended that session.
    """

    carried: bool
    lost: str | None = None


def read_change(change: Callable[[], Change | None]) -> Change | None:
    """Ask the adapter's session for a change. An error counts as a change that no session carries.

    The view has run by then, so no error of its session may lose its outcome.
    """
    try:
        return change()
    except Exception:  # of the framework, of a user's model, of what the view has put into the session
        return Change(carried=False)


def find_record(caller: Caller, session: Session) -> Steps[bytes | None]:
    """The record at which this request began under another caller (O-14); None if no session leads to one.

    Raises ``BackendUnavailable``, ``RecordUnreadable``.
    """
    found = session.carried(caller)
    lost = session.lost() if found is None and caller.user is None else None
    if lost is None:
        return found
    record = yield from ask(Get(caller.of_session(lost)))
    if record is None or record.status is not Status.COMPLETED or record.response is None:
        return None
    plain = unseal(
        record.response, _POINTER, _claim_of(record.record_id, record.fingerprint, b"", caller), caller.policy
    )
    for name, value in decode_response(plain).headers:
        if name == _FIELD:
            return bytes.fromhex(value.decode("ascii"))
    raise RecordUnreadable("a pointer to a record has no record in it")


def follow(attempt: Attempt, caller: Caller, change: Change, owner: bytes) -> Steps[None]:
    """Let a retry find the record of this attempt, although its view has changed the caller. Raises nothing."""
    lease = attempt.lease
    if lease is None:
        return
    attempt.change_session()
    found = change.carried
    if change.lost is not None:
        try:
            found = (yield from _point(attempt, caller, caller.of_session(change.lost), owner)) or found
        except Exception as error:  # the view has run, and no error here may lose its outcome
            yield from warn(
                attempt.policy, events.BackendFailed.of(events.short(lease.record_id), "follow", error), attempt
            )
    yield from warn(attempt.policy, events.CallerChanged(events.short(lease.record_id), found), attempt)


def _point(attempt: Attempt, caller: Caller, pointer: bytes, owner: bytes) -> Steps[bool]:
    """Store a pointer to the record of this attempt. Returns whether one is stored now."""
    assert attempt.lease is not None
    claim = _claim_of(pointer, attempt.lease.fingerprint, owner, caller)
    result = yield from ask(claim)
    if not isinstance(result, Leased):  # an earlier attempt was here
        return True
    frame = encode_response(Response(200, [(_FIELD, attempt.lease.record_id.hex().encode("ascii"))], b""))
    yield from ask(Complete(result.lease, seal(frame, _POINTER, result.lease, attempt.policy)))
    return True


def _claim_of(record: bytes, fingerprint: bytes, owner: bytes, caller: Caller) -> Claim:
    return Claim(record, fingerprint, owner, caller.policy.lease, caller.policy.ttl)
