"""Admission and settlement of a call of ``Once``: the rules of a request, with results and errors instead of responses.

A call has no headers, no caller and no client that could be sent a problem. So it raises an exception where a request
gets a problem. Its result is stored as a ``Response``, so that backends, the ledger and every tool that reads records
know only one kind of record. The generators yield commands, and the order of the commands is the rule.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TypeVar

from open_idempotency import events
from open_idempotency._core import problems, quotas, recording
from open_idempotency._core.admission import keep_alive, make_claim, readable_stages, wait_in_slot
from open_idempotency._core.attempt import Attempt, NotRenewable
from open_idempotency._core.commands import Claim, Complete, Fail, Get, Look, Release, Steps, ask
from open_idempotency._core.models import (
    Busy,
    ClaimResult,
    Finished,
    Lease,
    Leased,
    Mismatch,
    Refusal,
    Refused,
    Response,
    Status,
)
from open_idempotency._core.notify import notify, warn
from open_idempotency._core.recording import lost, make_sure
from open_idempotency._core.settlement import complete, find_committed, forget, is_in_ledger, let_go
from open_idempotency._core.stored_response import RESPONSE, decode_response, unseal
from open_idempotency.exceptions import (
    AlreadyCommitted,
    BackendUnavailable,
    ConfigurationError,
    InProgress,
    KeyReused,
    LeaseLost,
    NotCommitted,
    OutcomeUnknown,
    RecordUnreadable,
    TooManyKeys,
)
from open_idempotency.policy import IdempotencyPolicy

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Entry:
    """A call to admit. ``name``: of the function, for the log. ``scope_id``: the scope whose quota the key counts to.

    ``wait``: seconds for which it waits while another attempt runs.
    """

    claim: Claim
    scope: str
    name: str
    wait: float


def admit_call(entry: Entry, policy: IdempotencyPolicy) -> Steps[Attempt | Response]:
    """Decide what happens to a call: return an attempt to run, or the stored response with the result.

    The attempt has no lease if the backend is down and the policy fails open. Raises ``InProgress``, ``KeyReused``,
    ``OutcomeUnknown``, ``TooManyKeys``, ``BackendUnavailable`` and ``RecordUnreadable``.
    """
    if not policy.enabled:
        return Attempt(policy)
    steps = _begin(entry, policy)
    claim = entry.claim
    if policy.max_live_keys is None:
        return (yield from _or_unprotected(steps, claim, policy, "claim"))
    admission = yield from _or_unprotected(
        quotas.within_quota(steps, claim, entry.scope, policy), claim, policy, "reserve"
    )
    if isinstance(admission, problems.Problem):
        raise TooManyKeys(
            f"{entry.name}: this scope has max_live_keys ({policy.max_live_keys}) live keys; try again later",
            float(admission.retry_after or 1),
        )
    return admission


def _or_unprotected(steps: Steps[T], claim: Claim, policy: IdempotencyPolicy, verb: str) -> Steps[T | Attempt]:
    """Carry out the steps. If the backend is down: raise the error, or with ``fail_open`` run without a lease."""
    record = events.short(claim.record_id)
    try:
        return (yield from steps)
    except RecordUnreadable as error:
        yield from warn(policy, events.BackendFailed.of(record, verb, error))
        raise
    except _NeverOpen as error:
        raise BackendUnavailable(str(error)) from error.__cause__
    except (BackendUnavailable, NotRenewable) as error:
        if isinstance(error, BackendUnavailable):
            yield from warn(policy, events.BackendFailed.of(record, verb, error))
        if not policy.fail_open:
            raise _away(error) from error
        yield from warn(policy, events.FailedOpen(record))
        return Attempt(policy)


class _NeverOpen(BackendUnavailable):
    """An attempt is known, and the backend or the ledger is down: the call does not run, even with ``fail_open``."""


def _away(error: BackendUnavailable | NotRenewable) -> BackendUnavailable:
    why = error.__cause__ if isinstance(error, NotRenewable) else error
    return BackendUnavailable(f"nothing was run, since the backend cannot show whether this ran before: {why}")


def _begin(entry: Entry, policy: IdempotencyPolicy) -> Steps[Attempt | Response]:
    claim = entry.claim
    result: ClaimResult = yield from make_claim(claim, policy)
    if isinstance(result, Busy):
        try:
            awaited = yield from wait_in_slot(claim, result, entry.wait, policy)
        except BackendUnavailable as error:
            raise _NeverOpen(f"{entry.name}: another attempt was running, and now the backend is down") from error
        result = result if awaited is None else awaited
    match result:
        case Leased(lease, stages):
            if stages:
                stages = yield from readable_stages(stages, lease, policy)
            attempt = Attempt.of(lease, stages, policy, entry.name, method="Once", asked=claim.asked)
            yield from keep_alive(attempt, lease)
            return attempt
        case Finished(frame):
            return (yield from _stored(frame, claim, policy))
        case Busy() as busy:
            yield from notify(policy, events.Conflicted, claim.record_id, busy.remaining)
            raise InProgress(
                f"{entry.name}: another attempt with this key is running; try again later, or pass wait=",
                float(problems.retry_after(busy)),
            )
        case Mismatch():
            yield from notify(policy, events.KeyReused, claim.record_id)
            raise KeyReused(
                f"{entry.name}: this key was used with another payload; give each piece of work its own key, or pass "
                "payload= if a part of the arguments differs between deliveries"
            )
        case Refused() as refused:
            return (yield from _no_further_attempt(refused, entry, policy))


def _stored(frame: bytes, of: Claim | Lease, policy: IdempotencyPolicy) -> Steps[Response]:
    stored = decode_response(unseal(frame, RESPONSE, of, policy))
    yield from notify(policy, events.Replayed, of.record_id, stored.status, stored.first_trace)
    return stored


_REFUSALS = {
    Refusal.FAILED: "an earlier attempt failed, and on_failed='reject' does not run it again",
    Refusal.ABANDONED: "the worker of an earlier attempt died, and on_abandoned='reject' does not run it again",
    Refusal.ATTEMPTS: "it was attempted max_attempts times",
    Refusal.WITHDRAWN: "this call was cancelled before it was admitted, and has not run; try again",
}


def _no_further_attempt(refused: Refused, entry: Entry, policy: IdempotencyPolicy) -> Steps[Response]:
    """Refuse a call that the policy does not run again, unless the ledger has its result (S-06b)."""
    claim = entry.claim
    if policy.ledger is not None:
        try:
            known = yield from ask(Look(policy.ledger, claim.record_id, claim.fingerprint))
        except ConfigurationError:
            raise
        except Exception as error:  # the database failed, so a later call has to find out
            yield from warn(policy, events.BackendFailed.of(events.short(claim.record_id), "ledger", error))
            raise _NeverOpen(
                f"{entry.name}: the database of ledger= cannot be asked now whether this was carried out; try again"
            ) from error
        if known is not None:
            return (yield from _stored(known, claim, policy))
    yield from notify(policy, events.Rejected, claim.record_id, refused.reason.value)
    raise OutcomeUnknown(f"{entry.name}: {_REFUSALS[refused.reason]}", refused.reason is Refusal.WITHDRAWN)


# The end of an attempt


def make_sure_of(attempt: Attempt) -> Steps[Response | None]:
    """Check before the function starts who owns the lease, if that is no longer sure (L-10).

    Returns None if the function may start, else the response of the attempt that took over. Raises ``LeaseLost`` if it
    has none, ``BackendUnavailable`` and ``RecordUnreadable``. Then nothing has run, and this attempt is over.
    """
    lease = attempt.lease
    assert lease is not None
    try:
        yield from make_sure(attempt)
    except LeaseLost as error:
        attempt.end()
        return (yield from _supersede(attempt, lease, None, error))
    except (BackendUnavailable, RecordUnreadable):
        attempt.end()
        yield from let_go(attempt, lease, Release(lease), None)
        raise
    return None


def finish_call(attempt: Attempt, response: Response) -> Steps[Response]:
    """Settle the record of an attempt whose function has returned. Returns the response that counts.

    It is another response if the ledger had the result already, or if another attempt took over and has ended. Raises
    ``NotCommitted`` if the transaction of the result was not committed, and ``LeaseLost`` if another attempt runs.
    """
    attempt.end()
    lease = attempt.lease
    if lease is None:
        return response
    error = LeaseLost("another attempt took this call over, and has not ended")
    if not attempt.lost:
        try:
            return (yield from _settle(attempt, lease, response))
        except LeaseLost as refused:
            attempt.record(False)
            yield from lost(attempt, lease)
            error = refused
    return (yield from _supersede(attempt, lease, response, error))


def abort_call(attempt: Attempt, error: BaseException) -> Steps[Response | None]:
    """Settle the record of an attempt whose function raised or was cancelled (L-04); its stages stay.

    Returns the result that replaces the error, if the ledger or a later attempt has one; None if it is to be raised.
    """
    attempt.end()
    lease = attempt.lease
    if lease is None:
        return None
    again = attempt.policy.on_failed if isinstance(error, Exception) else attempt.policy.on_abandoned
    try:
        if not attempt.lost and not isinstance(error, LeaseLost):
            if isinstance(attempt.interrupted, AlreadyCommitted):
                return (yield from _committed_before(attempt, lease, attempt.interrupted.frame))
            if isinstance(attempt.interrupted, KeyReused):
                yield from forget(attempt, lease, None)
            elif attempt.interrupted is not None:  # never for good: a later attempt may ask again
                yield from let_go(attempt, lease, Fail(lease), None)
            else:
                yield from let_go(attempt, lease, Fail(lease, final=again != "resume"), None)
            return None
    except LeaseLost:
        pass
    yield from lost(attempt, lease)
    if not isinstance(error, LeaseLost):
        return None
    return (yield from _supersede(attempt, lease, None, error))


def _settle(attempt: Attempt, lease: Lease, response: Response) -> Steps[Response]:
    if isinstance(attempt.interrupted, AlreadyCommitted):
        return (yield from _committed_before(attempt, lease, attempt.interrupted.frame))
    if attempt.ledger is not None and attempt.ledger.lacks_commit(response):
        yield from warn(attempt.policy, events.Uncommitted(events.short(lease.record_id)))
        yield from let_go(attempt, lease, Fail(lease), None)
        raise NotCommitted(
            "the function returned before the transaction of its tx= or idem.atomic was committed, or after it was "
            "rolled back, so the result is not stored; commit before it returns, as `with session.begin():` does"
        )
    if attempt.keep is False:  # idem.discard(): the next call runs again
        yield from let_go(attempt, lease, Release(lease), response.status)
        return response
    if attempt.unawaited:
        yield from warn(attempt.policy, events.NotAwaited(events.short(lease.record_id), attempt.unawaited[0]))
        yield from let_go(attempt, lease, Fail(lease), None)
        raise NotCommitted(
            f"the function returned and never awaited its stage {attempt.unawaited[0]!r}, which has not run, so the "
            "result is not stored; write `await` before idem.arun(...) or idem.asave_stage(...)"
        )
    yield from complete(attempt, lease, response)
    return response


def _committed_before(attempt: Attempt, lease: Lease, frame: bytes) -> Steps[Response]:
    """Record a result that the ledger has although its record was lost (S-06)."""
    policy, record = attempt.policy, events.short(lease.record_id)
    # The call has met its own result, in the transaction in which it was written (S-06a).
    if is_in_ledger(attempt) and (yield from find_committed(attempt, lease)) is None:
        yield from warn(policy, events.Uncommitted(record))
        yield from let_go(attempt, lease, Fail(lease), None)
        raise NotCommitted("idem.atomic was entered twice in one transaction, which was not committed")
    try:
        stored = decode_response(unseal(frame, RESPONSE, lease, policy))
    except RecordUnreadable as error:
        yield from warn(policy, events.BackendFailed.of(record, "ledger", error))
        yield from let_go(attempt, lease, Release(lease), None)
        raise
    attempt.record()
    try:
        yield from recording.complete(Complete(lease, frame), attempt, lease, stored.status)
    except BackendUnavailable:  # the recording goes on in the background, and the ledger still has the result
        pass
    except RecordUnreadable as error:
        yield from warn(policy, events.BackendFailed.of(record, "complete", error))
    yield from notify(policy, events.Replayed, lease.record_id, stored.status, stored.first_trace, of=attempt)
    return stored


def _supersede(attempt: Attempt, lease: Lease, response: Response | None, error: LeaseLost) -> Steps[Response]:
    """The result of a superseded attempt: the new owner's where there is one (L-03), or its own that was committed.

    Raises ``error`` where there is neither.
    """
    policy = attempt.policy
    try:
        record = yield from ask(Get(lease.record_id))
        if record and record.status is Status.COMPLETED and record.response is not None:
            if hmac.compare_digest(record.fingerprint, lease.fingerprint):
                return (yield from _stored(record.response, lease, policy))
    except (BackendUnavailable, RecordUnreadable) as failed:
        yield from warn(policy, events.BackendFailed.of(events.short(lease.record_id), "get", failed))
    if response is not None and attempt.ledger is not None and attempt.ledger.counts(response):
        return response
    committed = yield from find_committed(attempt, lease)
    if committed is not None:
        return committed
    raise error
