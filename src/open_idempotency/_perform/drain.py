"""Waiting, at shutdown, until what the server has cancelled is on record (L-06).

Some servers cancel the requests that did not end in time, run the application's shutdown, and are gone a moment later.
A request that could not record its end by then would block its key until the lease ends.
"""

from __future__ import annotations

import time

from open_idempotency._perform import loops

_LOOK = 0.01


class Drain:
    """The requests that are being protected by one adapter. Sets are changed atomically, so any thread may."""

    def __init__(self) -> None:
        self._requests: set[object] = set()

    def enter(self, request: object) -> None:
        """A request begins."""
        self._requests.add(request)

    def leave(self, request: object) -> None:
        """A request has ended, and what became of it is on record."""
        self._requests.discard(request)

    async def wait(self, seconds: float) -> None:
        """Return when no request is left, or after ``seconds``: some handlers take no cancellation."""
        deadline = time.monotonic() + seconds
        while self._requests and time.monotonic() < deadline:
            await loops.sleep(_LOOK)
