"""Shared by every floor: its two calls, sync and async, and the frame of a response."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

#: seconds for which a floor keeps its records
TTL = 86_400
BUSY, REUSED = 409, 422
#: None: go on, the record is yours; a number: refuse with it; bytes: the response to replay
Found = bytes | int | None
Headers = Iterable[tuple[bytes, bytes]]


class Calls(Protocol):
    """The two bare client calls."""

    def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found: ...

    def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None: ...

    def close(self) -> None: ...


class AsyncCalls(Protocol):
    """The bare client calls, async."""

    async def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found: ...

    async def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None: ...

    async def close(self) -> None: ...


def record_id_of(key: bytes) -> bytes:
    """The id of a key's record."""
    return hashlib.sha256(key).digest()


def fingerprint_of(method: str, path: str, body: bytes) -> bytes:
    """The fingerprint of a request."""
    return hashlib.sha256(b"%b %b\n%b" % (method.encode(), path.encode(), body)).digest()


def framed(status: int, headers: Headers, body: bytes) -> bytes:
    """A response as one byte string."""
    lines = [b"%d" % status, *(b"%b:%b" % field for field in headers)]
    return b"\n".join(lines) + b"\n\n" + body


def unframed(frame: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, header fields and body of a frame."""
    head, _, body = frame.partition(b"\n\n")
    status, *lines = head.split(b"\n")
    fields = [line.partition(b":") for line in lines]
    return int(status), [(name, value) for name, _, value in fields], body
