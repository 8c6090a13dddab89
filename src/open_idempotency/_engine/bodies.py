"""A request body while it is received: in memory at first, on disk when it grows, bounded always."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from open_idempotency.exceptions import BodyTooLarge
from open_idempotency.policy import IdempotencyPolicy

PIECE = 64 * 1024
#: bytes after which an event loop's other tasks may run
TURN = 512 * 1024
_MAX_DIGITS = 20
# Above this number the chunks are joined into one buffer: each is an object, and clients choose how many they send.
_CHUNKS = 1024


def may_pass(policy: IdempotencyPolicy) -> bool:
    """Whether a request may turn out to have no key once its body was received. It then runs without protection."""
    return policy.key is not None and not policy.required


class RequestBody:
    """Collects the chunks of a body until it is whole, and then returns them as often as needed.

    It holds at most ``spool_bytes`` in memory. ``add`` raises ``BodyTooLarge`` over ``max_request_bytes``. The bytes
    received by then are kept if the request may pass without protection. A long body is hashed while it arrives, so
    that no event loop waits for all of it at once.
    """

    __slots__ = (
        "_chunks", "_file", "_hashes", "_keeps_all", "_limit", "_on_disk", "_sha", "_spool", "size", "spooled", "whole",
    )  # fmt: skip

    def __init__(self, policy: IdempotencyPolicy) -> None:
        self._limit = policy.max_request_bytes
        self._spool = policy.spool_bytes
        self._keeps_all = policy.key is not None and not policy.required  # as may_pass says, without a call
        self._chunks: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._on_disk = False
        self._hashes = policy.fingerprint in ("auto", "json", "jcs")
        self._sha: Any = None
        self.size = 0
        #: whether all of it was received, as far as its reader has noted that
        self.whole = False
        #: whether the body is in one file, whose readers share one position
        self.spooled = False

    def bound(self, limit: int, *, keeps_all: bool = False) -> None:
        """Take ``limit`` bytes at most from now on. Raises ``BodyTooLarge`` if there are more already.

        ``keeps_all``: what ``add`` refuses is kept.
        """
        self._limit, self._keeps_all = limit, keeps_all
        if self.size > limit:
            self.close()
            raise BodyTooLarge(f"over {limit} bytes")

    def check_length(self, declared: bytes | str | None) -> None:
        """Raise ``BodyTooLarge`` for a Content-Length over the limit, before anything is read."""
        if not declared or not declared.isascii() or not declared.isdigit():
            return
        # A number with more digits than any real length is not converted: Python raises an error for very long ones.
        if len(declared) > _MAX_DIGITS or int(declared) > self._limit:
            raise BodyTooLarge(f"over {self._limit} bytes")

    def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.size += len(chunk)
        too_large = self.size > self._limit
        if too_large and not self._keeps_all:
            self.close()
            raise BodyTooLarge(f"over {self._limit} bytes")
        if self._sha is not None:
            self._sha.update(chunk)
        if self._file is not None:
            self._file.write(chunk)
        elif chunk:
            self._chunks.append(chunk)
        if self._sha is None and self.size > PIECE and self._hashes:
            self._sha = self._hashed()
        if self.size > self._spool:
            if not self._on_disk:
                self._move(tempfile.TemporaryFile())  # noqa: SIM115 (closed with the request)
                self._on_disk = True
        elif len(self._chunks) > _CHUNKS:
            self._move(io.BytesIO())
        if too_large:
            raise BodyTooLarge(f"over {self._limit} bytes")

    def _move(self, file: IO[bytes]) -> None:
        file.writelines(self.chunks())
        self._file = file
        self.spooled = True
        self._chunks.clear()

    def _hashed(self) -> Any:
        sha = hashlib.sha256()
        for chunk in self._chunks if self._file is None else self.chunks():
            sha.update(chunk)
        return sha

    def digest(self) -> bytes:
        """The SHA-256 of the bytes."""
        result: bytes = (self._sha or self._hashed()).digest()
        return result

    def add_in_turns(self, chunk: bytes) -> Iterator[None]:
        """``add`` in pieces, with pauses between them, since some servers hand over large chunks."""
        for start in range(0, len(chunk), TURN):
            before = self.size
            try:
                self.add(chunk[start : start + TURN])
            except BodyTooLarge:
                if self._keeps_all and start + TURN < len(chunk):
                    self.add(chunk[start + TURN :])  # keeps the rest, and raises too
                raise
            if self.size // TURN > before // TURN:
                yield

    def pieces(self, begin: int = 0) -> Iterator[tuple[bytes, bool]]:
        """The bytes in order, each piece with whether more follow; one piece where they are in memory.

        ``begin``: how many bytes to leave out, since the application has them already.
        """
        if self._file is None:
            return iter(((b"".join(self._chunks)[begin:], False),))
        return self._pieces_on_file(self._file, begin)

    def _pieces_on_file(self, file: IO[bytes], begin: int) -> Iterator[tuple[bytes, bool]]:
        if begin == self.size:
            yield b"", False
        for start in range(begin, self.size, PIECE):
            file.seek(start)
            piece = file.read(PIECE)
            yield piece, start + len(piece) < self.size

    def chunks(self) -> Iterator[bytes]:
        """The bytes in order, in pieces of bounded size; may be asked for again."""
        if self._file is None:
            return iter(self._chunks)
        return (piece for piece, _ in self.pieces())

    def read(self) -> bytes:
        """The bytes in one piece."""
        return b"".join(self.chunks())

    def file(self) -> IO[bytes]:
        """The bytes as a file at its start, for ``wsgi.input`` and the like."""
        if self._file is None:
            return io.BytesIO(self.read())
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Free the memory, or close the file."""
        self._chunks.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
            self.spooled = False
