"""The requests that wait for the next batch: first come, first served, bounded in number, in bytes and in time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, first_line

#: the in-flight timeout of a request is this many times its queue timeout
PATIENCE = 3


@dataclass(frozen=True)
class Limits:
    """The bounds of a coalescer. ``seconds``: how long a request may wait before it is sent. ``most`` requests and
    ``size`` bytes go into a batch of more than one. ``waiting``: how many requests may wait.
    """

    seconds: float
    most: int = 256
    size: int = 1 << 20
    waiting: int = 10_000


class Waiting(Protocol):
    """One or more requests that stay together. ``until``: on the monotonic clock."""

    count: int
    size: int
    until: float


A = TypeVar("A", bound=Waiting)


class Queue(Generic[A]):
    """The requests that wait. It has no lock: use it on one loop, or under a lock of the caller's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: first come, first served; changed here only
        self.waiting: deque[A] = deque()
        self._count = 0

    def add(self, waiting: A) -> None:
        """Wait for a batch. Raises ``BackendUnavailable`` where too many requests wait."""
        if self._count + waiting.count > self._limits.waiting:
            raise BackendUnavailable(f"{self._count} calls wait for the backend already")
        self.waiting.append(waiting)
        self._count += waiting.count

    def remove(self, waiting: A) -> bool:
        """Wait no longer; False where the request does not wait, as while it is on its way."""
        try:
            self.waiting.remove(waiting)
        except ValueError:
            return False
        self._count -= waiting.count
        return True

    def first(self) -> A | None:
        """The next one, or None."""
        return self.waiting[0] if self.waiting else None

    def overdue(self, now: float) -> list[A]:
        """Those that wait although their time is over; these came first."""
        return list(takewhile(lambda waiting: waiting.until < now, self.waiting))

    def take(self, batch: list[A], overdue: list[A], now: float, after: A | None = None) -> None:
        """Move the next batch to ``batch``. Move those whose time is over, and which must not be sent any more, to
        ``overdue``. ``now``: on the monotonic clock; ``after``: what is in the batch already.

        A signal's handler may raise in the middle. Each request is in a list before it leaves the queue, so none is
        lost.
        """
        count, size = (0, 0) if after is None else (after.count, after.size)
        while self.waiting:
            waiting = self.waiting[0]
            if waiting.until < now:
                overdue.append(waiting)
            elif count and (count + waiting.count > self._limits.most or size + waiting.size > self._limits.size):
                break
            else:
                batch.append(waiting)
                count += waiting.count
                size += waiting.size
            self.waiting.popleft()
            self._count -= waiting.count


def too_late(limits: Limits) -> BackendUnavailable:
    """The error for a request that was not sent in time."""
    return BackendUnavailable(f"the backend took no further calls for {limits.seconds} s")


def interrupted() -> BackendUnavailable:
    """The error for a request whose batch is no longer carried out; it may have had its effect."""
    return BackendUnavailable("the thread or task that had sent this call was interrupted; its outcome is not known")


def shared(error: BaseException) -> Exception:
    """A copy of a batch's error for one of its requests: one object that is raised for several requests would mix
    their tracebacks.

    An error that no backend raises, such as the time limit of the thread that carried out the batch, is a missing
    response to the other requests, which may be tried again.
    """
    if isinstance(error, IdempotencyError):
        if type(error).__init__ is not IdempotencyError.__init__:
            return error
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__ or error
        return copy
    unavailable = BackendUnavailable(f"the batch of this call failed: {type(error).__name__}: {first_line(error)}")
    unavailable.__cause__ = error
    return unavailable
