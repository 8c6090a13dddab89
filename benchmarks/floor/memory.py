"""The floor's calls on a dictionary; each step is one operation on it, which no other thread can divide."""

from __future__ import annotations

from benchmarks.floor.calls import BUSY, REUSED, Found


class MemoryCalls:
    """The sync form. Nothing expires: a benchmark ends before."""

    def __init__(self, url: str = "memory://") -> None:
        self._records: dict[bytes, tuple[bytes, bytes, bytes | None]] = {}

    def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        known, holder, response = self._records.setdefault(record_id, (fingerprint, owner, None))
        if holder is owner:
            return None
        if known != fingerprint:
            return REUSED
        return BUSY if response is None else response

    def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        fingerprint, holder, _ = self._records[record_id]
        assert holder == owner
        self._records[record_id] = (fingerprint, owner, response)

    def close(self) -> None:
        self._records.clear()


class AsyncMemoryCalls:
    """The async form: the same calls, which never wait."""

    def __init__(self, url: str = "memory://") -> None:
        self._calls = MemoryCalls(url)

    async def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        return self._calls.claim(record_id, fingerprint, owner)

    async def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        self._calls.complete(record_id, owner, response)

    async def close(self) -> None:
        self._calls.close()
