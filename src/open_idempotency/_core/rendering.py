"""The responses that are sent instead of the handler's: a problem, or a stored response again.

A problem is sent as application/problem+json (RFC 9457), as Stripe's API would send it, or by the policy's renderer.
Each one gets a random reference, which the log has beside the record and the attempt (O-32). A stored response is
marked, its length is counted anew, and ``on_replay=`` may change it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import DrawReference, Steps, ask
from open_idempotency._core.models import Headers, Request, Response
from open_idempotency._core.notify import cause, warn
from open_idempotency._core.problems import Problem
from open_idempotency._core.stored_response import BODILESS, REPLAYED, check, location, origin_of
from open_idempotency.policy import DOCS_URL_TYPE, IdempotencyPolicy, pairs_of

# The type and status of Stripe's errors for our problems, and the code where Stripe has one for it. What Stripe does
# not know is an error of the server (its client libraries take that type for anything unexpected).
_STRIPE: Mapping[str, tuple[str, int, str | None]] = {
    "key-missing": ("invalid_request_error", 400, None),
    "key-malformed": ("invalid_request_error", 400, None),
    "not-authenticated": ("invalid_request_error", 401, None),
    "forbidden": ("invalid_request_error", 403, None),
    "key-reused": ("idempotency_error", 400, None),
    "body-too-large": ("invalid_request_error", 413, None),
    "in-progress": ("invalid_request_error", 409, "idempotency_key_in_use"),
    "outcome-unknown": ("api_error", 409, None),
    "not-replayable": ("api_error", 409, None),
    "too-many-keys": ("invalid_request_error", 429, "rate_limit"),
    "backend-unavailable": ("api_error", 503, None),
    "record-unreadable": ("api_error", 503, None),
    "not-committed": ("api_error", 500, None),
}


def refuse(
    problem: Problem,
    policy: IdempotencyPolicy,
    instance: str,
    record_id: bytes = b"",
    attempt: int | None = None,
    of: Request | Attempt | None = None,
) -> Steps[Response]:
    """The problem as a response, with a reference of its own, which an event reports too.

    ``instance``: the path of the request. ``record_id``: of the record that the problem is about; empty where the
    request was refused before its record was known. ``attempt``: the number of the attempt that it is about; None where
    none is known of. ``of``: the request that gets the problem.
    """
    problem = replace(problem, instance=instance, reference=(yield from ask(DrawReference())))
    record = events.short(record_id)
    status = problem.status
    try:
        response = render(problem, policy)
        status = response.status
    finally:  # a renderer that raises is reported by the framework, as a 500
        yield from warn(policy, events.ProblemSent(record, problem.reference, problem.name, status, attempt), of)
    return response


def render(problem: Problem, policy: IdempotencyPolicy) -> Response:
    """The response, made by the policy's renderer or in one of the two built-in forms, with ``problem_headers``."""
    form = policy.render_problem
    response = _FORMS[policy.compat](problem, policy) if form is None else form(problem)
    if policy.problem_headers:
        own = {name.lower() for name, _ in response.headers}
        added = [(name.lower().encode(), value.encode()) for name, value in pairs_of(policy.problem_headers)]
        response = replace(response, headers=[*response.headers, *(each for each in added if each[0] not in own)])
    return response


def _as_problem_document(problem: Problem, policy: IdempotencyPolicy) -> Response:
    """The members of RFC 9457, section 3.1, and the library's own."""
    members: dict[str, object] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": problem.instance,
        "retryable": problem.retryable,
        "reference": problem.reference,
        **problem.extra,
    }
    return _respond(problem, policy, problem.status, b"application/problem+json", members, [])


def _as_stripe_error(problem: Problem, policy: IdempotencyPolicy) -> Response:
    """The error object of Stripe's API. A problem without a code of Stripe's gets one in the same style."""
    kind, status, code = _STRIPE[problem.name]
    error: dict[str, object] = {
        "type": kind,
        "code": code or problem.name.replace("-", "_"),
        "message": problem.detail,
        "reference": problem.reference,
        **problem.extra,
    }
    if policy.docs_url:
        error["doc_url"] = _documented_at(problem, policy.docs_url)
    # Stripe's client libraries try every 409 and 5xx again with the same key, unless this header says not to.
    again = b"true" if problem.retryable else b"false"
    return _respond(problem, policy, status, b"application/json", {"error": error}, [(b"stripe-should-retry", again)])


def _respond(
    problem: Problem,
    policy: IdempotencyPolicy,
    status: int,
    content_type: bytes,
    members: Mapping[str, object],
    further: Headers,
) -> Response:
    body = json.dumps(members).encode()
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *further,
    ]
    if problem.retry_after is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after))
    if problem.challenge is not None:
        headers.append((b"www-authenticate", problem.challenge.encode("ascii")))
    if policy.docs_url:
        url = _documented_at(problem, policy.docs_url)
        headers.append((b"link", f'<{url}>; rel="describedby"'.encode("latin-1")))
    return Response(status, headers, body)


def _documented_at(problem: Problem, docs_url: str) -> str:
    """The page of this kind of problem."""
    return docs_url.replace(DOCS_URL_TYPE, problem.name)


_FORMS: Mapping[str | None, Callable[[Problem, IdempotencyPolicy], Response]] = {
    None: _as_problem_document,
    "stripe": _as_stripe_error,
}


# A stored response, sent again

# Headers that a replay gets here or from its server; on_replay= cannot set them.
_OF_REPLAYS = frozenset({REPLAYED[0], b"connection", b"content-length", b"date", b"transfer-encoding"})


def replayed(stored: Response, request_headers: Headers = ()) -> Response:
    """A stored response as it is sent again: marked, with its length counted anew. CORS headers are sent only to the
    origin that they were made for. ``request_headers``: of the request that gets it.
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
    """The stored response as ``on_replay=`` returns it; unchanged if the hook fails, since nothing may run again."""
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
