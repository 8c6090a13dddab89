"""Quotas: how many keys of one caller may be live at the same moment (``max_live_keys``).

The decision of ``reserve`` is a pure function, which backends with a lock or a transaction run; the engine's steps
around it are here too. A policy without ``max_live_keys`` calls nothing of this module. A reservation stands for one
key of one caller. It is made before the claim, so that a caller over its quota makes no record. It says how much is
stored, never whether a request may run again: the record decides that.
"""

from __future__ import annotations

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt, NotRenewable
from open_idempotency._core.commands import Claim, Get, Reserve, Steps, Unreserve, ask
from open_idempotency._core.keys import scope_id
from open_idempotency._core.models import Lease, OverQuota, Request, Reserved, ReserveResult, Response
from open_idempotency._core.notify import notify, warn
from open_idempotency.policy import IdempotencyPolicy


def decide(
    end: float | None, taken: int, earliest: float, c: Reserve, now: float
) -> tuple[ReserveResult, float | None]:
    """Decide a reservation. Returns the result and the end to write, or None if nothing is to be written.

    ``end``: of this key's reservation, or None. ``taken``: how many reservations of the scope end after ``now``.
    ``earliest``: the first of those ends. Neither matters if this key's reservation is among them. All times are
    seconds on the backend's clock.
    """
    reserved = end is not None and end > now
    if not reserved and taken >= c.limit:
        return OverQuota(max(0.0, earliest - now)), None
    needed = now + c.lease + c.ttl
    if reserved and end is not None and end >= needed:
        return Reserved(), None
    # One lease more than the record may need, so that a repeat soon after only reads (B-11b).
    return Reserved(), needed + c.lease


def within_quota(
    begin: Steps[Attempt | Response],
    claim: Claim,
    scope: str,
    policy: IdempotencyPolicy,
    request: Request | None = None,
) -> Steps[Attempt | Response | problems.Problem]:
    """Count a key towards its caller's quota, and then begin its request by the steps ``begin``.

    Returns the problem to refuse the request with if the caller is over the quota. Raises ``BackendUnavailable`` and
    ``RecordUnreadable`` for the reservation, and what ``begin`` raises.
    """
    assert policy.max_live_keys is not None
    reservation = Reserve(scope_id(scope, policy), claim.record_id, policy.max_live_keys, claim.lease, claim.ttl)
    try:
        problem = yield from reserve(reservation, policy, request)
        if problem is not None:
            return problem
        admission = yield from begin
    except NotRenewable as error:
        if error.first:
            yield from take_back(reservation, policy, request)
        raise
    except (Exception, GeneratorExit):  # GeneratorExit: a discarded generator can yield no further command
        raise
    except BaseException:
        yield from take_back(reservation, policy, request)
        raise
    if isinstance(admission, Attempt):
        admission.count_towards(reservation.scope_id)
    return admission


def reserve(c: Reserve, policy: IdempotencyPolicy, request: Request | None = None) -> Steps[problems.Problem | None]:
    """Count a key before its claim. Returns the problem to refuse the request with, or None if it may be claimed."""
    result = yield from ask(c)
    if not isinstance(result, OverQuota):
        return None
    # A record may outlive its reservation: it ran for long, or it is older than the quota. Its duplicates go on.
    if (yield from ask(Get(c.record_id))) is not None:
        return None
    yield from notify(policy, events.QuotaReached, c.record_id, c.limit, of=request)
    return problems.too_many_keys(result.remaining)


def take_back(c: Reserve, policy: IdempotencyPolicy, request: Request | None = None) -> Steps[None]:
    """Stop counting the key of a request that was cancelled before it ran, unless the key has a record."""
    try:
        if (yield from ask(Get(c.record_id))) is None:
            yield from ask(Unreserve(c.scope_id, c.record_id))
    except Exception as error:  # it counts until it expires
        yield from warn(policy, events.BackendFailed.of(events.short(c.record_id), "unreserve", error), request)


def unreserve(attempt: Attempt, lease: Lease, scope_id: bytes) -> Steps[None]:
    """Stop counting the key of a record that is gone. ``scope_id``: the attempt's."""
    try:
        yield from ask(Unreserve(scope_id, lease.record_id))
    except Exception as error:  # it counts until it expires; the response is the same
        record = events.short(lease.record_id)
        yield from warn(attempt.policy, events.BackendFailed.of(record, "unreserve", error), attempt)
