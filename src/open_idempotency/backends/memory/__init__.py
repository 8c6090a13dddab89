"""Records in this process's memory: ``memory://``, for tests, examples and applications of one process."""

from __future__ import annotations

from open_idempotency.backends.memory.backend import AsyncMemoryBackend, MemoryBackend

__all__ = ["AsyncMemoryBackend", "MemoryBackend"]
