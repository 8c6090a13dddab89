"""The clients of redis-py that reach one server, and what its ``INFO`` says about the safety of records.

Clients look alike however the servers are arranged. Here the address of the one server is known; ``sentinel`` and
``cluster`` have the other arrangements. Replicas are never read.

Only a server with a memory limit evicts records, so every policy is safe without ``maxmemory``. The limit may be set
later, so ``INFO`` is read again from time to time, by the callers: ``MemoryWatch`` neither waits nor has a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from math import inf
from typing import Any, NamedTuple, Protocol

import redis
import redis.asyncio

from open_idempotency.backends.redis.connections import (
    AsyncDestination,
    AsyncRoute,
    Connection,
    Route,
    address_arguments,
    connect,
    no_async_retry,
    no_retry,
    pool_arguments,
    sync_kind,
)
from open_idempotency.backends.redis.options import SINGLE, Options
from open_idempotency.backends.redis.pipelining import Batches, Command
from open_idempotency.backends.redis.scripts import Keyed, Script
from open_idempotency.exceptions import BackendUnavailable

# The safety of records

logger = logging.getLogger("open_idempotency")

#: seconds until a process reads ``INFO`` again, and until it does so after a failure
EVERY, AGAIN = 300.0, 5.0

_SAFE = "noeviction"
_FULL = 0.9


class MemoryWatch:
    """What is known about the servers' eviction policy; a forked process goes on with what its parent knew.

    A race between threads costs one more ``INFO``.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        #: a time of ``time.monotonic`` from which on the next caller should read ``INFO``; read where each claim passes
        self.next_look = inf if options.eviction == "ignore" else 0.0
        self._missed = False
        #: whether ``INFO`` was ever read; with ``eviction=refuse`` it must be, before any claim
        self.looked = False
        self._dangers: tuple[str, ...] = ()

    def begin_look(self) -> None:
        """The caller reads ``INFO`` now, so the next caller should not."""
        self._look_in(AGAIN)

    def _look_in(self, seconds: float) -> None:
        if self._options.eviction != "ignore":
            self.next_look = time.monotonic() + seconds

    def heed(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Take the replies of the servers. A new danger is logged."""
        dangers = tuple(dict.fromkeys(danger for info in infos for danger in evictions(info)))
        if dangers != self._dangers:
            for danger in dangers:
                logger.warning("%s: %s", self._options.where, danger)
        self._dangers, self.looked, self._missed = dangers, True, False
        self._look_in(EVERY)

    def missed(self, error: BackendUnavailable) -> None:
        """Reading ``INFO`` failed, as for a user without permission. What was known before stays."""
        logger.log(
            logging.DEBUG if self._missed else logging.WARNING,
            "%s: the eviction policy is not known: %s (allow INFO, or set eviction=ignore)",
            self._options.where,
            error.__cause__,
        )
        self._missed = True

    def admit(self) -> None:
        """Raise ``BackendUnavailable`` if records may be evicted, or if that is not known: with ``eviction=refuse``."""
        if not self.looked:
            raise BackendUnavailable("Redis: the eviction policy could not be read, and eviction=refuse")
        if self._dangers:
            raise BackendUnavailable(f"Redis: {self._dangers[0]} (eviction=refuse)")


def evictions(info: Mapping[str, Any]) -> list[str]:
    """The danger that the server evicts records."""
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == _SAFE or not int(info.get("maxmemory", 0)):
        return []
    return [
        f"maxmemory-policy is {policy}, so records may be evicted at the memory limit, and an evicted key runs again; "
        "set it to noeviction"
    ]


def dangers_of(infos: Sequence[Mapping[str, Any]], options: Options) -> list[str]:
    """All that is known to endanger records, for operators. Each danger is named once."""
    return list(dict.fromkeys(danger for info in infos for danger in _dangers(info, options)))


def _dangers(info: Mapping[str, Any], options: Options) -> list[str]:
    found = evictions(info)
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if limit and used > _FULL * limit:
        found.append(f"{used} of {limit} bytes are used; at the limit new keys are refused")
    if info.get("role", "master") != "master":
        found.append("the server is a replica, which takes no writes")
    if int(info.get("connected_slaves", 0)) < options.min_replicas:
        found.append(f"{info.get('connected_slaves')} replicas are connected, and min_replicas={options.min_replicas}")
    if not int(info.get("aof_enabled", 1)):
        found.append("appendonly is off, so a crash of the server loses what was written since its last snapshot")
    return found


# Clients


class NotInBatch(Exception):
    """A script cannot run in a batch now; the caller runs it by itself, also where the batch may have run it."""


class Server(Protocol):
    """One primary."""

    def execute(self, *words: Any) -> Any:
        """Run one command on it."""


class Client(Protocol):
    """Sync. Raises one of ``ERRORS`` where a server does not reply."""

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
    # Most applications use one server, and need not load what the others take.
    module = import_module(f"open_idempotency.backends.redis.{options.topology}")
    made: Topology = module.TOPOLOGY
    return made


class OneServer:
    """A sync client with a bounded pool, for the server that ``route`` leads to."""

    def __init__(self, options: Options, route: Route | None = None) -> None:
        # It waits for a free connection, within limits, where redis-py's default pool raises at once.
        pool: Any = redis.BlockingConnectionPool
        self._route = route or Route(options.address)
        made = {**pool_arguments(options), **address_arguments(options, options.address), "route": self._route}
        kind = sync_kind(options)
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
    """One server, through redis-py's client for it, sync or on asyncio."""

    def __init__(self, client: Any) -> None:
        self.execute = client.execute_command


def pipelined(client: Any, commands: Sequence[Command]) -> Any:
    """The replies to commands that are sent at once on one connection, awaitable on asyncio.

    Refusals are returned at their positions.
    """
    # No MULTI: a script is atomic by itself, and WAIT does not wait inside of a transaction.
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
