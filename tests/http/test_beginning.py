"""A process that stands still between the reply to its claim and the handler, for longer than the lease.

Its event loop is blocked, its thread is not scheduled, or the process is frozen. Another worker may have taken over
meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import encode_response
from open_idempotency.backend import Claim, Complete, Lease, Leased
from tests.http.conftest import NewCase
from tests.http.endpoints import charge
from tests.http.sites import Case, assert_problem
from tests.http.variants import SHORT_LEASE, on_memory_only

pytestmark = [on_memory_only]


def _stands_still(_: Claim) -> None:
    time.sleep(1.2 * SHORT_LEASE)


def _is_superseded(case: Case, then: Callable[[Lease], None] = lambda _: None) -> Callable[[Claim], None]:
    """Stand still for longer than the lease, while another worker begins the second attempt."""

    def take_over(claim: Claim) -> None:
        _stands_still(claim)
        result = case.watched.inner.claim(replace(claim, owner=os.urandom(16), lease=60.0))
        assert isinstance(result, Leased)
        assert result.lease.attempt == 2
        then(result.lease)

    return take_over


def test_a_handler_does_not_begin_beside_the_attempt_that_took_over(new_case: NewCase) -> None:
    """L-10: the worker asks who owns the lease, and its client gets a retryable problem."""
    case = new_case(charge, "short lease")
    case.watched.after_claim.append(_is_superseded(case))
    assert_problem(case.send(), "in-progress", 409, retryable=True)
    assert case.runs == []


def test_its_client_gets_the_response_of_the_attempt_that_took_over(new_case: NewCase) -> None:
    """L-10, L-03: if that attempt has ended already."""
    case = new_case(charge, "short lease")

    def complete(lease: Lease) -> None:
        case.watched.inner.complete(Complete(lease, encode_response(Response(201, [], b"of the other worker"))))

    case.watched.after_claim.append(_is_superseded(case, complete))
    response = case.send()
    assert (response.status_code, response.text) == (201, "of the other worker")
    assert case.runs == []


def test_a_handler_begins_where_nobody_took_over(new_case: NewCase) -> None:
    """L-10: the worker renews its lease, and is still the first attempt."""
    case = new_case(charge, "short lease")
    case.watched.after_claim.append(_stands_still)
    assert case.send().json() == {"charge": 1}
    assert case.verbs[:2] == ["Claim", "Renew"]
    assert case.send().headers["idempotent-replayed"] == "true"
    assert len(case.runs) == 1


def test_nobody_is_asked_while_the_lease_is_known_to_last(new_case: NewCase) -> None:
    """L-10: a look at the clock suffices."""
    case = new_case(charge)
    assert case.send().status_code == 201
    assert "Renew" not in case.verbs
