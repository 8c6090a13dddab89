"""Clients of redis-py's that look alike, however the servers are arranged; here for one server, whose address is known.

``sentinel`` and ``cluster`` have the other arrangements. Replicas are never read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import redis
import redis.asyncio

from open_idempotency.backends.redis.connections import (
    AsyncDestination,
    AsyncRoute,
    Connection,
    Route,
    blocking_kind,
    connect,
    no_async_retry,
    no_retry,
    place,
    pool_arguments,
)
from open_idempotency.backends.redis.options import SINGLE, Options
from open_idempotency.backends.redis.pipelining import Batches
from open_idempotency.backends.redis.protocol import Command
from open_idempotency.backends.redis.scripts import Keyed, Script


class NotInBatch(Exception):
    """A script cannot run in a batch now; the caller runs it by itself, also where the batch may have run it."""


class Server(Protocol):
    """One primary."""

    def execute(self, *words: Any) -> Any:
        """Run one command on it."""


class Client(Protocol):
    """Blocking. Raises one of ``ERRORS`` where a server does not reply."""

    def execute(self, command: Command) -> Any:
        """Run a script on the server of its first key. A refusal is raised."""

    def each(self, commands: Sequence[Command]) -> list[Any]:
        """Run scripts, in one round trip for each server. Refusals are returned at their positions."""
        ...

    def together(self, commands: Sequence[Command]) -> list[Any]:
        """Run a script, and other commands after it on the same connection, in one round trip.

        Refusals are returned at their positions.
        """
        ...

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        """The indexes of the keys, grouped so that one script may take the keys of a group."""
        ...

    def servers(self) -> Sequence[Server]:
        """All primaries."""
        ...

    def suspect(self) -> None:
        """A server may have been replaced as the primary: find out, without waiting for it."""

    def close(self) -> None:
        """Close the connections."""


class AsyncServer(Protocol):
    """See ``Server``."""

    async def execute(self, *words: Any) -> Any: ...


InBatch = Callable[[Script, Keyed], Awaitable[Any]]


class AsyncClient(Protocol):
    """See ``Client``; on asyncio, for one event loop."""

    async def execute(self, command: Command) -> Any: ...

    @property
    def in_batch(self) -> InBatch:
        """Runs a script in the next batch.

        The call is bounded in time, and retried, there. Raises ``BackendUnavailable``, or ``NotInBatch``.
        """
        ...

    @property
    def durably_in_batch(self) -> InBatch:
        """The same; a reply counts when ``min_replicas`` replicas confirmed it."""
        ...

    async def each(self, commands: Sequence[Command]) -> list[Any]: ...

    async def together(self, commands: Sequence[Command]) -> list[Any]: ...

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]: ...

    async def servers(self) -> Sequence[AsyncServer]: ...

    def suspect(self) -> None: ...

    async def close(self) -> None: ...


class Topology(NamedTuple):
    """What makes the clients of an arrangement. ``listen`` makes a connection for channels."""

    client: Callable[[Options], Client]
    async_client: Callable[[Options], AsyncClient]
    listen: Callable[[Options], Connection]


def topology_of(options: Options) -> Topology:
    """The arrangement that the URL names. Its module is imported when it is used."""
    if options.topology == SINGLE:
        return TOPOLOGY
    module = import_module(f"open_idempotency.backends.redis.{options.topology}")
    made: Topology = module.TOPOLOGY
    return made


class OneServer:
    """A blocking client with a bounded pool, for the server that ``route`` leads to."""

    def __init__(self, options: Options, route: Route | None = None) -> None:
        pool: Any = redis.BlockingConnectionPool
        self._route = route or Route(options.address)
        made = {**pool_arguments(options), **place(options, options.address), "route": self._route}
        kind = blocking_kind(options)
        self._redis: Any = redis.Redis.from_pool(pool(connection_class=kind, retry=no_retry(), **made))

    def execute(self, command: Command) -> Any:
        return self._redis.execute_command(*command)

    def each(self, commands: Sequence[Command]) -> list[Any]:
        return self.together(commands)

    def together(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = pipelined(self._redis, commands)
        return replies

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        return [list(range(len(keys)))]

    def servers(self) -> Sequence[PlainServer]:
        return (PlainServer(self._redis),)

    def suspect(self) -> None:
        self._route.suspect()

    def close(self) -> None:
        self._redis.close()


class PlainServer:
    """One server, through redis-py's client for it, blocking or on asyncio."""

    def __init__(self, client: Any) -> None:
        self.execute = client.execute_command


def pipelined(client: Any, commands: Sequence[Command]) -> Any:
    """The replies to commands that are sent at once on one connection, awaitable on asyncio.

    Refusals are returned at their positions.
    """
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute(raise_on_error=False)


class AsyncOneServer:
    """See ``OneServer``; on asyncio."""

    def __init__(self, options: Options, route: AsyncRoute | None = None) -> None:
        client: Any = redis.asyncio.Redis
        pool: Any = redis.asyncio.BlockingConnectionPool
        self._route = route or AsyncRoute(options.address)
        destination = AsyncDestination(options, options.address, self._route)
        made = {**pool_arguments(options), **destination.arguments}
        self._redis = client.from_pool(pool(connection_class=destination.kind, retry=no_async_retry(), **made))
        self._batches = Batches(options, destination)
        # Another connection: what waits for replicas delays nothing else.
        self._durable = Batches(options, destination, replicas=options.min_replicas)
        self.in_batch: InBatch = self._batches.ask
        self.durably_in_batch: InBatch = self._durable.ask

    async def execute(self, command: Command) -> Any:
        return await self._redis.execute_command(*command)

    async def each(self, commands: Sequence[Command]) -> list[Any]:
        return await self.together(commands)

    async def together(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = await pipelined(self._redis, commands)
        return replies

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        return [list(range(len(keys)))]

    async def servers(self) -> Sequence[PlainServer]:
        return (PlainServer(self._redis),)

    def suspect(self) -> None:
        self._route.suspect()

    async def close(self) -> None:
        self._batches.close()
        self._durable.close()
        await self._redis.aclose()


def listen(options: Options) -> Connection:
    """A connection for channels, to the server itself."""
    return connect(options, options.address)


TOPOLOGY = Topology(OneServer, AsyncOneServer, listen)
