"""The contract of reserve and unreserve: how many keys of one caller may be live at the same moment.

A backend without ``quotas`` is held to refusing them; the other tests are skipped there, by that name.
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
ReserveOne = Callable[..., Reserve]


class QuotaContract:
    """SPEC section 9: the quota of live keys for each scope."""

    @pytest.fixture
    def place(self, verbs: AsyncVerbs) -> ReserveOne:
        """``place()``: a reservation of a new key of one caller, with some fields of its own."""
        if not verbs.quotas:
            pytest.skip("this backend has no quotas (Backend.quotas is False)")
        scope_id = os.urandom(32)

        def place_of(record_id: bytes | None = None, *, limit: int = LIMIT, **fields: float) -> Reserve:
            times = {"lease": LEASE, "ttl": TTL, **fields}
            return Reserve(scope_id, record_id or os.urandom(32), limit, **times)

        return place_of

    async def test_a_backend_without_quotas_refuses_them(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """Section 9: never silently unlimited."""
        if verbs.quotas:
            assert await verbs.reserve(Reserve(record_id, record_id, LIMIT, LEASE, TTL)) == Reserved()
            return
        with pytest.raises(ConfigurationError):
            await verbs.reserve(Reserve(record_id, record_id, LIMIT, LEASE, TTL))
        with pytest.raises(ConfigurationError):
            await verbs.unreserve(Unreserve(record_id, record_id))

    async def test_the_limit_is_the_last_that_is_admitted(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: one more is told how long the first of them still counts."""
        answers = []
        for _ in range(LIMIT):
            answers.append(await verbs.reserve(place()))
            clock.advance(1)
        assert answers == [Reserved()] * LIMIT
        over = await verbs.reserve(place())
        assert isinstance(over, OverQuota)
        assert LEASE + TTL - LIMIT - 0.001 <= over.remaining <= 2 * LEASE + TTL - LIMIT + 0.001

    async def test_a_key_that_counts_is_never_refused(self, verbs: AsyncVerbs, place: ReserveOne) -> None:
        """Section 9: duplicates and retries go on at the limit, and take no second place below it."""
        places = [place() for _ in range(LIMIT)]
        for one in [*places, *places]:
            assert await verbs.reserve(one) == Reserved()
        assert isinstance(await verbs.reserve(place()), OverQuota)

    async def test_each_call_brings_its_own_limit(self, verbs: AsyncVerbs, place: ReserveOne) -> None:
        """Section 9: routes may have different ones; what counts is how many there are."""
        for _ in range(3):
            assert await verbs.reserve(place()) == Reserved()
        assert isinstance(await verbs.reserve(place(limit=3)), OverQuota)
        assert await verbs.reserve(place(limit=4)) == Reserved()
        assert isinstance(await verbs.reserve(place(limit=1)), OverQuota)

    async def test_callers_do_not_count_for_each_other(self, verbs: AsyncVerbs, place: ReserveOne) -> None:
        """I10: the same key of another caller is another one, and a full quota is its owner's."""
        one = place(limit=1)
        assert await verbs.reserve(one) == Reserved()
        assert isinstance(await verbs.reserve(place(limit=1)), OverQuota)
        other = Reserve(os.urandom(32), one.record_id, 1, LEASE, TTL)
        assert await verbs.reserve(other) == Reserved()
        await verbs.unreserve(Unreserve(other.scope_id, other.record_id))
        assert isinstance(await verbs.reserve(place(limit=1)), OverQuota)

    async def test_a_key_counts_as_long_as_its_record_may_live(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: for a lease and a TTL at least, for one lease more at most."""
        assert await verbs.reserve(place(limit=1)) == Reserved()
        clock.advance(LEASE + TTL - 0.5)
        assert isinstance(await verbs.reserve(place(limit=1)), OverQuota)
        clock.advance(LEASE + 0.5)
        assert await verbs.reserve(place(limit=1)) == Reserved()

    async def test_a_request_makes_its_key_count_anew(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: a retry may prolong its record, so it prolongs the reservation, however soon it comes."""
        for pause in (LEASE / 2, TTL / 2):
            one = place(limit=1)
            assert await verbs.reserve(one) == Reserved()
            clock.advance(pause)
            assert await verbs.reserve(one) == Reserved()
            clock.advance(LEASE + TTL - 0.5)
            assert isinstance(await verbs.reserve(place(limit=1)), OverQuota)
            clock.advance(LEASE + 0.5)

    async def test_each_key_has_its_own_time(self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne) -> None:
        """Section 9: a short one frees its place although a long one was first, and the first end is told."""
        await verbs.reserve(place(limit=2))
        await verbs.reserve(place(limit=2, lease=1.0, ttl=10.0))
        over = await verbs.reserve(place(limit=2))
        assert isinstance(over, OverQuota)
        assert 11 - 0.001 <= over.remaining <= 12 + 0.001
        clock.advance(12)
        assert await verbs.reserve(place(limit=2)) == Reserved()
        assert isinstance(await verbs.reserve(place(limit=2)), OverQuota)

    async def test_a_key_whose_place_was_lost_asks_like_a_new_one(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: an expired reservation is none, also where it has not been purged."""
        one = place(limit=1)
        await verbs.reserve(one)
        clock.advance(2 * LEASE + TTL)
        await verbs.reserve(place(limit=1))
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_an_expired_place_helps_nobody_to_stay(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: while nothing has deleted it, its own key is a new one as well."""
        one = place(limit=1, lease=1.0, ttl=10.0)
        await verbs.reserve(one)
        await verbs.reserve(place(limit=2))
        clock.advance(12)
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_a_place_that_is_given_back_is_free(self, verbs: AsyncVerbs, place: ReserveOne) -> None:
        """Section 9: once, and giving back what is not there is nothing."""
        one, other = place(limit=2), place(limit=2)
        await verbs.reserve(one)
        await verbs.reserve(other)
        for _ in range(2):
            await verbs.unreserve(Unreserve(one.scope_id, one.record_id))
        assert await verbs.reserve(place(limit=2)) == Reserved()
        assert isinstance(await verbs.reserve(one), OverQuota)

    async def test_after_a_place_was_given_back_the_first_end_is_that_of_the_others(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: a client is not told to come back too early."""
        one = place(limit=1)
        await verbs.reserve(one)
        clock.advance(TTL)
        await verbs.reserve(place(limit=2))
        await verbs.unreserve(Unreserve(one.scope_id, one.record_id))
        over = await verbs.reserve(place(limit=1))
        assert isinstance(over, OverQuota)
        assert over.remaining >= LEASE + TTL - 0.001

    async def test_after_a_key_was_prolonged_the_first_end_is_that_of_the_others(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """Section 9: the same where the first of them counts anew."""
        one = place(limit=1)
        await verbs.reserve(one)
        clock.advance(TTL / 2)
        await verbs.reserve(place(limit=2))
        assert await verbs.reserve(one) == Reserved()
        over = await verbs.reserve(place(limit=1))
        assert isinstance(over, OverQuota)
        assert over.remaining >= LEASE + TTL - 0.001

    async def test_a_reservation_is_no_record(self, verbs: AsyncVerbs, place: ReserveOne) -> None:
        """B-09: neither read nor scanned, and the claim that follows is a first one."""
        one = place()
        await verbs.reserve(one)
        assert await verbs.get(Get(one.record_id)) is None
        assert [record async for record in verbs.scan()] == []
        assert (await lease_of(verbs, one.record_id)).attempt == 1
        assert [record.record_id async for record in verbs.scan()] == [one.record_id]

    async def test_a_purge_deletes_expired_reservations(
        self, verbs: AsyncVerbs, clock: ManualClock, place: ReserveOne
    ) -> None:
        """B-09: bounded together with the records, and never a live one."""
        lasting = place(limit=100, ttl=10 * TTL)
        for one in (*(place(limit=100) for _ in range(4)), lasting):
            await verbs.reserve(one)
        await lease_of(verbs, os.urandom(32))
        clock.advance(2 * LEASE + TTL)
        assert await verbs.purge(2) == 2
        assert await verbs.purge() == 3
        assert await verbs.purge() == 0
        assert await verbs.reserve(lasting) == Reserved()
        assert isinstance(await verbs.reserve(place(limit=1)), OverQuota)

    async def test_of_many_at_once_as_many_as_the_limit_are_admitted(
        self, verbs: AsyncVerbs, place: ReserveOne
    ) -> None:
        """Section 9, FAULTS 4: reserving is atomic."""
        answers = await verbs.at_once("reserve", [place() for _ in range(_MANY)])
        assert answers.count(Reserved()) == LIMIT
        assert sum(isinstance(answer, OverQuota) for answer in answers) == _MANY - LIMIT

    async def test_both_colours_count_the_same(self, verbs: AsyncVerbs, place: ReserveOne) -> None:
        """B-12: what an event loop has reserved counts for a thread."""
        await verbs.reserve(place(limit=1))
        sync = verbs.to_sync()
        assert isinstance(sync.reserve(place(limit=1)), OverQuota)
        assert sync.quotas
        assert sync.to_async().quotas
