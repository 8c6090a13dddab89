"""How a stored response is sent again: marked, with its length counted anew, and changed by ``on_replay=``."""

from __future__ import annotations

from dataclasses import replace

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Steps
from open_idempotency._core.models import Headers, Request, Response
from open_idempotency._core.notify import cause, warn
from open_idempotency._core.rendering import refuse
from open_idempotency._core.stored_response import BODILESS, REPLAYED, check, location, origin_of
from open_idempotency.policy import IdempotencyPolicy

# What a replay gets here, or its server writes; on_replay= can set none of them.
_OF_REPLAYS = frozenset({REPLAYED[0], b"connection", b"content-length", b"date", b"transfer-encoding"})


def replayed(stored: Response, request_headers: Headers = ()) -> Response:
    """A stored response as it is sent again: marked, with its length counted anew, and with CORS headers for the origin
    that they are for. ``request_headers``: of the request that gets it.
    """
    headers = [*stored.headers, REPLAYED]
    if stored.cors and stored.cors.origin == origin_of(request_headers):
        headers += stored.cors.headers
    if stored.status in BODILESS:
        return Response(stored.status, headers, b"", note=stored.note)
    body = stored.body or b""
    return Response(stored.status, [*headers, (b"content-length", b"%d" % len(body))], body, note=stored.note)


def sendable(
    stored: Response,
    request_headers: Headers,
    record_id: bytes,
    instance: str,
    policy: IdempotencyPolicy,
    of: Request | Attempt,
) -> Steps[Response]:
    """A stored response as it is sent again; for one whose body was not stored, the problem that says so (O-11).

    ``request_headers`` and ``instance``, the path: of the request that gets it, which is ``of``.
    """
    if stored.body is not None:
        if policy.on_replay is not None:
            stored = yield from _changed(stored, of, record_id, policy)
        return replayed(stored, request_headers)
    target = location(stored.headers)
    problem = problems.not_replayable(stored.status, target.decode("latin-1") if target else None)
    return (yield from refuse(problem, policy, instance, record_id, None, of))


def _changed(stored: Response, of: Request | Attempt, record_id: bytes, policy: IdempotencyPolicy) -> Steps[Response]:
    """The stored response as ``on_replay=`` returns it; as it is where the hook fails, since nothing may run again."""
    request = of if isinstance(of, Request) else of.hook_request
    if policy.on_replay is None or request is None:
        return stored
    try:
        # A copy: an error halfway leaves what is stored whole.
        changed = policy.on_replay(Response(stored.status, list(stored.headers), stored.body), request)
        if not isinstance(changed, Response):
            raise TypeError(f"on_replay= returned {type(changed).__name__}, not a Response")
        if not isinstance(changed.body, bytes):
            raise TypeError(f"the body of what on_replay= returned is {type(changed.body).__name__}, not bytes")
        # As for a response that is stored: no framing, and no header that belongs to one connection.
        headers = [(name, value) for name, value in changed.headers if name.lower() not in _OF_REPLAYS]
        check(changed.status, headers)
    except Exception as error:
        yield from warn(policy, events.HookFailed(events.short(record_id), "on_replay", cause(error)), of)
        return stored
    return replace(stored, status=changed.status, headers=headers, body=changed.body)


def replay(
    stored: Response,
    request_headers: Headers,
    record_id: bytes,
    instance: str,
    policy: IdempotencyPolicy,
    of: Request | Attempt,
) -> Steps[Response]:
    """``sendable``, and an event if credentials of the first response are missing in this one (O-21a)."""
    if stored.omitted:
        lacking = stored.omitted.decode("latin-1")
        event = events.ReplayedWithoutCredentials(events.short(record_id), stored.status, lacking)
        yield from warn(policy, event, of)
    return (yield from sendable(stored, request_headers, record_id, instance, policy, of))
