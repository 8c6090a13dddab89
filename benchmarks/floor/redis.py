"""The floor's calls through redis-py's own pool: one Lua script for the claim and one for the completion."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from benchmarks.floor.calls import BUSY, REUSED, TTL, Found

_CLAIM = """
    local record = redis.call('HMGET', KEYS[1], 'f', 'r')
    if record[1] then return record end
    redis.call('HSET', KEYS[1], 'f', ARGV[1], 'o', ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    return {}
"""
_COMPLETE = """
    if redis.call('HGET', KEYS[1], 'o') ~= ARGV[1] then return 0 end
    redis.call('HSET', KEYS[1], 'r', ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    return 1
"""
# as many connections as this package's pool may have
_POOLED: dict[str, Any] = {"protocol": 2, "max_connections": 64}


def _key(record_id: bytes) -> bytes:
    return b"floor:" + record_id


def _found(reply: list[bytes | None], fingerprint: bytes) -> Found:
    if not reply:
        return None
    known, response = reply
    if known != fingerprint:
        return REUSED
    return BUSY if response is None else response


class RedisCalls:
    """The sync form."""

    def __init__(self, url: str) -> None:
        pool: Any = redis.BlockingConnectionPool
        self._redis: Any = redis.Redis.from_pool(pool.from_url(url, **_POOLED))
        self._claim: Any = self._redis.register_script(_CLAIM)
        self._complete: Any = self._redis.register_script(_COMPLETE)

    def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        return _found(self._claim((_key(record_id),), (fingerprint, owner, TTL)), fingerprint)

    def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        self._complete((_key(record_id),), (owner, response, TTL))

    def close(self) -> None:
        self._redis.close()


class AsyncRedisCalls:
    """The async form."""

    def __init__(self, url: str) -> None:
        pool: Any = redis.asyncio.BlockingConnectionPool
        client: Any = redis.asyncio.Redis
        self._redis = client.from_pool(pool.from_url(url, **_POOLED))
        self._claim: Any = self._redis.register_script(_CLAIM)
        self._complete: Any = self._redis.register_script(_COMPLETE)

    async def claim(self, record_id: bytes, fingerprint: bytes, owner: bytes) -> Found:
        return _found(await self._claim((_key(record_id),), (fingerprint, owner, TTL)), fingerprint)

    async def complete(self, record_id: bytes, owner: bytes, response: bytes) -> None:
        await self._complete((_key(record_id),), (owner, response, TTL))

    async def close(self) -> None:
        await self._redis.aclose()
