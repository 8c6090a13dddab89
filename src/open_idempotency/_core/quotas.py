"""Quotas: how many keys of one caller may be live at the same moment (``max_live_keys``).

The decision of ``reserve`` is a pure function, which backends with a lock or a transaction run; the engine's steps
around it are here too. A reservation stands for one key of one caller. It is made before the claim, so that a caller
over its quota makes no record. It says how much is kept, never whether a request may run again: that is the record's.
"""

from __future__ import annotations

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Get, Reserve, Unreserve
from open_idempotency._core.drivers import Steps, ask
from open_idempotency._core.models import Lease, OverQuota, Reserved, ReserveResult
from open_idempotency._core.notify import notify, warn
from open_idempotency.policy import IdempotencyPolicy


def decide(
    end: float | None, taken: int, earliest: float, c: Reserve, now: float
) -> tuple[ReserveResult, float | None]:
    """Decide a reservation; the result, and the end to write, None where nothing is to be written.

    ``end``: that of this key's reservation, None where there is none. ``taken``: how many of the scope end after
    ``now``, and ``earliest``: the first end of those; neither matters where this key is one of them. All in seconds
    on the backend's clock.
    """
    reserved = end is not None and end > now
    if not reserved and taken >= c.limit:
        return OverQuota(max(0.0, earliest - now)), None
    needed = now + c.lease + c.ttl
    if reserved and end is not None and end >= needed:
        return Reserved(), None
    # One lease more than the record may need, so that a repeat soon after only reads (B-11b).
    return Reserved(), needed + c.lease


def reserve(c: Reserve, policy: IdempotencyPolicy) -> Steps[problems.Problem | None]:
    """Count a key before its claim; what to refuse the request with, None where it may go on to its claim."""
    result = yield from ask(c)
    if not isinstance(result, OverQuota):
        return None
    # A record may outlive its reservation: it ran for long, or it is older than the quota. Its duplicates go on.
    if (yield from ask(Get(c.record_id))) is not None:
        return None
    yield from notify(policy, events.QuotaReached, c.record_id, c.limit)
    return problems.too_many_keys(result.remaining)


def take_back(c: Reserve, policy: IdempotencyPolicy) -> Steps[None]:
    """After a request that was cancelled before it ran: the key counts no more, unless there is a record of it."""
    try:
        if (yield from ask(Get(c.record_id))) is None:
            yield from ask(Unreserve(c.scope_id, c.record_id))
    except Exception as error:  # it counts until it expires
        yield from warn(policy, events.BackendFailed.of(events.short(c.record_id), "unreserve", error))


def unreserve(attempt: Attempt, lease: Lease) -> Steps[None]:
    """The record is gone: its key counts no more."""
    if attempt.scope_id is None:
        return
    try:
        yield from ask(Unreserve(attempt.scope_id, lease.record_id))
    except Exception as error:  # it counts until it expires; the response is the same
        record = events.short(lease.record_id)
        yield from warn(attempt.policy, events.BackendFailed.of(record, "unreserve", error))
