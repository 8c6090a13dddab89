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


class Advice:
    """Advice to the operator that an engine gives once of each kind, however many requests are a reason for it."""

    __slots__ = ("_given", "_next_look")

    def __init__(self) -> None:
        self._given: dict[type[events.Event], object] = {}
        self._next_look = -inf

    def may_look(self, now: float) -> bool:
        """Whether a refused request may be looked into for the operator, at ``now`` on the monotonic clock: one in ten
        seconds, until something was found.
        """
        if now < self._next_look:
            return False
        self._next_look = now + _BETWEEN_LOOKS
        return True

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
