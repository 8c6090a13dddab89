"""The floor: the least middleware that buffers, hashes, captures and makes the two bare client calls.

It is a yardstick and no product: it renews no lease, resends nothing, bounds no wait, checks nothing that it reads and
sends no notification. ``calls_for`` has its two calls for each backend, sync or async as the middleware needs.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.floor import memory, postgres, redis, sqlite
from benchmarks.floor.calls import AsyncCalls, Calls
from benchmarks.interface import BackendName

_BLOCKING: dict[BackendName, Callable[[str], Calls]] = {
    "memory": memory.MemoryCalls,
    "sqlite-normal": sqlite.SqliteCalls,
    "sqlite-full": sqlite.SqliteCalls,
    "redis": redis.RedisCalls,
    "postgres": postgres.PostgresCalls,
}
_AWAITED: dict[BackendName, Callable[[str], AsyncCalls]] = {
    "memory": memory.AsyncMemoryCalls,
    "sqlite-normal": sqlite.AsyncSqliteCalls,
    "sqlite-full": sqlite.AsyncSqliteCalls,
    "redis": redis.AsyncRedisCalls,
    "postgres": postgres.AsyncPostgresCalls,
}


def calls_for(backend: BackendName, url: str) -> Calls:
    """The two sync calls; ``url`` is the one that this package takes for the same backend."""
    return _BLOCKING[backend](url)


def async_calls_for(backend: BackendName, url: str) -> AsyncCalls:
    """The two async calls."""
    return _AWAITED[backend](url)
