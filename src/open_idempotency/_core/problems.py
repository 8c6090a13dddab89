"""The answers of our own: application/problem+json (RFC 9457), never stored, never replayed.

``retryable`` tells a client whether another try makes sense, ``reuse_key`` whether with the same key. No problem
carries anything of another caller, nor the key itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from open_idempotency._core.models import Busy, Refusal

TYPE_PREFIX = "urn:problem-type:open-idempotency:"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, before it is rendered. ``retry_after``: seconds; ``extra``: further members."""

    name: str
    status: int
    title: str
    detail: str
    retryable: bool
    reuse_key: bool
    instance: str = ""
    retry_after: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def type(self) -> str:
        """The URN that identifies the kind of problem."""
        return TYPE_PREFIX + self.name


def key_missing(detail: str) -> Problem:
    """O-06: the route requires a key."""
    return Problem("key-missing", 400, "Idempotency key missing", detail, True, False)


def key_malformed(detail: str) -> Problem:
    """O-06: the key cannot be used."""
    return Problem("key-malformed", 400, "Idempotency key malformed", detail, True, False)


def key_reused() -> Problem:
    """O-05: the key belongs to another request."""
    detail = "This key was used with another method, path, query or body. Send a new request with a new key."
    return Problem("key-reused", 422, "Idempotency key reused", detail, True, False)


def body_too_large(limit: int) -> Problem:
    """O-07: a request with a key is never run unprotected because of its size."""
    detail = f"With an idempotency key a request body may have {limit} bytes at most."
    return Problem("body-too-large", 413, "Request body too large", detail, False, False)


def in_progress(busy: Busy) -> Problem:
    """O-03: the first request is still running."""
    return Problem(
        "in-progress",
        409,
        "Request in progress",
        "The first request with this key is still running. Retry later with the same key.",
        True,
        True,
        retry_after=retry_after(busy),
    )


def retry_after(busy: Busy) -> int:
    """Seconds: as long again as it has been running, 1 to 10, never past the end of the lease and one more."""
    wanted = math.ceil(min(max(busy.elapsed, 1.0), 10.0))
    return min(wanted, math.floor(max(0.0, busy.remaining) + 1.0))


_OUTCOME_UNKNOWN = {
    Refusal.FAILED: "An earlier attempt failed, and this service does not run it again.",
    Refusal.ABANDONED: "The worker of an earlier attempt died, and it is not known how far it got.",
    Refusal.ATTEMPTS: "The request was attempted as often as this service allows.",
}


def outcome_unknown(reason: Refusal) -> Problem:
    """O-09, O-10: no further attempt is admitted."""
    detail = _OUTCOME_UNKNOWN[reason] + " Find out what happened before you send it with a new key."
    return Problem("outcome-unknown", 409, "Outcome unknown", detail, False, False)


def not_replayable(status: int, location: str | None) -> Problem:
    """O-11: completed, but the response could not be kept."""
    extra: dict[str, object] = {"original_status": status}
    if location is not None:
        extra["location"] = location
    detail = "The request was completed, but its response was too large to be kept. It is not run again."
    return Problem("not-replayable", 409, "Response not replayable", detail, False, False, extra=extra)


def backend_unavailable(retry_after: int = 1) -> Problem:
    """O-12: without the backend nothing is run."""
    return Problem(
        "backend-unavailable",
        503,
        "Idempotency backend unavailable",
        "Whether this request was run before cannot be told now; it was not run. Retry with the same key.",
        True,
        True,
        retry_after=retry_after,
    )


def record_unreadable() -> Problem:
    """B-08b: the record of this key cannot be read; it is neither run over nor overwritten."""
    return Problem(
        "record-unreadable",
        503,
        "Idempotency record unreadable",
        "The record of this key cannot be read; the request was not run. Retry with the same key.",
        True,
        True,
        retry_after=10,
    )


def superseded() -> Problem:
    """L-03: this attempt outlived its lease, and the one that took over has no answer yet."""
    return Problem(
        "in-progress",
        409,
        "Request in progress",
        "Another attempt took this request over and is still running. Retry with the same key.",
        True,
        True,
        retry_after=1,
    )
