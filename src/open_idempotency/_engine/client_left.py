"""A stream whose client has left: one rule for all adapters (L-05a).

It may go on for ``stream_grace`` seconds. If it ends by then, its response is stored. If it does not, or if it outgrows
what is kept, its attempt fails with its stages kept, and it is closed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf

from open_idempotency._core.stored_response import Capture


class ClientLeft(OSError):
    """Raised where an application sends to a client that has left, and the grace of its stream is over.

    An ``OSError``, as servers raise it themselves, so that applications and frameworks know what it means.
    """


@dataclass(slots=True)
class Grace:
    """How long the stream of one request may go on without its client: ``seconds`` from when it has left."""

    seconds: float
    capture: Capture
    _until: float = field(default=inf, init=False)

    def begin(self) -> None:
        """The client has left. Only the first call counts."""
        if self._until == inf:
            self._until = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds for which the stream may still go on; infinite while the client is there."""
        if self._until == inf:
            return inf
        return 0.0 if self.capture.outgrown else max(0.0, self._until - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the stream has to be closed: before its next part, never in the middle of one."""
        return self.left <= 0.0

    def error(self) -> GeneratorExit:
        """What its attempt fails with."""
        if self.capture.outgrown:
            return GeneratorExit("the client left, and the stream is longer than what is kept (max_response_bytes)")
        return GeneratorExit(f"the client left, and the stream did not end within {self.seconds:g} s (stream_grace)")
