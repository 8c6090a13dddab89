"""A worker that stood still for longer than its lease: before its next effect it asks who owns the lease.

The heartbeat notices the loss too, but the handler may continue first.
"""

from __future__ import annotations

from asyncio import CancelledError
from math import inf

import pytest

from open_idempotency import idem
from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Release, Renew
from open_idempotency._core.models import Body, Renewal
from open_idempotency._core.settlement import begin
from open_idempotency._engine.engine import new_owner
from open_idempotency._runtime import clocks
from open_idempotency.exceptions import BackendUnavailable, LeaseLost
from tests.unit.builders import Clock, RecordingBackend, Script, attempt_of, body_of, request_of
from tests.unit.stages.stage_client import Client, Counted

LEASE = 30.0


class Site:
    """A backend whose clock stands still, a client of it, and a worker that can be frozen."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.backend = RecordingBackend(clock=self.clock)
        self.client = Client(backend=self.backend, lease=LEASE, record_within=0.01)

    def freeze(self, attempt: Attempt) -> None:
        """Move the backend's clock and the worker's clock by more than a lease."""
        self.clock.now += LEASE + 1
        attempt.sure_until -= LEASE + 1


@pytest.fixture
def site() -> Site:
    """A site for each test."""
    return Site()


def test_a_claim_is_good_for_one_lease_from_when_it_was_asked_for(site: Site) -> None:
    """L-03: the time that the reply needs does not extend it."""
    before = clocks.elapsed()
    with site.client.request() as attempt:
        assert before + LEASE <= attempt.sure_until <= clocks.elapsed() + LEASE


@pytest.mark.anyio
async def test_the_same_where_the_claim_is_awaited(site: Site) -> None:
    """L-03: the async claim counts from the same moment as the sync one."""
    fields = [(b"idempotency-key", b"0123456789abcdef")]

    async def identify() -> None:
        return None

    async def receive() -> Body:
        return body_of(b"{}")

    intake = Intake(request_of(), fields, new_owner(), identify, receive)
    before = clocks.elapsed()
    attempt = await site.client.engine.aio.run(admit(intake, site.client.engine.policy))
    assert isinstance(attempt, Attempt)
    assert before + LEASE <= attempt.sure_until <= clocks.elapsed() + LEASE


def test_while_the_lease_is_known_to_last_a_stage_asks_nothing(site: Site) -> None:
    """A stage costs one round trip."""
    with site.client.request():
        idem.run("charge", Counted())
    assert site.backend.renewals == []


def test_an_effect_is_not_had_by_a_worker_that_was_superseded_while_it_stood_still(site: Site) -> None:
    """L-03, S-07: the new owner has the effect, once."""
    charge = Counted()
    with site.client.request() as attempt:
        site.freeze(attempt)
        with site.client.request() as successor:
            idem.run("charge", charge)
            assert successor.lease is not None
            assert successor.lease.attempt == 2
        with pytest.raises(LeaseLost):
            idem.run("charge", charge)
        assert attempt.lost
    assert charge.calls == 1


@pytest.mark.anyio
async def test_the_same_in_a_coroutine(site: Site) -> None:
    """L-03, S-07: an awaited stage of a superseded worker has no effect either."""
    charge = Counted()
    with site.client.request() as attempt:
        site.freeze(attempt)
        with site.client.request():
            await idem.arun("charge", charge)
        with pytest.raises(LeaseLost):
            await idem.arun("charge", charge)
    assert charge.calls == 1


def test_a_worker_whom_nobody_superseded_goes_on_and_is_sure_again(site: Site) -> None:
    """L-03: it asks once, and not again for each further stage."""
    charge, receipt = Counted(), Counted()
    with site.client.request() as attempt:
        site.freeze(attempt)
        idem.run("charge", charge)
        idem.run("receipt", receipt)
        assert attempt.sure_until > clocks.elapsed()
    assert (charge.calls, receipt.calls, len(site.backend.renewals)) == (1, 1, 1)


def test_no_effect_happens_while_the_owner_of_the_lease_is_unknown(site: Site) -> None:
    """L-03, O-12: an owner that cannot reach the backend no longer counts as the owner."""
    charge = Counted()
    with site.client.request() as attempt:
        site.freeze(attempt)
        site.backend.failure = BackendUnavailable("away")
        with pytest.raises(BackendUnavailable):
            idem.run("charge", charge)
        site.backend.failure = None
        idem.run("charge", charge)
    assert charge.calls == 1


def test_a_stage_that_is_on_record_is_recalled_without_a_question(site: Site) -> None:
    """S-01: there is no effect to prevent."""
    with site.client.request() as attempt:
        idem.run("charge", Counted(7))
    with site.client.request() as attempt:
        site.freeze(attempt)
        assert idem.run("charge", Counted(8)) == 7
    assert site.backend.renewals == []


def test_a_handler_does_not_begin_while_the_owner_of_the_lease_is_unknown() -> None:
    """L-10, O-12: nothing has run, so the claim is released, and the client gets a retryable problem."""
    attempt = attempt_of()
    script = Script({Renew: [BackendUnavailable("away")], Release: [None]})
    response = script.run(begin(attempt))
    assert (response.status, attempt.phase) == (503, Phase.ENDED)
    assert script.names() == ["Renew", "Release"]


def test_a_beginning_that_is_cancelled_gives_the_claim_back() -> None:
    """L-10, L-04: the handler has not run."""
    script = Script({Renew: [CancelledError()], Release: [None]})
    with pytest.raises(CancelledError):
        script.run(begin(attempt_of()))
    assert script.names() == ["Renew", "Release"]


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    """L-10: a worker that stands still again before the reply asks again."""
    attempt = attempt_of()
    script = Script({Renew: [[Renewal.OWNED]]}, clock=7.0)
    assert script.run(begin(attempt)) is None
    assert attempt.sure_until == 7.0 + LEASE


def test_without_a_lease_there_is_nothing_to_ask(site: Site) -> None:
    """S-03: a covered request without a key has no lease."""
    with site.client.request(key=b"") as attempt:
        assert attempt.sure_until == inf
        idem.run("charge", Counted())
    assert site.backend.renewals == []
