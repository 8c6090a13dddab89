"""A live answer while it is sent: what of it is kept, within bounds."""

from __future__ import annotations

from open_idempotency._core.requests import Answer, Headers


class Capture:
    """Collects one response. A body that outgrows ``max_bytes`` is let go, and becomes a tombstone (R-04, O-11)."""

    __slots__ = ("_chunks", "_max", "_size", "headers", "status")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._size = 0
        self._chunks: list[bytes] | None = []
        self.status = 0
        self.headers: Headers = ()

    def start(self, status: int, headers: Headers) -> None:
        """Take the status and the header fields."""
        self.status = status
        self.headers = headers

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if self._chunks is None or not chunk:
            return
        self._size += len(chunk)
        if self._size > self._max:
            self._chunks = None
        else:
            self._chunks.append(chunk)

    def answer(self) -> Answer:
        """What was collected; the body is None where it outgrew the bound."""
        body = None if self._chunks is None else b"".join(self._chunks)
        return Answer(self.status, self.headers, body)
