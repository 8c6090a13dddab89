"""What waits for the next batch: first come, first served, bounded in number, in bytes and in time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, first_line

#: how many times as long as in the queue a question may be on its way
PATIENCE = 3


@dataclass(frozen=True)
class Limits:
    """How much is held back. ``seconds``: for which a question may wait before it is sent; ``most`` questions and
    ``size`` bytes go into one batch, where there is more than one; ``waiting``: how many questions may wait.
    """

    seconds: float
    most: int = 256
    size: int = 1 << 20
    waiting: int = 10_000


class Asked(Protocol):
    """One or more questions that stay together."""

    count: int
    size: int
    until: float


A = TypeVar("A", bound=Asked)


class Queue(Generic[A]):
    """Those that wait. Not locked: for one loop, or under the caller's lock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[A] = deque()
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, asked: A) -> None:
        """Wait for a batch. Raises ``BackendUnavailable`` where too many do."""
        if self._count + asked.count > self._limits.waiting:
            raise BackendUnavailable(f"{self._count} calls wait for the backend already")
        self._waiting.append(asked)
        self._count += asked.count

    def remove(self, asked: A) -> bool:
        """Wait no longer; False where it is on its way."""
        try:
            self._waiting.remove(asked)
        except ValueError:
            return False
        self._count -= asked.count
        return True

    def first(self) -> A | None:
        """Who is next."""
        return self._waiting[0] if self._waiting else None

    def overdue(self, now: float) -> list[A]:
        """Those that wait although their time is over; they came first."""
        return list(takewhile(lambda asked: asked.until < now, self._waiting))

    def take(self, batch: list[A], overdue: list[A], now: float, after: A | None = None) -> None:
        """Move the next batch to ``batch``, and those whose time is over, which must not be sent any more, to
        ``overdue``. ``now``: on the monotonic clock; ``after``: what is in the batch already.

        A signal's handler may raise in the middle. Each is in a list before it is out of the queue, so none is lost.
        """
        count, size = (0, 0) if after is None else (after.count, after.size)
        while self._waiting:
            asked = self._waiting[0]
            if asked.until < now:
                overdue.append(asked)
            elif count and (count + asked.count > self._limits.most or size + asked.size > self._limits.size):
                break
            else:
                batch.append(asked)
                count += asked.count
                size += asked.size
            self._waiting.popleft()
            self._count -= asked.count


def too_late(limits: Limits) -> BackendUnavailable:
    """For a question that was not sent in time."""
    return BackendUnavailable(f"the backend took no further calls for {limits.seconds} s")


def interrupted() -> BackendUnavailable:
    """For a question whose batch nobody carries out any more; it may have had its effect."""
    return BackendUnavailable("the thread or task that had sent this call was interrupted; its outcome is not known")


def shared(error: BaseException) -> Exception:
    """An error of a whole batch, for one of those that share it: raised from several places, one object would mix
    their tracebacks.

    What no backend raises, such as the time limit of the thread that carried out the batch, is for the others a call
    without an answer, which may be tried again.
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
