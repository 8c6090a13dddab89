"""Who in this process waits for which record, for backends that can tell when an attempt has ended.

The waiters of all colours are kept alike: ``threading.Event`` for a thread, ``loops.signal()`` for a task.
Nothing here locks; the caller does.
"""

from __future__ import annotations

from typing import Protocol


class Waiter(Protocol):
    """What can be woken, from any thread, and does not block or raise then."""

    def set(self) -> None:
        """Wake it."""


class Waiters:
    """Waiters by the name of what they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, set[Waiter]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, name: bytes, waiter: Waiter) -> None:
        """From now on it is woken."""
        self._waiting.setdefault(name, set()).add(waiter)

    def discard(self, name: bytes, waiter: Waiter) -> bool:
        """It has stopped waiting; whether it was the last one of that name."""
        waiting = self._waiting.get(name)
        if waiting is None:
            return False
        waiting.discard(waiter)
        if waiting:
            return False
        del self._waiting[name]
        return True

    def wake(self, name: bytes) -> None:
        """Wake all who wait for this; they stay until they are discarded."""
        for waiter in self._waiting.get(name, ()):
            waiter.set()

    def wake_all(self) -> None:
        """Wake everybody."""
        for name in self._waiting:
            self.wake(name)
