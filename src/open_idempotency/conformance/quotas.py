"""The contract of ``reserve`` and ``unreserve``: how many keys of one scope may be live at the same time.

A backend without ``quotas`` has to refuse both verbs. The other tests are skipped for it, with that reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from open_idempotency.backend import Get, OverQuota, Reserve, Reserved, Unreserve
from open_idempotency.conformance.support import LEASE, TTL, AsyncVerbs, ManualClock, lease_of
from open_idempotency.exceptions import ConfigurationError

LIMIT = 5
_MANY = 32
MakeReservation = Callable[..., Reserve]


class QuotaContract:
    """The quota of live keys for each scope: slots, each held by the reservation of one key."""

    @pytest.fixture
    def new_reservation(self, verbs: AsyncVerbs) -> MakeReservation:
        """Makes ``Reserve`` commands for new keys of one scope; arguments replace the default fields."""
        if not verbs.quotas:
            pytest.skip("this backend has no quotas (Backend.quotas is False)")
        scope_id = os.urandom(32)

        def make(record_id: bytes | None = None, *, limit: int = LIMIT, **fields: float) -> Reserve:
            times = {"lease": LEASE, "ttl": TTL, **fields}
            return Reserve(scope_id, record_id or os.urandom(32), limit, **times)

        return make

    async def test_a_backend_without_quotas_refuses_them(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """Without quotas both verbs raise ``ConfigurationError``: a limit is never silently ignored."""
        if verbs.quotas:
            assert await verbs.reserve(Reserve(record_id, record_id, LIMIT, LEASE, TTL)) == Reserved()
            return
        with pytest.raises(ConfigurationError):
            await verbs.reserve(Reserve(record_id, record_id, LIMIT, LEASE, TTL))
        with pytest.raises(ConfigurationError):
            await verbs.unreserve(Unreserve(record_id, record_id))

    async def test_reservations_are_refused_above_the_limit(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """The refusal reports the seconds until the first slot becomes free."""
        outcomes = []
        for _ in range(LIMIT):
            outcomes.append(await verbs.reserve(new_reservation()))
            clock.advance(1)
        assert outcomes == [Reserved()] * LIMIT
        over = await verbs.reserve(new_reservation())
        assert isinstance(over, OverQuota)
        assert LEASE + TTL - LIMIT - 0.001 <= over.remaining <= 2 * LEASE + TTL - LIMIT + 0.001

    async def test_a_key_that_counts_is_never_refused(
        self, verbs: AsyncVerbs, new_reservation: MakeReservation
    ) -> None:
        """Duplicates and retries pass at the limit, and take no second slot below it."""
        reservations = [new_reservation() for _ in range(LIMIT)]
        for one in [*reservations, *reservations]:
            assert await verbs.reserve(one) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation()), OverQuota)

    async def test_each_command_has_its_own_limit(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """Routes may have different limits. Each counts all live keys of the scope."""
        for _ in range(3):
            assert await verbs.reserve(new_reservation()) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=3)), OverQuota)
        assert await verbs.reserve(new_reservation(limit=4)) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)

    async def test_scopes_are_counted_separately(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """I10: the same record id in another scope takes a slot of that scope only."""
        one = new_reservation(limit=1)
        assert await verbs.reserve(one) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)
        other = Reserve(os.urandom(32), one.record_id, 1, LEASE, TTL)
        assert await verbs.reserve(other) == Reserved()
        await verbs.unreserve(Unreserve(other.scope_id, other.record_id))
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)

    async def test_a_key_counts_as_long_as_its_record_may_live(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """A reservation lasts for lease plus TTL at least, and for one more lease at most."""
        assert await verbs.reserve(new_reservation(limit=1)) == Reserved()
        clock.advance(LEASE + TTL - 0.5)
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)
        clock.advance(LEASE + 0.5)
        assert await verbs.reserve(new_reservation(limit=1)) == Reserved()

    async def test_a_retry_prolongs_its_reservation(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """A retry may prolong its record, so it prolongs the reservation too, however soon it comes."""
        for pause in (LEASE / 2, TTL / 2):
            one = new_reservation(limit=1)
            assert await verbs.reserve(one) == Reserved()
            clock.advance(pause)
            assert await verbs.reserve(one) == Reserved()
            clock.advance(LEASE + TTL - 0.5)
            assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)
            clock.advance(LEASE + 0.5)

    async def test_each_reservation_has_its_own_end(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """A short reservation frees its slot before an older long one, and the refusal reports the earlier end."""
        await verbs.reserve(new_reservation(limit=2))
        await verbs.reserve(new_reservation(limit=2, lease=1.0, ttl=10.0))
        over = await verbs.reserve(new_reservation(limit=2))
        assert isinstance(over, OverQuota)
        assert 11 - 0.001 <= over.remaining <= 12 + 0.001
        clock.advance(12)
        assert await verbs.reserve(new_reservation(limit=2)) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=2)), OverQuota)

    async def test_a_key_whose_reservation_expired_counts_as_new(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """An expired reservation holds no slot, even if it has not been purged."""
        one = new_reservation(limit=1)
        await verbs.reserve(one)
        clock.advance(2 * LEASE + TTL)
        await verbs.reserve(new_reservation(limit=1))
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_an_expired_reservation_does_not_readmit_its_key(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """Its own key needs a free slot as well, even before the expired reservation is deleted."""
        one = new_reservation(limit=1, lease=1.0, ttl=10.0)
        await verbs.reserve(one)
        await verbs.reserve(new_reservation(limit=2))
        clock.advance(12)
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_unreserving_frees_the_slot(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """Repeating ``unreserve`` has no effect and frees no second slot."""
        one, other = new_reservation(limit=2), new_reservation(limit=2)
        await verbs.reserve(one)
        await verbs.reserve(other)
        for _ in range(2):
            await verbs.unreserve(Unreserve(one.scope_id, one.record_id))
        assert await verbs.reserve(new_reservation(limit=2)) == Reserved()
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_remaining_ignores_a_slot_that_was_freed(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """The reported time is that of the remaining reservations, so no client retries too early."""
        one = new_reservation(limit=1)
        await verbs.reserve(one)
        clock.advance(TTL)
        await verbs.reserve(new_reservation(limit=2))
        await verbs.unreserve(Unreserve(one.scope_id, one.record_id))
        over = await verbs.reserve(new_reservation(limit=1))
        assert isinstance(over, OverQuota)
        assert over.remaining >= LEASE + TTL - 0.001

    async def test_remaining_uses_the_prolonged_end(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """If the oldest reservation is prolonged, the reported time is that of the next one to end."""
        one = new_reservation(limit=1)
        await verbs.reserve(one)
        clock.advance(TTL / 2)
        await verbs.reserve(new_reservation(limit=2))
        assert await verbs.reserve(one) == Reserved()
        over = await verbs.reserve(new_reservation(limit=1))
        assert isinstance(over, OverQuota)
        assert over.remaining >= LEASE + TTL - 0.001

    async def test_a_reservation_is_no_record(self, verbs: AsyncVerbs, new_reservation: MakeReservation) -> None:
        """B-09: ``get`` and ``scan`` do not find a reservation, and the claim that follows is attempt 1."""
        one = new_reservation()
        await verbs.reserve(one)
        assert await verbs.get(Get(one.record_id)) is None
        assert [record async for record in verbs.scan()] == []
        assert (await lease_of(verbs, one.record_id)).attempt == 1
        assert [record.record_id async for record in verbs.scan()] == [one.record_id]

    async def test_a_purge_deletes_expired_reservations(
        self, verbs: AsyncVerbs, clock: ManualClock, new_reservation: MakeReservation
    ) -> None:
        """B-09: ``limit`` bounds records and reservations together, and live reservations stay."""
        lasting = new_reservation(limit=100, ttl=10 * TTL)
        for one in (*(new_reservation(limit=100) for _ in range(4)), lasting):
            await verbs.reserve(one)
        await lease_of(verbs, os.urandom(32))
        clock.advance(2 * LEASE + TTL)
        assert await verbs.purge(2) == 2
        assert await verbs.purge() == 3
        assert await verbs.purge() == 0
        assert await verbs.reserve(lasting) == Reserved()
        assert isinstance(await verbs.reserve(new_reservation(limit=1)), OverQuota)

    async def test_concurrent_reservations_do_not_exceed_the_limit(
        self, verbs: AsyncVerbs, new_reservation: MakeReservation
    ) -> None:
        """``reserve`` is atomic."""
        outcomes = await verbs.at_once("reserve", [new_reservation() for _ in range(_MANY)])
        assert outcomes.count(Reserved()) == LIMIT
        assert sum(isinstance(outcome, OverQuota) for outcome in outcomes) == _MANY - LIMIT

    async def test_the_sync_and_the_async_backend_share_quotas(
        self, verbs: AsyncVerbs, new_reservation: MakeReservation
    ) -> None:
        """B-12: what an event loop has reserved counts in a thread."""
        await verbs.reserve(new_reservation(limit=1))
        sync = verbs.to_sync()
        assert isinstance(sync.reserve(new_reservation(limit=1)), OverQuota)
        assert sync.quotas
        assert sync.to_async().quotas
