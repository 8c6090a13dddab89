"""Keeping: from a live answer to the bytes that are stored of it. Without the fields of the moment, within the size
limit, redacted, framed, sealed; the live answer is never changed.

A hook that fails here has an outcome in its hands, and so has a process without memory, so something is stored in any
case; but never what the hook was there to take out, and never plain bytes that were to be sealed and could be told
anything from.
"""

from __future__ import annotations

from open_idempotency import events
from open_idempotency._core.codecs import encode_response
from open_idempotency._core.drivers import Steps
from open_idempotency._core.models import Lease
from open_idempotency._core.replay import kept, omitted
from open_idempotency._core.requests import Answer, Headers
from open_idempotency._core.sealing import seal
from open_idempotency._core.telling import cause, warn
from open_idempotency.exceptions import BackendUnavailable
from open_idempotency.policy import IdempotencyPolicy

_SESSION_COOKIE = (b"set-cookie", b"")


def small_form(answer: Answer, policy: IdempotencyPolicy) -> Answer:
    """What the policy stores of a live response, before it is redacted."""
    return kept(answer, policy.max_response_bytes, policy.keep_headers, policy.drop_headers)


def stored_form(
    answer: Answer, kind: bytes, lease: Lease, policy: IdempotencyPolicy, session_changed: bool = False
) -> Steps[tuple[bytes, bool]]:
    """What is stored of an answer, and whether its body is in it. ``kind``: ``sealing.ANSWER`` or ``FAILURE``.

    ``session_changed``: somebody around the middleware gives the client a cookie that is not in the answer yet.
    """
    small = small_form(answer, policy)
    live = [*answer.headers, _SESSION_COOKIE] if session_changed else answer.headers
    if policy.redact is not None:
        frame, whole = yield from _redacted(small, live, lease, policy)
    else:
        if len(small.headers) != len(live):
            small.omitted = omitted(small, live, policy.drop_headers)
        frame, whole = _framed(small)
    try:
        return seal(frame, kind, lease, policy), whole
    except BackendUnavailable as error:
        # Told from anything that is plain, the status alone is left. Its reader refuses it (503), and nothing runs.
        yield from _told(policy, lease, "encryption", error)
        return _bare_tombstone(answer.status), False


def _framed(small: Answer) -> tuple[bytes, bool]:
    try:
        return encode_response(small), small.body is not None
    except (ValueError, MemoryError):
        # A response that no server would send either, or no memory for a copy of it. The work is done all the same,
        # so a tombstone stands for it: a retry that ran again would be a second run.
        return _bare_tombstone(small.status), False


def _redacted(small: Answer, live: Headers, lease: Lease, policy: IdempotencyPolicy) -> Steps[tuple[bytes, bool]]:
    assert policy.redact is not None
    try:
        redacted = policy.redact(small)
        if not isinstance(redacted, Answer):
            raise TypeError(f"redact= returned {type(redacted).__name__}, not an answer")
        # By the same rules again: the hook may have added a field of the moment, or made the body longer.
        again = small_form(redacted, policy)
        again.omitted = omitted(again, live, policy.drop_headers)
        return encode_response(again), again.body is not None
    except Exception as error:
        yield from _told(policy, lease, "redact", error)
        return _bare_tombstone(small.status), False


def _bare_tombstone(status: int) -> bytes:
    return encode_response(Answer(status if 200 <= status <= 999 else 500, (), None))


def _told(policy: IdempotencyPolicy, lease: Lease, hook: str, error: Exception) -> Steps[None]:
    yield from warn(policy, events.HookFailed(events.short(lease.record_id), hook, cause(error)))
