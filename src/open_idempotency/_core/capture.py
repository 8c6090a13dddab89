"""A live answer while it is sent: what of it is kept, within bounds."""

from __future__ import annotations

from open_idempotency._core.replay import BODILESS
from open_idempotency._core.requests import Answer, Headers

_LENGTH = len(b"content-length")


class Capture:
    """Collects one response. A body that outgrows ``max_bytes`` is let go, and becomes a tombstone (R-04, O-11)."""

    __slots__ = ("_chunks", "_max", "_promised", "_size", "headers", "status")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._size = 0
        self._promised: int | None = None
        self._chunks: list[bytes] | None = []
        self.status = 0
        self.headers: Headers = ()

    def start(self, status: int, headers: Headers) -> None:
        """Take the status and the header fields."""
        self.status = status
        self.headers = headers
        self._promised = _promised_bytes(status, headers)

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._size += len(chunk)
        if self._chunks is None or not chunk:
            return
        if self._size > self._max:
            self._chunks = None
        else:
            self._chunks.append(chunk)

    @property
    def whole(self) -> bool:
        """Whether a client takes what was added so far for the whole answer, even if the application goes on.

        It counts to the Content-Length, so those bytes are the last ones for the promise of R-03.
        """
        return self._promised is not None and self._size >= self._promised

    @property
    def open_ended(self) -> bool:
        """Whether only its end tells how long the body is."""
        return self._promised is None

    @property
    def outgrown(self) -> bool:
        """Whether the body is over the bound, so that it is not kept."""
        return self._chunks is None

    def answer(self) -> Answer:
        """What was collected; the body is None where it outgrew the bound, or the memory that is left (O-11)."""
        try:
            body = None if self._chunks is None else b"".join(self._chunks)
        except MemoryError:
            body = self._chunks = None
        return Answer(self.status, self.headers, body)


def _promised_bytes(status: int, headers: Headers) -> int | None:
    """How long the body is going to be; None where only its end tells."""
    if status in BODILESS:
        return 0
    for name, value in headers:
        if len(name) == _LENGTH and name.lower() == b"content-length":
            return int(value) if value.isdigit() else None
    return None
