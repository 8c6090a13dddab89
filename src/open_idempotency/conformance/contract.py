"""``BackendContract``: every contract of this package in one class, with the fixtures that the tests use."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.conformance.claims import ClaimContract
from open_idempotency.conformance.failures import FailureContract
from open_idempotency.conformance.late_claims import Held, LateClaimContract, WaitingContract
from open_idempotency.conformance.owners import OwnerContract, StageContract
from open_idempotency.conformance.quotas import QuotaContract
from open_idempotency.conformance.records import ExpiryContract, OperatorContract
from open_idempotency.conformance.sizes import Narrow, SizeContract
from open_idempotency.conformance.support import AsyncVerbs, ManualClock


class BackendContract(
    ClaimContract,
    LateClaimContract,
    OwnerContract,
    StageContract,
    ExpiryContract,
    FailureContract,
    OperatorContract,
    QuotaContract,
    SizeContract,
    WaitingContract,
):
    """The tests that a backend has to pass. Subclass it in a test module, and override the fixture ``backend``."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock that the backend has to use."""
        return ManualClock()

    @pytest.fixture
    def backend(self, clock: ManualClock) -> Backend | AsyncBackend:
        """Override it: the backend under test, empty and on ``clock``."""
        raise NotImplementedError("override the fixture 'backend': return an empty backend on the fixture 'clock'")

    @pytest.fixture
    def held(self) -> Held:
        """Override it if the store can hold claims up: a backend on the store's own clock, with ``hold``."""
        pytest.skip("override the fixture 'held' to test that a claim which waited for a lock gets the larger token")

    @pytest.fixture
    def narrow(self) -> Narrow:
        """Override it if the store can refuse a value for its size: an empty backend, and sizes around its limit."""
        pytest.skip("override the fixture 'narrow' to test that a value over the store's limit raises RecordTooLarge")

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
