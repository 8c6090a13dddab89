"""Admission: from a request with a key to an attempt to run, or the answer to send instead.

Generators that yield commands; the order in which they do is the rule. A bad key is answered before anything is
read, the body is whole before the claim is made, and nothing runs before the claim is answered.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.codecs import decode_response
from open_idempotency._core.commands import Call, Claim, Emit, Now, Release, Sleep
from open_idempotency._core.drivers import Steps, ask
from open_idempotency._core.fingerprint import fingerprint
from open_idempotency._core.keys import caller_scope, parse_key, record_id
from open_idempotency._core.models import Busy, ClaimAnswer, Finished, Leased, Mismatch, Refused
from open_idempotency._core.requests import Answer, Body, Headers, Request
from open_idempotency._core.telling import FIRST_PAUSE, LONGEST_PAUSE, cause, sendable, tell, warn
from open_idempotency.exceptions import (
    BackendUnavailable,
    BodyTooLarge,
    KeyRejected,
    KeyRequired,
    RecordUnreadable,
)
from open_idempotency.policy import IdempotencyPolicy

_PREFER_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)


@dataclass(slots=True)
class Intake:
    """What an adapter brings to be admitted. The two callables are of the adapter's own colour.

    ``identify`` returns the framework's verified user (``str``) or None; ``receive`` reads the body whole and raises
    ``BodyTooLarge``. ``owner``: 16 random bytes.
    """

    request: Request
    key_fields: Headers
    owner: bytes
    identify: Callable[[], str | Awaitable[str | None] | None]
    receive: Callable[[], Body | Awaitable[Body]]


def admit(intake: Intake, policy: IdempotencyPolicy) -> Steps[Attempt | Answer]:
    """Decide what happens to a covered request: an attempt to run, or the answer to send instead.

    A bad key is answered before anything is read, and the body is whole before the claim is made. The attempt has no
    lease where there was no key, or where the backend is down and the policy fails open.
    Raises ``ScopeUnknown`` and whatever the adapter's callables raise.
    """
    request = intake.request
    try:
        key = parse_key(intake.key_fields, policy)
        if key is None:
            return Attempt(policy)
        user = yield from ask(Call(intake.identify))
        scope = caller_scope(request, user, key, policy)
        request.body = yield from ask(Call(intake.receive))
    except KeyRequired as error:
        return _refuse(problems.key_missing(str(error)), request, policy)
    except KeyRejected as error:
        return _refuse(problems.key_malformed(str(error)), request, policy)
    except BodyTooLarge:
        return _refuse(problems.body_too_large(policy.max_request_bytes), request, policy)
    claim = Claim(
        record_id=record_id(scope, key, policy),
        fingerprint=fingerprint(request, policy),
        owner=intake.owner,
        lease=policy.lease,
        ttl=policy.ttl,
        resume_failed=policy.on_failed == "resume",
        resume_abandoned=policy.on_abandoned == "resume",
        max_attempts=policy.max_attempts,
    )
    return (yield from _begin(claim, request, policy))


def _begin(claim: Claim, request: Request, policy: IdempotencyPolicy) -> Steps[Attempt | Answer]:
    try:
        answer = yield from _claim_patiently(claim, _patience(request, policy))
        return (yield from _answer_claim(answer, claim, request, policy))
    except BackendUnavailable as error:
        yield from warn(policy, events.BackendFailed(events.short(claim.record_id), "claim", cause(error)))
        if not policy.fail_open:
            return _refuse(problems.backend_unavailable(), request, policy)
        yield from warn(policy, events.FailedOpen(events.short(claim.record_id)))
        return Attempt(policy)
    except RecordUnreadable as error:
        yield from warn(policy, events.BackendFailed(events.short(claim.record_id), "claim", cause(error)))
        return _refuse(problems.record_unreadable(), request, policy)


def _answer_claim(
    answer: ClaimAnswer, claim: Claim, request: Request, policy: IdempotencyPolicy
) -> Steps[Attempt | Answer]:
    record = events.short(claim.record_id)
    match answer:
        case Leased(lease, stages):
            yield from tell(policy, events.Claimed, record, lease.attempt)
            return Attempt.of(lease, stages, policy, _instance(request))
        case Finished(frame):
            return (yield from _replay(frame, claim.record_id, request, policy))
        case Busy() as busy:
            yield from tell(policy, events.Conflicted, record, busy.remaining)
            return _refuse(problems.in_progress(busy), request, policy)
        case Mismatch():
            yield from tell(policy, events.KeyReused, record)
            return _refuse(problems.key_reused(), request, policy)
        case Refused(reason, _, frame):
            if frame is not None and policy.on_failed == "replay":
                return (yield from _replay(frame, claim.record_id, request, policy))
            yield from tell(policy, events.Rejected, record, reason.value)
            return _refuse(problems.outcome_unknown(reason), request, policy)


def _replay(frame: bytes, record: bytes, request: Request, policy: IdempotencyPolicy) -> Steps[Answer]:
    stored = decode_response(frame)
    yield from tell(policy, events.Replayed, events.short(record), stored.status)
    return sendable(stored, _instance(request), policy)


def _claim_patiently(claim: Claim, patience: float) -> Steps[ClaimAnswer]:
    """The answer to a claim; while somebody else is running, asked again for ``patience`` seconds (O-04)."""
    answer = yield from _claim(claim)
    if patience <= 0 or not isinstance(answer, Busy):
        return answer
    deadline = (yield from ask(Now())) + patience
    pause = FIRST_PAUSE
    while isinstance(answer, Busy):
        left = deadline - (yield from ask(Now()))
        if left <= 0:
            break
        yield from ask(Sleep(min(pause, left)))
        pause = min(pause * 1.5, LONGEST_PAUSE)
        answer = yield from _claim(claim)
    return answer


def _claim(claim: Claim) -> Steps[ClaimAnswer]:
    try:
        return (yield from ask(claim))
    except (Exception, GeneratorExit):  # a suspended engine that is thrown away can ask nothing more
        raise
    except BaseException:
        # Cancelled between the question and its answer: the claim may stand. Asked again as the same owner the
        # backend says so (B-08), and it can be given back instead of blocking the key for a whole lease.
        yield from _withdraw(claim)
        raise


def _withdraw(claim: Claim) -> Steps[None]:
    try:
        answer = yield from ask(claim)
        if isinstance(answer, Leased):
            yield from ask(Release(answer.lease))
    except Exception as error:
        yield from ask(Emit(events.BackendFailed(events.short(claim.record_id), "release", cause(error)), None))


def _patience(request: Request, policy: IdempotencyPolicy) -> float:
    """Seconds that this duplicate waits: its own ``Prefer: wait=N`` (RFC 7240), capped, or the policy's."""
    if policy.max_wait > 0:
        for value in request.header(b"prefer"):
            match = _PREFER_WAIT.search(value)
            if match:
                return min(float(match[1]), policy.max_wait)
    return policy.wait


def _refuse(problem: problems.Problem, request: Request, policy: IdempotencyPolicy) -> Answer:
    return problems.render(problem, policy, _instance(request))


def _instance(request: Request) -> str:
    return request.path.decode("latin-1")
