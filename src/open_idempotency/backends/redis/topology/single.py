"""One server. Also the base of the clients that find their one server in another way."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import redis
import redis.asyncio

from open_idempotency.backends.redis.addresses import Address
from open_idempotency.backends.redis.batches import Batches
from open_idempotency.backends.redis.bounds import BoundedConnection, BoundedSSLConnection
from open_idempotency.backends.redis.connecting import (
    Connection,
    arguments,
    connect,
    no_async_retry,
    no_retry,
    pool_arguments,
)
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.scripts import Keyed, Script
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
        pool: Any = redis.asyncio.BlockingConnectionPool
        self._options = options
        self._kind, self._place = self._where(options)
        self._redis = client.from_pool(
            pool(connection_class=self._kind, retry=no_async_retry(), **pool_arguments(options), **self._place)
        )
        self._batches = Batches(options, self)
        # On a connection of its own: what waits for replicas makes nobody else wait.
        self._durable = Batches(options, self, replicas=options.min_replicas)

    def _where(self, options: Options) -> tuple[Any, dict[str, Any]]:
        """The class of the connections, and what says where they go."""
        host, port = options.addresses[0]
        return redis.asyncio.SSLConnection if options.tls else redis.asyncio.Connection, {"host": host, "port": port}

    def connection(self) -> Any:
        return self._kind(retry=no_async_retry(), **arguments(self._options), **self._place)

    def is_at(self, address: Address) -> bool:
        return True

    def is_gone(self, error: Exception) -> bool:
        return False

    def in_batch(self, script: Script, keyed: Keyed, durably: bool) -> Awaitable[Any]:
        batches = self._durable if durably else self._batches
        return batches.ask(script, keyed, self._options.now())

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
        self._batches.close()
        self._durable.close()
        await self._redis.aclose()


def listen(options: Options) -> Connection:
    """Channels are heard on the server itself."""
    return connect(options, options.addresses[0])


TOPOLOGY = Topology(OneServer, AsyncOneServer, listen)
