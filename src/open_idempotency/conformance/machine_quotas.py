"""The state machine of quotas: histories of ``reserve`` and ``unreserve`` on which a backend and the model disagree.

A machine of its own, since reservations and records know nothing of each other. Needs Hypothesis, as ``machine`` does.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from open_idempotency.backend import Reserve, Unreserve
from open_idempotency.conformance.machine import LEASES, STEPS, TTLS, Call
from open_idempotency.conformance.model_quotas import Places
from open_idempotency.conformance.support import ManualClock

KEYS = 4
LIMITS = (2, 1, 3)

_keys = st.integers(0, KEYS - 1)


class QuotaMachine(RuleBasedStateMachine):
    """``call(verb, *arguments)`` is the backend, which must be empty and on ``clock``; ``end`` closes it."""

    def __init__(self, call: Call, clock: ManualClock, end: Callable[[], None]) -> None:
        super().__init__()
        self._call = call
        self._clock = clock
        self._end = end
        self._model = Places(clock)
        self._scope_id = secrets.token_bytes(32)

    def _record_id(self, key: int) -> bytes:
        return self._scope_id[:8] + bytes([key])

    def _outcome(self, verb: str, argument: object) -> object:
        try:
            return self._call(verb, argument)
        except Exception as error:
            return error

    def _ends(self) -> bool:
        return self._model.next_end() is not None

    @rule(key=_keys, limit=st.sampled_from(LIMITS), lease=st.sampled_from(LEASES), ttl=st.sampled_from(TTLS))
    def reserve(self, key: int, limit: int, lease: float, ttl: float) -> None:
        """One of the caller's keys, which may count already (section 9)."""
        c = Reserve(self._scope_id, self._record_id(key), limit, lease, ttl)
        self._model.reserved(c, self._outcome("reserve", c))

    @rule(key=_keys)
    def unreserve(self, key: int) -> None:
        """Given back, whether it counts or not."""
        c = Unreserve(self._scope_id, self._record_id(key))
        self._model.unreserved(c, self._outcome("unreserve", c))

    @precondition(_ends)
    @rule(seconds=st.sampled_from(STEPS))
    def time_passes(self, seconds: float) -> None:
        """Reservations end."""
        self._clock.advance(seconds)

    @precondition(_ends)
    @rule(beside=st.sampled_from([0.0, -0.25, 0.25]))
    def time_passes_to_an_end(self, beside: float) -> None:
        """To where one moment decides."""
        end = self._model.next_end()
        assert end is not None
        self._clock.advance(max(0.0, end + beside - self._clock()))

    @rule(limit=st.sampled_from([0, 1, 1000]))
    def purge(self, limit: int) -> None:
        """Expired reservations go, and the others stay (B-09)."""
        self._model.purged(limit, self._outcome("purge", limit))

    def teardown(self) -> None:
        """The backend is closed, and another one is made for the next history."""
        self._end()
