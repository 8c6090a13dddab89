"""Values that belong to one process, and what is known of the server that the process belongs to.

Connections, locks and threads must not survive a fork. There is no lock here, since a lock can be inherited while it is
held. What an ancestor made is never used and never closed in a child, only kept, so that its finaliser does not run."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value made on first use in each process by ``make``, which may run more than once in a race."""

    __slots__ = ("_make", "_values")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """This process's value; of two made at the same moment both callers get the first."""
        pid = os.getpid()
        value = self._values.get(pid)
        if value is None:
            value = self._values.setdefault(pid, self._make())
        return value

    def pop(self) -> T | None:
        """Take this process's value away, for closing it; None where there is none."""
        return self._values.pop(os.getpid(), None)


# Seconds that pass between the server's own start of a request and ours, and that it takes to end a request early.
_MARGIN = 2.0

#: seconds after its beginning by which the response to a request has to leave; infinite where the server sets no limit
limit = inf


def limit_requests(seconds: float) -> None:
    """The server ends this process when a request takes longer than that."""
    global limit
    limit = seconds - min(_MARGIN, seconds / 4)
