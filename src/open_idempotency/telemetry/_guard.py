"""A lock that delays a fork while a metric changes, and the number of live attempts in this process.

Client libraries guard each metric with a lock. If a process forks while another thread holds such a lock, nothing in
the child releases it, and the first request there would wait for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from open_idempotency._runtime.processes import PerProcess

#: held while a metric changes. A change may be interrupted by a signal handler that reports an event
guard = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=guard.acquire, after_in_parent=guard.release, after_in_child=guard.release)


class _Number:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Live:
    """The number of live attempts in this process. A forked child begins with none."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers = PerProcess(_Number)

    def change(self, by: int, then: Callable[[int], object] | None = None) -> None:
        """Add ``by``. ``then`` is called with the new number, before it changes again."""
        with guard:
            number = self._numbers.get()
            number.value += by
            if then is not None:
                then(number.value)

    @property
    def now(self) -> int:
        """The number."""
        return self._numbers.get().value
