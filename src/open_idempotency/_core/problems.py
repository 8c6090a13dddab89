"""The library's own error responses: application/problem+json (RFC 9457), never stored, never replayed.

A problem with a ``Retry-After`` is temporary: the same request may be sent again after that time, with the same key.
For any other problem a client stops, since a person, or a program that knows more than this library, has to decide
(O-31). No problem contains the key, or any data of another caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from open_idempotency._core.models import Busy, Refusal

TYPE_PREFIX = "urn:problem-type:open-idempotency:"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, before it is rendered.

    ``retry_after``: seconds until the same request may be sent again, with the same key; None if a retry cannot help.
    ``extra``: further members. ``challenge``: the value of ``WWW-Authenticate``, which a 401 must have (RFC 9110,
    section 15.5.2). ``reference``: a random id that is in the log too, made when the problem is sent (O-32).
    """

    name: str
    status: int
    title: str
    detail: str
    instance: str = ""
    retry_after: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict[str, object])
    challenge: str | None = None
    reference: str = ""

    @property
    def type(self) -> str:
        """The URN that identifies the kind of problem."""
        return TYPE_PREFIX + self.name

    @property
    def retryable(self) -> bool:
        """Whether a client may send the same request again, with the same key, after ``retry_after`` seconds."""
        return self.retry_after is not None


def key_missing(detail: str) -> Problem:
    """O-06: the route requires a key."""
    return Problem("key-missing", 400, "Idempotency key missing", detail)


def key_malformed(detail: str) -> Problem:
    """O-06: the key cannot be used."""
    return Problem("key-malformed", 400, "Idempotency key malformed", detail)


def not_authenticated(detail: str, challenge: str) -> Problem:
    """O-20: `scope=` knows no caller of this request."""
    return Problem("not-authenticated", 401, "Not authenticated", detail, challenge=challenge)


def forbidden(detail: str) -> Problem:
    """O-20: `scope=` does not permit this request to its caller."""
    return Problem("forbidden", 403, "Forbidden", detail)


# Added if the service has no ``application=``: then two services may share their keys by accident.
_UNNAMED = " If this service passes its callers' keys on to another service, give each service its own application=."


def key_reused(unnamed: bool = False) -> Problem:
    """O-05: the key belongs to another request. `unnamed`: the policy has no `application=` (O-22)."""
    detail = (
        "This key was used with another method, path, query or body. Send a retry exactly as the request was first "
        "sent, and give a new request a key of its own."
    )
    detail += _UNNAMED if unnamed else ""
    return Problem("key-reused", 422, "Idempotency key reused", detail)


def body_too_large(limit: int) -> Problem:
    """O-07: a request with a key is never run unprotected because of its size."""
    detail = f"The body of a request with an idempotency key may have at most {limit} bytes."
    return Problem("body-too-large", 413, "Request body too large", detail)


def in_progress(busy: Busy, unnamed: bool = False) -> Problem:
    """O-03: the first request is still running. `unnamed`: the policy has no `application=` (O-22)."""
    return Problem(
        "in-progress",
        409,
        "Request in progress",
        "The first request with this key is still running. Retry later with the same key."
        + (_UNNAMED if unnamed else ""),
        retry_after=retry_after(busy),
    )


def retry_after(busy: Busy) -> int:
    """Seconds: as long again as it has been running, 1 to 10, never past the end of the lease and one more."""
    wanted = math.ceil(min(max(busy.elapsed, 1.0), 10.0))
    return min(wanted, math.floor(max(0.0, busy.remaining) + 1.0))


_FIND_OUT = "Find out what happened before you send it with a new key."

# seconds: the other side was asked just now and did not know
_DOUBT_RETRY_AFTER = 5

_OUTCOME_UNKNOWN = {
    Refusal.FAILED: "An earlier attempt failed, and this service does not run it again.",
    Refusal.ABANDONED: "The worker of an earlier attempt died, and it is not known how far it got.",
    Refusal.ATTEMPTS: "The request was attempted as often as this service allows.",
}


