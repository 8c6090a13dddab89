"""Checks of a cell's leases, by the record in the backend, which hold on a slow machine too.

Nothing here depends on how long something took. Times are those of the backend, whose clock is this machine's. A
request is compared with the lease that the record had when the request was sent and when its response came. A backend
that did not respond (503) says nothing about a lease, and lets no attempt run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from open_idempotency.backend import Record, Status
from tests.faults.matrix import Outcome
from tests.wire.client import Response

#: seconds: stores keep times in milliseconds, and this process reads another clock of the same machine
_ROUNDED = 0.02
_STEP = 0.005


class Look(NamedTuple):
    """A record, and when it was read; ``record`` is None if there was none."""

    record: Record | None
    at: float


class Refusal(NamedTuple):
    """A duplicate that was refused: when it was sent, and the record after that response."""

    sent: float
    look: Look
    #: whether the backend failed for an earlier duplicate, whose own lease may block this one
    after_failure: bool


class Retried(NamedTuple):
    """The record when its worker could do nothing more, what duplicates got, and the record at the end."""

    before: Look
    refused: Sequence[Refusal]
    #: the number of duplicates for which the backend failed
    failures: int
    response: Response
    after: Look


class Asked(Protocol):
    """Sends the request; whether the backend failed is the second value."""

    def __call__(self) -> tuple[Response, bool]: ...


def retried(ask: Asked, look: Callable[[], Look], seconds: float) -> Retried:
    """Repeat a request until it is admitted and its response is on record, up to this many seconds."""
    before, refused, failures = look(), list[Refusal](), 0
    deadline = time.monotonic() + seconds
    while True:
        assert time.monotonic() < deadline, f"still refused after {seconds} s: {failures} failures, {refused[-1:]}"
        sent = time.time()
        response, failed = ask()
        if failed:
            failures += 1
        elif b":in-progress" in response.body:
            refused.append(Refusal(sent, look(), failures > 0))
        else:
            return Retried(before, refused, failures, response, look())
        time.sleep(_STEP)


def check_waited(outcome: Outcome, lease: float, retried: Retried) -> None:
    """Check that no attempt ran beside a lease that may have been alive, and none was refused for longer (I1, I5)."""
    looks = [retried.before, *(refusal.look for refusal in retried.refused)]
    _check_lengths(lease, [*looks, retried.after])
    if outcome.waits:
        _check_taken_over(lease, looks, retried.after)
    else:
        assert all(refusal.after_failure for refusal in retried.refused), f"refused: {retried.refused}"
    for sent, (record, _), _ in retried.refused:
        if record is not None and record.status is Status.IN_PROGRESS:
            assert sent <= record.lease_end + _ROUNDED, f"refused {sent - record.lease_end} s after the lease's end"


def _check_lengths(lease: float, looks: Sequence[Look]) -> None:
    for record, at in looks:
        if record is not None and record.status is Status.IN_PROGRESS:
            assert record.lease_end - record.claimed_at >= lease - _ROUNDED, f"a lease of less than {lease} s: {record}"
            assert record.lease_end <= at + lease + _ROUNDED, f"a lease of more than {lease} s: {record}"


def _check_taken_over(lease: float, looks: Sequence[Look], after: Look) -> None:
    dead = looks[0].record
    assert dead is not None, "there is no record of the attempt whose worker ended"
    assert dead.status is Status.IN_PROGRESS, f"the attempt was ended without its worker: {dead}"
    ends = [look.record.lease_end for look in looks if look.record is not None and look.record.token == dead.token]
    # One renewal may have been in flight when the worker ended.
    assert len(set(ends)) <= 2, f"renewed without its worker: {ends}"
    assert after.record is not None, "the attempt that took over left no record"
    assert after.record.token > dead.token, "it ran without a claim of its own"
    assert after.record.claimed_at >= max(ends) - _ROUNDED, "it ran beside a living lease"


def check_given_back(outcome: Outcome, retried: Retried, begun: Look) -> None:
    """Check that the retry did not wait: the lease was released or taken over before its end (L-04, L-06).

    ``begun``: the record before anything was done to its worker.
    """
    if begun.record is None or outcome.waits:
        return
    after = retried.after.record
    assert after is not None
    since = after.lease_end if after.token == begun.record.token else after.claimed_at
    assert since <= begun.record.lease_end, f"it waited for the lease: {begun.record.lease_end} {after}"


def check_attempt(outcome: Outcome, retried: Retried) -> None:
    """Check that the response is that of the attempt that the matrix names (I2, I4).

    A claim whose reply was lost may be an attempt that never ran, so there may be one more for each.
    """
    assert (retried.response.status, retried.response.replayed) == (201, outcome.replays)
    found = re.search(rb"attempt (\d+) ", retried.response.body)
    assert found is not None, retried.response.body
    unknown = 0 if outcome.replays else retried.failures
    assert outcome.attempt <= int(found[1]) <= outcome.attempt + unknown, retried.response.body
