"""``BackendContract``: every contract of this package in one class, with the fixtures that the tests use.

``FailureContract`` is the part for local failures: without threads, file descriptors or memory a backend counts as
unavailable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Complete,
    Completed,
    Fail,
    Get,
    Lease,
    Leased,
    Release,
    Renew,
    Renewal,
    Reserve,
    SaveStage,
    Unreserve,
    Withdraw,
)
from open_idempotency.conformance.claims import ClaimContract, FreeContract
from open_idempotency.conformance.late_claims import Held, LateClaimContract, WaitingContract
from open_idempotency.conformance.owners import OwnerContract, StageContract
from open_idempotency.conformance.records import ExpiryContract, OperatorContract, QuotaContract
from open_idempotency.conformance.sizes import Narrow, SizeContract
from open_idempotency.conformance.support import LEASE, TTL, AsyncVerbs, ManualClock, claim_of, lease_of, stage_of
from open_idempotency.exceptions import BackendUnavailable

_FAILURES: list[Callable[[], Exception]] = [
    MemoryError,
    lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    lambda: RuntimeError("can't start new thread"),
]


async def _calls(verbs: AsyncVerbs, lease: Lease) -> list[tuple[str, Any]]:
    record_id = lease.record_id
    calls: list[tuple[str, Any]] = [
        ("claim", claim_of(os.urandom(32))),
        ("renew", Renew([lease])),
        ("save_stage", SaveStage(lease, stage_of("a stage"))),
        ("complete", Complete(lease, b"response")),
        ("fail", Fail(lease)),
        ("release", Release(lease)),
        ("withdraw", Withdraw(claim_of(os.urandom(32)))),
        ("get", Get(record_id)),
        ("delete", os.urandom(32)),
        ("purge", 10),
    ]
    if verbs.quotas:
        calls += [
            ("reserve", Reserve(os.urandom(32), record_id, 5, LEASE, TTL)),
            ("unreserve", Unreserve(os.urandom(32), record_id)),
        ]
    return calls


async def refused(call: Callable[[], Awaitable[Any]], failure: Exception) -> bool:
    """Whether ``call`` raised ``BackendUnavailable``. Fails if ``failure`` is not among its causes."""
    try:
        await call()
    except BackendUnavailable as error:
        cause: BaseException | None = error
        while cause is not None and cause is not failure:
            cause = cause.__cause__
        assert cause is failure, "BackendUnavailable does not have the failure as its cause"
        return True
    return False


class FailureContract:
    """B-10a: failures of this process or its machine."""

    @pytest.mark.parametrize("failing", _FAILURES, ids=["memory", "files", "threads"])
    async def test_a_local_failure_counts_as_backend_unavailable(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, failing: Callable[[], Exception]
    ) -> None:
        """B-10a: every verb that meets the failure raises ``BackendUnavailable`` with its cause, and has no effect."""
        lease = await lease_of(verbs, record_id)
        for verb, command in await _calls(verbs, lease):
            failure = failing()
            clock.fails_with = failure
            # AsyncVerbs is a backend itself, so its own verbs would not show what the backend under test raises.
            was_refused = await refused(lambda: verbs.call(verb, command), failure)  # noqa: B023 (awaited at once)
            clock.fails_with = None
            if verb == "claim" and was_refused:
                outcome = await verbs.claim(claim_of(command.record_id))
                assert isinstance(outcome, Leased)
                assert outcome.lease.attempt == 1
            if not was_refused and verb in ("complete", "fail", "release"):
                return  # the backend reads no clock for this verb, so the attempt has ended
        assert await verbs.renew(Renew([lease])) == [Renewal.OWNED]
        assert await verbs.complete(Complete(lease, b"response")) == Completed()


class BackendContract(
    ClaimContract,
    LateClaimContract,
    OwnerContract,
    StageContract,
    ExpiryContract,
    FailureContract,
    FreeContract,
    OperatorContract,
    QuotaContract,
    SizeContract,
    WaitingContract,
):
    """The tests that a backend must pass. Subclass it in a test module, and override the fixture ``backend``."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock that the backend must use."""
        return ManualClock()

    @pytest.fixture
    def backend(self, clock: ManualClock) -> Backend | AsyncBackend:
        """Override it: the backend under test, empty and on ``clock``."""
        raise NotImplementedError("override the fixture 'backend': return an empty backend on the fixture 'clock'")

    @pytest.fixture
    def held(self) -> Held:
        """Override it if the server can hold up claims: return a backend on the server's own clock, with ``hold``."""
        pytest.skip("override the fixture 'held' to test that a claim which waited for a lock gets the larger token")

    @pytest.fixture
    def narrow(self) -> Narrow:
        """Override it if the backend can refuse a value for its size: return an empty one, and two sizes."""
        pytest.skip("override the fixture 'narrow' to test that a value over the backend's limit raises RecordTooLarge")

    @pytest.fixture
    async def verbs(self, backend: Backend | AsyncBackend) -> AsyncIterator[AsyncVerbs]:
        """The backend under test with async verbs; closed after the test."""
        verbs = AsyncVerbs(backend)
        yield verbs
        await verbs.close()

    @pytest.fixture
    def record_id(self) -> bytes:
        """A new, random record id."""
        return os.urandom(32)
