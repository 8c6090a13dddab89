"""Whose request it is, where its view changes that: a login, a logout, a registration, a new password (O-14).

The scope of a request is what it was at the claim. Its retry comes from whoever the view has made of the caller, so it
would have another record. The session tells: a new one carries the id of the record at which it began, and one that the
view has ended is known by its secret, from which a pointer to the record is found. Nobody else has either of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.callers import Caller
from open_idempotency._core.commands import Claim, Complete, Get
from open_idempotency._core.drivers import Steps, ask
from open_idempotency._core.frames import decode_response, encode_response
from open_idempotency._core.models import Leased, Status
from open_idempotency._core.notify import warn
from open_idempotency._core.requests import Response
from open_idempotency._core.sealing import seal, unseal
from open_idempotency.exceptions import RecordUnreadable

_POINTER = b"pointer"
_FIELD = b"record"


class Session(Protocol):
    """What an adapter knows of the session with which a request came. It is asked behind ``identify``."""

    def carried(self, caller: Caller) -> bytes | None:
        """The record at which this session began, if that was by this very request; None else."""
        ...

    def lost(self) -> str | None:
        """The digest of the session that the client presents, if there is none of that secret (any more)."""
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A view has made somebody else of its caller. ``carried``: whether the new session knows the record.

    ``lost``: the digest of the session with which the request came, if the view has ended that.
    """

    carried: bool
    lost: str | None = None


def told(change: Callable[[], Change | None]) -> Change | None:
    """What an adapter's session says. Whatever it raises, the view has run, and its outcome is not lost for it."""
    try:
        return change()
    except Exception:  # of the framework, of a user's model, of what the view has put into the session
        return Change(carried=False)


def find_record(caller: Caller, session: Session) -> Steps[bytes | None]:
    """The record at which this request began, under another caller (O-14); None where nothing tells of one.

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
    attempt.session_changed = True
    found = change.carried
    if change.lost is not None:
        try:
            found = (yield from _point(attempt, caller, caller.of_session(change.lost), owner)) or found
        except Exception as error:  # whatever it is, the view has run, and its outcome is not lost for it
            yield from warn(attempt.policy, events.BackendFailed.of(events.short(lease.record_id), "follow", error))
    yield from warn(attempt.policy, events.CallerChanged(events.short(lease.record_id), found))


def _point(attempt: Attempt, caller: Caller, pointer: bytes, owner: bytes) -> Steps[bool]:
    """Record where the record of this attempt is; whether that is on record now."""
    assert attempt.lease is not None
    claim = _claim_of(pointer, attempt.lease.fingerprint, owner, caller)
    answer = yield from ask(claim)
    if not isinstance(answer, Leased):  # an earlier attempt was here
        return True
    frame = encode_response(Response(200, [(_FIELD, attempt.lease.record_id.hex().encode("ascii"))], b""))
    yield from ask(Complete(answer.lease, seal(frame, _POINTER, answer.lease, attempt.policy)))
    return True


def _claim_of(record: bytes, fingerprint: bytes, owner: bytes, caller: Caller) -> Claim:
    return Claim(record, fingerprint, owner, caller.policy.lease, caller.policy.ttl)
