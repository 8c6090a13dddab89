"""Values that belong to one process: connections, locks and threads that must not survive a fork.

There is no lock here, since a lock can be inherited while it is held. What an ancestor made is never used and never
closed in a child, only kept, so that its finaliser does not run there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
