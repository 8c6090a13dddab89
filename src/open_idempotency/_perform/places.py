"""The places in which requests of one process may wait. Nothing here waits itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

from open_idempotency._core.commands import TakePlace
from open_idempotency._perform.processes import PerProcess


class Places:
    """``affordable``: how many places there are where a command does not say; None for no limit."""

    def __init__(self, affordable: int | None) -> None:
        self._affordable = affordable
        self._taken = PerProcess(_Count)

    def take(self, command: TakePlace) -> Callable[[], None] | None:
        """What gives the place back, which is to be called once; None where all are taken."""
        limit = self._affordable if command.places is None else command.places
        taken = self._taken.get()
        return taken.subtract if taken.add(limit) else None


class _Count:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def add(self, limit: int | None) -> bool:
        with self._lock:
            if limit is not None and self._number >= limit:
                return False
            self._number += 1
        return True

    def subtract(self) -> None:
        with self._lock:
            self._number -= 1
