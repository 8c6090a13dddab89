"""The whole contract in one class, and the fixtures that its parts use."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.conformance.claims import ClaimContract
from open_idempotency.conformance.expiry import ExpiryContract
from open_idempotency.conformance.failures import FailureContract
from open_idempotency.conformance.late_claims import Held, LateClaimContract
from open_idempotency.conformance.operators import OperatorContract
from open_idempotency.conformance.owners import OwnerContract
from open_idempotency.conformance.quotas import QuotaContract
from open_idempotency.conformance.stages import StageContract
from open_idempotency.conformance.support import AsyncVerbs, ManualClock
from open_idempotency.conformance.waiting import WaitingContract


class BackendContract(
    ClaimContract,
    LateClaimContract,
    OwnerContract,
    StageContract,
    ExpiryContract,
    FailureContract,
    OperatorContract,
    QuotaContract,
    WaitingContract,
):
    """Subclass it and override the fixture ``backend``."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The backend's time."""
        return ManualClock()

    @pytest.fixture
    def backend(self, clock: ManualClock) -> Backend | AsyncBackend:
        """The empty backend to be tested, on ``clock``; override it."""
        raise NotImplementedError("override the fixture 'backend'")

    @pytest.fixture
    def held(self) -> Held:
        """A backend on the store's own clock, in which claims can be held up; override it where the store can do so."""
        pytest.skip("override the fixture 'held' to show that tokens grow where claims wait for each other")

    @pytest.fixture
    async def verbs(self, backend: Backend | AsyncBackend) -> AsyncIterator[AsyncVerbs]:
        """The backend with awaited verbs; closed after the test."""
        verbs = AsyncVerbs(backend)
        yield verbs
        await verbs.close()

    @pytest.fixture
    def record_id(self) -> bytes:
        """A record id that nobody else has."""
        return os.urandom(32)
