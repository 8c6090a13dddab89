"""A primary that Sentinel names. Each new connection asks a Sentinel, and all connections follow the latest reply."""

from __future__ import annotations

from typing import Any, cast

import redis
import redis.asyncio
import redis.sentinel
from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency.backends.redis.connections import (
    AsyncRoute,
    Connection,
    Reached,
    Route,
    blocking_kind,
    connect,
    no_async_retry,
    no_retry,
    timeouts,
)
from open_idempotency.backends.redis.options import Address, Options
from open_idempotency.backends.redis.protocol import ERRORS
from open_idempotency.backends.redis.topology import AsyncOneServer, OneServer, Topology

# redis-py's rules for what counts as a primary. This object asks no Sentinel itself.
_RULES: Any = cast(Any, redis.sentinel.Sentinel)([])


class _Search:
    """The Sentinels to ask, by clients of redis-py's. The one that replied last comes first."""

    def __init__(self, service: str, clients: list[Any]) -> None:
        self._service = service
        self.clients = clients

    def primary(self, client: Any, known: dict[str, dict[str, Any]]) -> Address | None:
        """The address of the primary in the reply of one Sentinel; None where it knows none."""
        state = known.get(self._service)
        if state is None or not _RULES.check_master_state(state, self._service):
            return None
        # A new list, because other threads may be iterating over the old one.
        self.clients = [client, *(other for other in self.clients if other is not client)]
        return str(state["ip"]), int(state["port"])

    def failed(self, reasons: list[str]) -> RedisConnectionError:
        """The error where no Sentinel knows a primary. redis-py's own shows passwords in some versions."""
        said = "; ".join(dict.fromkeys(reasons)) or "those that answered do not"
        return RedisConnectionError(f"no Sentinel names a primary of {self._service!r}: {said}")


def _sentinel_arguments(options: Options) -> list[dict[str, Any]]:
    common = {**timeouts(options), **options.sentinel_login}
    return [{**common, "host": host, "port": port} for host, port in options.addresses]


class SentinelRoute(Route):
    """The way to the primary. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        pool: Any = redis.ConnectionPool
        kind = blocking_kind(options)
        pools = [pool(connection_class=kind, retry=no_retry(), **made) for made in _sentinel_arguments(options)]
        self._search = _Search(options.service, [cast(Any, redis.Redis).from_pool(pool) for pool in pools])

    def find(self) -> Reached:
        """Ask the Sentinels. Raises one of ``ERRORS``."""
        left, reasons = self.current[1], list[str]()
        for client in self._search.clients:
            try:
                found = self._search.primary(client, client.sentinel_masters())
            except ERRORS as error:
                reasons.append(str(error))
                continue
            if found is not None:
                return self.arrive(found, left)
        raise self._search.failed(reasons)

    def close(self) -> None:
        """Close the connections to the Sentinels."""
        for client in self._search.clients:
            client.close()


class AsyncSentinelRoute(AsyncRoute):
    """The same on asyncio, for one event loop."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        pool: Any = redis.asyncio.ConnectionPool
        kind: Any = redis.asyncio.SSLConnection if options.tls else redis.asyncio.Connection
        pools = [pool(connection_class=kind, retry=no_async_retry(), **made) for made in _sentinel_arguments(options)]
        self._search = _Search(options.service, [cast(Any, redis.asyncio.Redis).from_pool(pool) for pool in pools])

    async def look(self) -> Reached:
        """See ``SentinelRoute.find``."""
        left, reasons = self.current[1], list[str]()
        for client in self._search.clients:
            try:
                found = self._search.primary(client, await client.sentinel_masters())
            except ERRORS as error:
                reasons.append(str(error))
                continue
            if found is not None:
                return self.arrive(found, left)
        raise self._search.failed(reasons)

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        for client in self._search.clients:
            await client.aclose()


class SentinelClient(OneServer):
    """A blocking client of the primary."""

    def __init__(self, options: Options) -> None:
        self._route = SentinelRoute(options)
        super().__init__(options, self._route)

    def close(self) -> None:
        super().close()
        self._route.close()


class AsyncSentinelClient(AsyncOneServer):
    """The same on asyncio."""

    def __init__(self, options: Options) -> None:
        self._route = AsyncSentinelRoute(options)
        super().__init__(options, self._route)

    async def close(self) -> None:
        await super().close()
        await self._route.close()


def listen(options: Options) -> Connection:
    """A connection for channels, which are heard on the primary."""
    route = SentinelRoute(options)
    try:
        address, _ = route.find()
    finally:
        route.close()
    assert address is not None
    return connect(options, address)


TOPOLOGY = Topology(SentinelClient, AsyncSentinelClient, listen)
