"""Detects two services that store their keys under one application name on one backend (O-22).

If one of the services passes its caller's key and credentials on to the other, both requests lead to one record. The
second request is refused as a duplicate (409), or as another request with the key (422), on every try. ``application=``
separates the services. Without ``application=``, the owner of each claim carries a digest of the host that its request
was sent to. So a refused request can be compared with the one that holds the key. The claim costs no further call.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from open_idempotency import events
from open_idempotency._core.commands import Claim, Get, Now, Steps, ask
from open_idempotency._core.models import Request
from open_idempotency._core.notify import Advice, warn
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy

# Owners of earlier versions are random all through. One in 16 million begins like this.
_MARK = b"oi@"
_END = len(_MARK) + 4


def owner_at_host(owner: bytes, request: Request, policy: IdempotencyPolicy) -> bytes:
    """The owner of a claim with a digest of the request's host in it; 9 of its 16 bytes stay random.

    The owner is unchanged if ``application=`` is set, if hosts have keys of their own, or if the request names no host.
    """
    if policy.application or policy.scope_by_host:
        return owner
    for name, value in request.headers:
        if name == b"host":
            return _begin_of(value.lower()) + owner[_END:]
    return owner


# A service has few names. The bound is for a client that makes names up.
@lru_cache(maxsize=64)
def _begin_of(host: bytes) -> bytes:
    return _MARK + hashlib.sha256(host).digest()[:4]


def look_for_another_service(claim: Claim, request: Request, advice: Advice, policy: IdempotencyPolicy) -> Steps[None]:
    """Report, once, that the key of a refused request is held by a request to another host. Raises nothing.

    It costs one read of the record, when one key is refused for the third time, and at most once in ten seconds.
    """
    mine = claim.owner[:_END]
    if not mine.startswith(_MARK) or not advice.may_look(claim.record_id, (yield from ask(Now()))):
        return
    try:
        record = yield from ask(Get(claim.record_id))
    except (BackendUnavailable, RecordUnreadable) as error:
        yield from warn(policy, events.BackendFailed.of(events.short(claim.record_id), "get", error), request)
        return
    if record is not None and record.owner.startswith(_MARK) and record.owner[:_END] != mine:
        advice.has_found()
        path = request.path.decode("latin-1")
        yield from warn(policy, events.NameShared.of(events.short(claim.record_id), request.method, path), request)
