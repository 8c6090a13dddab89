"""What all steps share: notifying listeners, advice that is given once, and the pauses between two tries."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from open_idempotency import events
from open_idempotency._core.commands import Emit
from open_idempotency._core.drivers import Steps, ask
from open_idempotency.policy import IdempotencyPolicy

#: seconds between two tries of the same thing: they grow from the first to the longest
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

# seconds
_BETWEEN_LOOKS = 10.0
#: from which refusal by one record on it is looked into, and how many records are remembered
_REFUSALS, _REMEMBERED = 3, 64


class Advice:
    """Advice to the operator that an engine gives once of each kind, however many requests are a reason for it."""

    __slots__ = ("_given", "_next_look", "_refusals")

    def __init__(self) -> None:
        self._given: dict[type[events.Event], object] = {}
        self._next_look = -inf
        # how often a record has refused requests here, of the last records that did
        self._refusals: dict[bytes, int] = {}

    def may_look(self, record_id: bytes, now: float) -> bool:
        """Whether to look, for the operator, into a record that refuses a request. ``now``: on the monotonic clock.

        Only where one record refuses again and again, and once in ten seconds, until something was found: so no
        request that is refused once costs a further call.
        """
        if self._next_look == inf:
            return False
        refusals = self._refusals.pop(record_id, 0) + 1
        if refusals >= _REFUSALS and now >= self._next_look:
            self._next_look = now + _BETWEEN_LOOKS
            return True
        for oldest in list(self._refusals)[: 1 - _REMEMBERED]:
            self._refusals.pop(oldest, None)
        self._refusals[record_id] = refusals
        return False

    def has_found(self) -> None:
        """Look no more."""
        self._next_look = inf

    def is_given(self, kind: type[events.Event]) -> bool:
        """Whether somebody has been told to give this advice, so that nobody need look for a reason any more."""
        return kind in self._given

    def due(self, kind: type[events.Event]) -> bool:
        """True for the first who asks about this kind, of all threads, and false ever after."""
        mine = object()
        return not self.is_given(kind) and self._given.setdefault(kind, mine) is mine


def tell(
    policy: IdempotencyPolicy, kind: Callable[..., events.Event], record_id: bytes, *members: object
) -> Steps[None]:
    """An everyday event: made only where somebody listens."""
    if policy.on_event is not None:
        yield from ask(Emit(kind(events.short(record_id), *members), policy.on_event))


def warn(policy: IdempotencyPolicy, event: events.Event) -> Steps[None]:
    """An event that an operator should see, listener or not."""
    yield from ask(Emit(event, policy.on_event))


def cause(error: BaseException) -> str:
    return type(error.__cause__ or error).__name__
