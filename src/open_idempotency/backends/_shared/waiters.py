"""The callers in this process that wait for a record, for backends that report the end of an attempt.

A thread waits with a ``threading.Event``, a task with ``loops.signal()``. Nothing here locks; the caller does.
"""

from __future__ import annotations

from typing import Protocol


class Waiter(Protocol):
    """Can be woken from any thread, without blocking or raising."""

    def set(self) -> None:
        """Wake the caller."""


class Waiters:
    """Waiters by the name of the record or channel that they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, set[Waiter]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, name: bytes, waiter: Waiter) -> None:
        """Begin to wait."""
        self._waiting.setdefault(name, set()).add(waiter)

    def discard(self, name: bytes, waiter: Waiter) -> bool:
        """Stop waiting; returns whether this was the last waiter of the name."""
        waiting = self._waiting.get(name)
        if waiting is None:
            return False
        waiting.discard(waiter)
        if waiting:
            return False
        del self._waiting[name]
        return True

    def wake(self, name: bytes) -> None:
        """Wake all waiters of a name; they stay until they are discarded."""
        for waiter in self._waiting.get(name, ()):
            waiter.set()

    def wake_all(self) -> None:
        """Wake all waiters."""
        for name in self._waiting:
            self.wake(name)
