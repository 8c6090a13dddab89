"""The reservations of the memory backend: which keys count towards which caller's quota, and until when.

Holds no lock and knows no clock: the table of records brings both.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from open_idempotency import decisions
from open_idempotency.backend import Reserve, ReserveAnswer
from open_idempotency.exceptions import BackendUnavailable

_LOOKED_AT_PER_INSERT = 2
_NEVER = float("inf")


class _Scope:
    """One caller's reservations, and the ``earliest`` of their ends, so that they are not searched in vain."""

    __slots__ = ("earliest", "ends")

    def __init__(self) -> None:
        self.ends: dict[bytes, float] = {}
        self.earliest = _NEVER

    def drop_expired(self, now: float, limit: int) -> int:
        if self.earliest > now:
            return 0
        expired = [record_id for record_id, end in self.ends.items() if end <= now][:limit]
        for record_id in expired:
            del self.ends[record_id]
        self._look()
        return len(expired)

    def put(self, record_id: bytes, end: float) -> None:
        before = self.ends.get(record_id)
        self.ends[record_id] = end
        if before == self.earliest:
            self._look()
        self.earliest = min(self.earliest, end)

    def pop(self, record_id: bytes) -> bool:
        end = self.ends.pop(record_id, None)
        if end == self.earliest:
            self._look()
        return end is not None

    def _look(self) -> None:
        self.earliest = min(self.ends.values(), default=_NEVER)


class Reservations:
    """All callers' reservations, at most ``most`` of them; callers in the order in which they were last looked at."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._scopes: OrderedDict[bytes, _Scope] = OrderedDict()

    def reserve(self, c: Reserve, now: float) -> ReserveAnswer:
        """See ``Backend.reserve``. Raises ``BackendUnavailable`` where there is no room for another."""
        scope = self._scopes.get(c.scope_id) or _Scope()
        if len(scope.ends) >= c.limit:
            self._count -= scope.drop_expired(now, len(scope.ends))
        before = scope.ends.get(c.record_id)
        answer, end = decisions.reserve(before, len(scope.ends), scope.earliest, c, now)
        if end is not None:
            if before is None:
                self._make_room(now)
                self._count += 1
            scope.put(c.record_id, end)
            self._scopes[c.scope_id] = scope
        return answer

    def unreserve(self, scope_id: bytes, record_id: bytes) -> None:
        """See ``Backend.unreserve``."""
        scope = self._scopes.get(scope_id)
        if scope is not None and scope.pop(record_id):
            self._count -= 1
            if not scope.ends:
                del self._scopes[scope_id]

    def purge(self, limit: int, now: float) -> int:
        """Delete expired reservations, at most ``limit``."""
        purged = 0
        for scope_id in list(self._scopes):
            purged += self._drop_expired(scope_id, now, limit - purged)
        return purged

    def _drop_expired(self, scope_id: bytes, now: float, limit: int) -> int:
        scope = self._scopes[scope_id]
        dropped = scope.drop_expired(now, limit)
        self._count -= dropped
        if not scope.ends:
            del self._scopes[scope_id]
        return dropped

    def _make_room(self, now: float) -> None:
        """Each new reservation looks at the two oldest callers, so expired ones do not pile up."""
        for scope_id in list(islice(self._scopes, _LOOKED_AT_PER_INSERT)):
            self._drop_expired(scope_id, now, self._most)
            if scope_id in self._scopes:
                self._scopes.move_to_end(scope_id)
        if self._count >= self._most:
            self.purge(self._most, now)
        if self._count >= self._most:
            raise BackendUnavailable(f"memory backend is full: {self._most} reservations")
