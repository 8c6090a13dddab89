"""The checks of the crash matrix find wrong leases, and accept a slow or failed backend."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from open_idempotency.backend import Record, Status
from tests.faults.matrix import Outcome
from tests.faults.matrix_leases import Look, Retried, check_attempt, check_given_back, check_waited, retried
from tests.wire.case import store_failed
from tests.wire.client import Response

LEASE = 1.5
#: long after these tests have sent what they send
START = time.time() + 36_000
LONG_AGO = -72_000.0
WAITS = Outcome(attempt=2, waits=True)
RESPONSE = Response(201, [], b"attempt 2 abc")
IN_PROGRESS = Response(409, [], b'{"type": "urn:problem-type:open-idempotency:in-progress"}')
UNAVAILABLE = Response(503, [], b'{"type": "urn:problem-type:open-idempotency:backend-unavailable"}')


def look(token: int = 1, claimed: float = 0.0, end: float = LEASE, *, at: float = 0.0, ended: bool = False) -> Look:
    """A record whose times are in seconds after the start."""
    status = Status.COMPLETED if ended else Status.IN_PROGRESS
    times = (START + claimed, START + end, 60.0, START + end + 60.0)
    return Look(Record(b"id", b"", status, b"", token, token, *times), START + at)


DEAD = look(at=0.1)
TAKEN_OVER = look(2, claimed=LEASE, end=LEASE + 0.3, ended=True)
TOO_EARLY = look(2, claimed=LEASE - 0.5, end=LEASE, ended=True)


def scripted(*responses: Response, looks: list[Look]) -> Retried:
    """The result of a retry with these responses and records."""
    left = iter(responses)

    def ask() -> tuple[Response, bool]:
        response = next(left)
        return response, store_failed(response, "BackendFailed")

    seen: Iterator[Look] = itertools.chain(looks[:-1], itertools.repeat(looks[-1]))
    return retried(ask, lambda: next(seen), 10.0)


@pytest.mark.parametrize(
    "responses", [(RESPONSE,), (IN_PROGRESS, RESPONSE), (UNAVAILABLE, RESPONSE)], ids=["", "409", "503"]
)
def test_a_takeover_after_the_lease_is_right_however_slow_the_machine_was(responses: tuple[Response, ...]) -> None:
    """L-02: without a refused duplicate, and with a failed backend, too."""
    done = scripted(*responses, looks=[DEAD, *[DEAD] * (IN_PROGRESS in responses), TAKEN_OVER])
    check_waited(WAITS, LEASE, done)
    check_attempt(WAITS, done)


@pytest.mark.parametrize(
    "responses", [(RESPONSE,), (IN_PROGRESS, RESPONSE), (UNAVAILABLE, RESPONSE)], ids=["", "409", "503"]
)
def test_a_takeover_beside_a_living_lease_is_found(responses: tuple[Response, ...]) -> None:
    """I1: after any response, a 503 of the backend included."""
    done = scripted(*responses, looks=[DEAD, *[DEAD] * (IN_PROGRESS in responses), TOO_EARLY])
    with pytest.raises(AssertionError, match="beside a living lease"):
        check_waited(WAITS, LEASE, done)


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ([DEAD, DEAD], "without a claim"),
        ([Look(None, START), TAKEN_OVER], "no record"),
        ([look(ended=True), TAKEN_OVER], "ended without its worker"),
        ([look(end=LEASE / 2), TAKEN_OVER], "less than"),
        ([look(end=2 * LEASE), look(2, claimed=2 * LEASE, end=3 * LEASE, ended=True)], "more than"),
    ],
)
def test_what_is_wrong_with_a_lease_is_found(looks: list[Look], words: str) -> None:
    """I1, I5: a wrong length, end or owner."""
    with pytest.raises(AssertionError, match=words):
        check_waited(WAITS, LEASE, scripted(RESPONSE, looks=looks))


def test_a_lease_that_is_renewed_without_its_worker_is_found() -> None:
    """I5: one renewal may have been on its way, and no more."""
    looks = [DEAD, look(end=LEASE + 0.5, at=0.6), look(end=LEASE + 1.0, at=1.1), look(2, 4.0, 4.1, ended=True)]
    check_waited(WAITS, LEASE, scripted(IN_PROGRESS, RESPONSE, looks=[*looks[:2], looks[3]]))
    with pytest.raises(AssertionError, match="renewed without its worker"):
        check_waited(WAITS, LEASE, scripted(IN_PROGRESS, IN_PROGRESS, RESPONSE, looks=looks))


def test_a_refusal_after_the_leases_end_is_found() -> None:
    """O-03, L-02: no retry waits for longer than the lease."""
    ended = look(claimed=LONG_AGO, end=LONG_AGO + LEASE, at=LONG_AGO + LEASE)
    with pytest.raises(AssertionError, match="after the lease's end"):
        check_waited(WAITS, LEASE, scripted(IN_PROGRESS, RESPONSE, looks=[ended, ended, TAKEN_OVER]))


def test_a_refusal_where_nothing_is_in_the_way_is_found() -> None:
    """L-04: except after a claim without a reply, which may have a lease of its own."""
    at_once = Outcome(attempt=2)
    with pytest.raises(AssertionError, match="refused"):
        check_waited(at_once, LEASE, scripted(IN_PROGRESS, RESPONSE, looks=[DEAD, DEAD, TAKEN_OVER]))
    check_waited(at_once, LEASE, scripted(UNAVAILABLE, IN_PROGRESS, RESPONSE, looks=[DEAD, DEAD, TAKEN_OVER]))


def test_a_retry_that_waited_for_a_lease_that_should_have_been_given_back_is_found() -> None:
    """L-04, L-06: by when the record was taken over, and not by the duration of the test."""
    check_given_back(Outcome(attempt=2), scripted(RESPONSE, looks=[DEAD, TOO_EARLY]), DEAD)
    with pytest.raises(AssertionError, match="waited for the lease"):
        check_given_back(Outcome(attempt=2), scripted(RESPONSE, looks=[DEAD, look(2, 2.0, 2.1, ended=True)]), DEAD)


@pytest.mark.parametrize(("failures", "attempt", "right"), [(0, 2, True), (0, 3, False), (1, 3, True), (1, 4, False)])
def test_each_attempt_has_a_run_or_a_store_that_failed(failures: int, attempt: int, right: bool) -> None:
    """I2: a claim without a reply may have been an attempt."""
    response: Any = RESPONSE._replace(body=b"attempt %d abc" % attempt)
    done = scripted(*[UNAVAILABLE] * failures, response, looks=[DEAD, TAKEN_OVER])
    if right:
        check_attempt(WAITS, done)
    else:
        with pytest.raises(AssertionError):
            check_attempt(WAITS, done)


def test_a_response_of_a_store_that_failed_is_believed_with_the_log_of_the_server_alone() -> None:
    """O-12: without a logged failure, a server that refuses for no reason would pass for a busy machine."""
    with pytest.raises(AssertionError, match="nothing failed"):
        store_failed(UNAVAILABLE, "all is well")
    unrecorded = RESPONSE._replace(headers=[(b"idempotency-status", b"unrecorded")])
    assert store_failed(unrecorded, "open_idempotency BackendFailed(record='…')")
    assert not store_failed(RESPONSE, "")