def outcome_unknown(reason: Refusal) -> Problem:
    """O-09, O-10: no further attempt is admitted."""
    if reason is Refusal.WITHDRAWN:
        return withdrawn()
    return Problem("outcome-unknown", 409, "Outcome unknown", f"{_OUTCOME_UNKNOWN[reason]} {_FIND_OUT}")


def withdrawn() -> Problem:
    """B-08c: this request was cancelled before it was admitted. It has not run, and the key is free."""
    detail = "The request was cancelled before it was admitted, and has not run. Retry with the same key."
    return Problem("outcome-unknown", 409, "Outcome unknown", detail, retry_after=1)


def stage_in_doubt(retryable: bool) -> Problem:
    """S-04, S-02a: a stage of an earlier attempt has no result on record, and must not be run again.

    ``retryable``: whether the other side may know of it later.
    """
    detail = "An earlier attempt began a step whose result is not on record, and that step is not run again. "
    detail += "Retry later with the same key." if retryable else _FIND_OUT
    after = _DOUBT_RETRY_AFTER if retryable else None
    return Problem("outcome-unknown", 409, "Outcome unknown", detail, retry_after=after)


def not_replayable(status: int, location: str | None) -> Problem:
    """O-11: completed, but the response could not be stored."""
    extra: dict[str, object] = {"original_status": status}
    if location is not None:
        extra["location"] = location
    detail = "The request was completed, but its response was too large to be stored. It is not run again."
    return Problem("not-replayable", 409, "Response not replayable", detail, extra=extra)


# seconds: no client is asked to wait longer than a day, since keys may be released before they expire
_LONGEST_RETRY_AFTER = 86_400


def too_many_keys(remaining: float) -> Problem:
    """The caller has as many live keys as ``max_live_keys`` allows; nothing was run for a new one."""
    return Problem(
        "too-many-keys",
        429,
        "Too many idempotency keys",
        "This caller has as many live keys as this service allows. Retry later with the same key.",
        retry_after=max(1, math.ceil(min(remaining, _LONGEST_RETRY_AFTER))),
    )


def backend_unavailable(retry_after: int = 1) -> Problem:
    """O-12: without the backend nothing is run."""
    return Problem(
        "backend-unavailable",
        503,
        "Idempotency backend unavailable",
        "The request was not run, as the service cannot check whether it ran before. Retry with the same key.",
        retry_after=retry_after,
    )


def ledger_unreachable() -> Problem:
    """S-06b: no further attempt is admitted, and the ledger is unreachable, which may have the response."""
    return Problem(
        "backend-unavailable",
        503,
        "Idempotency backend unavailable",
        "The service cannot check now whether this request was carried out. Retry with the same key.",
        retry_after=1,
    )


def response_unreachable() -> Problem:
    """L-03: this attempt was superseded, and the backend cannot return the response of the later one."""
    return Problem(
        "backend-unavailable",
        503,
        "Idempotency backend unavailable",
        "Another attempt took this request over, and its response cannot be read now. Retry with the same key.",
        retry_after=1,
    )


def record_unreadable() -> Problem:
    """B-08b: the record of this key cannot be read. The request does not run, and the record is not overwritten."""
    return Problem(
        "record-unreadable",
        503,
        "Idempotency record unreadable",
        "The record of this key cannot be read; the request was not run. Retry with the same key.",
        retry_after=10,
    )


def uncommitted() -> Problem:
    """S-05: the transaction of a stage or of the response was left open, or the response's was rolled back."""
    return Problem(
        "not-committed",
        500,
        "Transaction not committed",
        "The service made its response before it had committed the work. Retry with the same key.",
        retry_after=1,
    )


def not_awaited() -> Problem:
    """O-36: an `await` is missing before a stage, which has not run."""
    return Problem(
        "not-committed",
        500,
        "Work not done",
        "The service made its response before it had done the work. Retry with the same key.",
        retry_after=1,
    )


def superseded() -> Problem:
    """L-03: this attempt outlived its lease, and the attempt that took over has no response yet."""
    return Problem(
        "in-progress",
        409,
        "Request in progress",
        "Another attempt took this request over and is still running. Retry with the same key.",
        retry_after=1,
    )
