"""The points at which a worker dies or freezes, and the trap that waits there until every request has arrived.

The last request to arrive sends the signal to its own process, so one process takes many keys with it. A trap that is
not set does nothing; the retries run with such a trap.
"""

from __future__ import annotations

import asyncio
import signal
import threading

from tests.proof import PATIENCE

BEFORE_CLAIM = "before the claim"
#: the transaction has begun and has written nothing
AFTER_CLAIM = "after the claim"
#: the business row is written, and its stage or response is not
IN_TRANSACTION = "inside the transaction"
#: everything is written
BEFORE_COMMIT = "before COMMIT"
AFTER_COMMIT = "after COMMIT and before the completion"
AFTER_COMPLETION = "after completion and before the response"

POINTS = (BEFORE_CLAIM, AFTER_CLAIM, IN_TRANSACTION, BEFORE_COMMIT, AFTER_COMMIT, AFTER_COMPLETION)
#: where a frozen worker is in the middle of its transaction
FREEZING_POINTS = (AFTER_CLAIM, IN_TRANSACTION, BEFORE_COMMIT)


class Trap:
    """Stops its own process when ``size`` requests are at ``point``; None for a worker that lives."""

    def __init__(self, point: str | None = None, size: int = 0, stop: signal.Signals = signal.SIGKILL) -> None:
        self._point = point
        self._size = size
        self._stop = stop
        self._lock = threading.Lock()
        self._thawed = threading.Event()
        self._thawed_here: asyncio.Event | None = None

    def at(self, point: str) -> None:
        """Stop a request at a point. Returns after the process was thawed, if it was frozen here."""
        if point != self._point or self._thawed.is_set():
            return
        if self._arrived():
            self._spring()
        elif not self._thawed.wait(PATIENCE):
            raise TimeoutError(f"not every request came to the point {point!r}")

    async def aat(self, point: str) -> None:
        """``at`` for an event loop."""
        if point != self._point or self._thawed.is_set():
            return
        self._thawed_here = self._thawed_here or asyncio.Event()
        if self._arrived():
            self._spring()
            self._thawed_here.set()
        else:
            await asyncio.wait_for(self._thawed_here.wait(), PATIENCE)

    def _arrived(self) -> bool:
        with self._lock:
            self._size -= 1
            return self._size == 0

    def _spring(self) -> None:
        # Sent to this thread, which then stops at once. Sent to the process, another thread may take the signal while
        # this one releases the rest.
        signal.pthread_kill(threading.get_ident(), self._stop)
        self._thawed.set()
