"""The Redis backend: ``redis://``, ``rediss://``, for Redis 6.2 and later and for Valkey."""

from __future__ import annotations

from open_idempotency.backends.redis.backend import AsyncRedisBackend, RedisBackend

__all__ = ["AsyncRedisBackend", "RedisBackend"]
