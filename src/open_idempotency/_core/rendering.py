"""How a problem is sent: as application/problem+json (RFC 9457), or as the policy's own renderer makes it."""

from __future__ import annotations

import json
from dataclasses import replace

from open_idempotency._core.problems import Problem
from open_idempotency._core.requests import Answer
from open_idempotency.policy import IdempotencyPolicy


def render(problem: Problem, policy: IdempotencyPolicy, instance: str) -> Answer:
    """The problem as an answer: the policy's renderer, or the members of RFC 9457 section 3.1 and ours.

    ``instance``: the path of the request.
    """
    problem = replace(problem, instance=instance)
    if policy.render_problem is not None:
        return policy.render_problem(problem)
    members: dict[str, object] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": problem.instance,
        "retryable": problem.retryable,
        "reuse_key": problem.reuse_key,
        **problem.extra,
    }
    body = json.dumps(members).encode()
    return Answer(problem.status, _headers(problem, policy, len(body)), body)


def _headers(problem: Problem, policy: IdempotencyPolicy, length: int) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % length),
        (b"cache-control", b"no-store"),
    ]
    if problem.retry_after is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after))
    if policy.docs_url:
        headers.append((b"link", f'<{policy.docs_url}>; rel="describedby"'.encode("latin-1")))
    return headers
