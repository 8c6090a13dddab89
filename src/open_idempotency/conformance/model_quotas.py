"""The model's reservations: SPEC section 9 said once more, for ``reserve`` and ``unreserve`` of one caller.

A reservation lasts for a lease and a TTL from its key's latest request, and for one lease more at most, as a backend
chooses. So each has a least and a most, between which it may count or not, and both answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from open_idempotency.backend import OverQuota, Reserve, Reserved, Unreserve
from open_idempotency.conformance.model import TOLERANCE, Disagreement


@dataclass
class Place:
    """One key's reservation: when it ends at the earliest, and at the latest. Seconds on the backend's clock."""

    least: float
    most: float


class Places:
    """One caller's reservations as they should be. ``clock`` is the backend's.

    Each method takes a command and the backend's ``outcome``, as the model's do, and raises ``Disagreement``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[bytes, Place] = {}

    def reserved(self, c: Reserve, outcome: object) -> None:
        """As many keys as the limit, and a key that counts is never refused."""
        now = self._clock()
        if outcome == Reserved():
            _expect("reserve", outcome, self._refusal(c, now))
            self._take(c, now)
            return
        if not isinstance(outcome, OverQuota) or not self._may_refuse(c, now):
            _expect("reserve", outcome, "Reserved(), or OverQuota where enough others count")
            return
        own = self._places.get(c.record_id)
        if own is not None:  # it does not count, so it had ended; a purge may find it yet
            own.most = min(own.most, now)
        _expect("reserve", outcome, self._wrong_end(outcome.remaining, now))

    def unreserved(self, c: Unreserve, outcome: object) -> None:
        """Given back, and where there is nothing to give back nothing is to be said."""
        self._places.pop(c.record_id, None)
        _expect("unreserve", outcome, None if outcome is None else "None")

    def next_end(self) -> float | None:
        """When the first of those that count ends, at the earliest."""
        return min((place.least for place in self._places.values() if place.least > self._clock()), default=None)

    def purged(self, limit: int, outcome: object) -> None:
        """Expired ones alone, and no more of them than asked for. Some may have gone by themselves."""
        now = self._clock()
        most = min(limit, sum(place.least <= now for place in self._places.values()))
        if not isinstance(outcome, int) or not 0 <= outcome <= most:
            _expect("purge", outcome, f"at most {most}")

    def _take(self, c: Reserve, now: float) -> None:
        least, most = now + c.lease + c.ttl, now + 2 * c.lease + c.ttl
        before = self._places.get(c.record_id)
        if before is not None and before.most > now:  # what lasts longer already is not made shorter
            least, most = max(least, before.least), max(most, before.most)
        self._places[c.record_id] = Place(least, most)

    def _refusal(self, c: Reserve, now: float) -> str | None:
        """What a backend had to say that said ``Reserved``, if it had to refuse."""
        own = self._places.get(c.record_id)
        surely = sum(place.least > now for place in self._others(c))
        return "OverQuota" if (own is None or own.most <= now) and surely >= c.limit else None

    def _may_refuse(self, c: Reserve, now: float) -> bool:
        own = self._places.get(c.record_id)
        perhaps = sum(place.most > now for place in self._others(c))
        return (own is None or own.least <= now) and perhaps >= c.limit

    def _others(self, c: Reserve) -> Iterable[Place]:
        return (place for key, place in self._places.items() if key != c.record_id)

    def _wrong_end(self, remaining: float, now: float) -> str | None:
        """Until the first of those that count ends: no sooner than any may, no later than one surely does."""
        soonest = min(place.least for place in self._places.values() if place.most > now) - now
        latest = (
            min((place.most for place in self._places.values() if place.least > now), default=remaining + now) - now
        )
        if soonest - TOLERANCE <= remaining <= latest + TOLERANCE or (soonest <= 0 and remaining >= 0):
            return None
        return f"an end between {soonest} and {latest} s"


def _expect(what: str, outcome: object, wanted: str | None) -> None:
    """Raise where something else was wanted."""
    if wanted is not None:
        raise Disagreement(f"{what}: the backend gave {outcome!r}, wanted is {wanted}")
