"""One server. Also the base of the clients that find their one server in another way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio

from open_idempotency.backends.redis.bounds import BoundedConnection, BoundedSSLConnection
from open_idempotency.backends.redis.connecting import Connection, connect, no_async_retry, no_retry, pool_arguments
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.topology import Command, Topology


class OneServer:
    """A blocking client with a bounded pool."""

    def __init__(self, options: Options) -> None:
        self._redis: Any = redis.Redis.from_pool(self._pool(options))

    def _pool(self, options: Options) -> Any:
        kind: Any = BoundedSSLConnection if options.tls else BoundedConnection
        host, port = options.addresses[0]
        return self._pool_of(options, connection_class=kind, host=host, port=port)

    def _pool_of(self, options: Options, **more: Any) -> Any:
        pool: Any = redis.BlockingConnectionPool
        return pool(retry=no_retry(), **pool_arguments(options), **more)

    def execute(self, command: Command) -> Any:
        return self._redis.execute_command(*command)

    def each(self, commands: Sequence[Command]) -> list[Any]:
        return self.together(commands)

    def together(self, commands: Sequence[Command]) -> list[Any]:
        return pipelined(self._redis, commands)

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        return [list(range(len(keys)))]

    def servers(self) -> Sequence[PlainServer]:
        return (PlainServer(self._redis),)

    def close(self) -> None:
        self._redis.close()


class PlainServer:
    """One server through the library's client for it."""

    def __init__(self, client: Any) -> None:
        self.execute = client.execute_command


def pipelined(client: Any, commands: Sequence[Command]) -> list[Any]:
    """Send all at once on one connection; what the server refuses is returned in its place."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    replies: list[Any] = pipeline.execute(raise_on_error=False)
    return replies


class AsyncOneServer:
    """The same on asyncio."""

    def __init__(self, options: Options) -> None:
        client: Any = redis.asyncio.Redis
        self._redis = client.from_pool(self._pool(options))

    def _pool(self, options: Options) -> Any:
        kind = redis.asyncio.SSLConnection if options.tls else redis.asyncio.Connection
        host, port = options.addresses[0]
        return self._pool_of(options, connection_class=kind, host=host, port=port)

    def _pool_of(self, options: Options, **more: Any) -> Any:
        pool: Any = redis.asyncio.BlockingConnectionPool
        return pool(retry=no_async_retry(), **pool_arguments(options), **more)

    async def execute(self, command: Command) -> Any:
        return await self._redis.execute_command(*command)

    async def each(self, commands: Sequence[Command]) -> list[Any]:
        return await self.together(commands)

    async def together(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        return [list(range(len(keys)))]

    async def servers(self) -> Sequence[PlainServer]:
        return (PlainServer(self._redis),)

    async def close(self) -> None:
        await self._redis.aclose()


def listen(options: Options) -> Connection:
    """Channels are heard on the server itself."""
    return connect(options, options.addresses[0])


TOPOLOGY = Topology(OneServer, AsyncOneServer, listen)
