"""A Cluster, through redis-py's own client for it, which follows redirections (MOVED, ASK), resharding and failovers.

That client does not retry: the backend retries once, and every step is bounded. Scripts for many keys go out at
once to each node, and batches go over one pipelined connection to each node. If a node redirects a script, or a
connection breaks, the script is left to redis-py's client.

One case is followed here, because redis-py does not: a script and the WAIT behind it have to use one connection, also
while their slot is moving to another node.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster
from redis.exceptions import AskError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency.backends.redis.connections import (
    AsyncDestination,
    AsyncRoute,
    Connection,
    arguments,
    connect,
    no_async_retry,
    no_retry,
    pool_arguments,
    sync_kind,
)
from open_idempotency.backends.redis.options import Deadline, Options, limited, seconds_left
from open_idempotency.backends.redis.pipelining import Batches, Command
from open_idempotency.backends.redis.refusals import ERRORS
from open_idempotency.backends.redis.scripts import Keyed, Script
from open_idempotency.backends.redis.topology import NotInBatch, PlainServer, Topology, pipelined
from open_idempotency.exceptions import BackendUnavailable

#: how many nodes are tried for a connection for channels
_LISTENED_AT_MOST = 3
#: where the number of keys, and where the first key stands in ``EVALSHA sha count key …``
_COUNT, _KEY = 2, 3


class _Nodes:
    """The common part of the sync and the asyncio client. ``_cluster``: redis-py's client."""

    _cluster: Any

    def node_of(self, command: Command) -> Any:
        """The node of a script's first key, as far as redis-py knows."""
        return self._cluster.get_node_from_key(command[_KEY])

    def by_node(self, commands: Sequence[Command]) -> list[tuple[Any, list[int]]]:
        """The nodes of the commands, each with the indexes of its commands."""
        found: dict[str, tuple[Any, list[int]]] = {}
        for index, command in enumerate(commands):
            node = self.node_of(command)
            found.setdefault(node.name, (node, []))[1].append(index)
        return list(found.values())

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        """The indexes of the keys of each slot. A script may take the keys of one slot only, also on one server."""
        slot_of: Callable[[bytes], int] = self._cluster.keyslot
        found: dict[int, list[int]] = {}
        for index, key in enumerate(keys):
            found.setdefault(slot_of(key), []).append(index)
        return list(found.values())

    def suspect(self) -> None:
        """Nothing: the nodes of a Cluster redirect calls, and redis-py follows."""

    def asked(self, refusal: AskError, commands: Sequence[Command]) -> tuple[Any, list[Command]]:
        """The node that a slot is moving to, and what to send there."""
        node = self._cluster.get_node(refusal.host, refusal.port)
        if node is None:
            raise RedisConnectionError("the node that the slot is moving to is not known yet")
        return node, [("ASKING",), *commands]


def _is_followed(reply: Any, command: Command) -> bool:
    """Whether redis-py's client is to follow this redirection: that of one key, or of a slot that has moved.

    It would try the keys of a slot that is still moving again and again, and neither node has all of them.
    """
    return isinstance(reply, MovedError) or (isinstance(reply, AskError) and command[_COUNT] == 1)


def _unbroken(replies: list[Any]) -> list[Any]:
    """The replies, where the connection held. Refusals are replies too."""
    for reply in replies:
        if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
            raise reply
    return replies


class ClusterClient(_Nodes):
    """A sync client of all nodes."""

    def __init__(self, options: Options) -> None:
        (host, port), *others = options.addresses
        made = pool_arguments(options)
        del made["db"]
        node: Any = redis.cluster.ClusterNode
        client: Any = redis.cluster.RedisCluster
        # Only the nodes of a client that was made from a URL may have connections of our class.
        self._cluster = client(
            url=f"redis://{'[' + host + ']' if ':' in host else host}:{port}",
            startup_nodes=[node(*address) for address in others],
            retry=no_retry(),
            connection_class=sync_kind(options),
            connection_pool_class=redis.BlockingConnectionPool,
            address_remap=options.remap,
            **made,
        )

    def execute(self, command: Command) -> Any:
        return self._cluster.execute_command(*command)

    def each(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        by_node = self.by_node(commands)
        broken: Exception | None = None
        for number, (node, indexes) in enumerate(by_node):
            try:
                # A node that is down must not use up the time of the nodes after it.
                with Deadline((seconds_left() or 0.0) / (len(by_node) - number)):
                    self._fill(replies, node, indexes, commands)
            except ERRORS as error:
                broken = error
        if broken is not None:
            raise broken
        return replies

    def _fill(self, replies: list[Any], node: Any, indexes: list[int], commands: Sequence[Command]) -> None:
        try:
            found = self._on(node, [commands[index] for index in indexes])
        except ERRORS:
            with suppress(*ERRORS):
                self.execute(commands[indexes[0]])  # after an error of a single call redis-py looks for the nodes again
            raise
        for index, reply in zip(indexes, found, strict=True):
            replies[index] = self._followed(commands[index]) if _is_followed(reply, commands[index]) else reply

    def _followed(self, command: Command) -> Any:
        try:
            return self.execute(command)
        except ResponseError as error:
            return error

    def together(self, commands: Sequence[Command]) -> list[Any]:
        replies = self._on(self.node_of(commands[0]), commands)
        if isinstance(replies[0], MovedError):
            self.execute(commands[0])  # redis-py learns where the slot is now; running the script twice does no harm
            replies = self._on(self.node_of(commands[0]), commands)
        if isinstance(replies[0], AskError):
            replies = self._on(*self.asked(replies[0], commands))[1:]
        return replies

    def _on(self, node: Any, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = pipelined(self._cluster.get_redis_connection(node), commands)
        return replies

    def servers(self) -> Sequence[PlainServer]:
        return [PlainServer(self._cluster.get_redis_connection(node)) for node in self._cluster.get_primaries()]

    def close(self) -> None:
        nodes = self._cluster.get_nodes()
        self._cluster.close()
        for node in nodes:
            # redis-py leaves the pools of the nodes to the garbage collector.
            if node.redis_connection is not None:
                node.redis_connection.connection_pool.disconnect()


class AsyncClusterClient(_Nodes):
    """A client of all nodes for one event loop."""

    def __init__(self, options: Options) -> None:
        made = arguments(options)
        del made["db"]
        node: Any = redis.asyncio.cluster.ClusterNode
        client: Any = redis.asyncio.cluster.RedisCluster
        self._cluster = client(
            startup_nodes=[node(*address) for address in options.addresses],
            retry=no_async_retry(),
            ssl=options.tls,
            max_connections=options.max_connections,
            address_remap=options.remap,
            **made,
        )
        # redis-py refuses a call when all connections are in use. Here the call waits, within its time.
        self._gate = asyncio.Semaphore(options.max_connections)
        self._options = options
        self._known = False
        self._learning = asyncio.Lock()
        self._batches: dict[tuple[str, bool], Batches] = {}

    async def execute(self, command: Command) -> Any:
        async with self._gate:
            await self._know_nodes()
            return await self._cluster.execute_command(*command)

    async def _know_nodes(self) -> None:
        """Let redis-py learn the nodes once, before the first call.

        Calls that make it do so at the same moment may lose their connections to each other.
        """
        if not self._known:
            async with self._learning:
                await self._cluster.initialize()
                self._known = True

    async def in_batch(self, script: Script, keyed: Keyed, durably: bool = False) -> Any:
        """Run a script over our connection to the key's node. What the node refuses is left to redis-py's client."""
        keys, _ = keyed
        try:
            await limited(self._options.connects_within, self._know_nodes())
            return await self._batches_of(keys[0], durably).ask(script, keyed)
        except ERRORS as error:
            raise NotInBatch from error
        except BackendUnavailable as error:
            if isinstance(error.__cause__, RedisConnectionError | ResponseError):
                raise NotInBatch from error
            raise

    async def durably_in_batch(self, script: Script, keyed: Keyed) -> Any:
        return await self.in_batch(script, keyed, durably=True)

    def _batches_of(self, key: bytes, durably: bool) -> Batches:
        node = self._cluster.get_node_from_key(key)
        batches = self._batches.get((node.name, durably))
        if batches is None:
            replicas = self._options.min_replicas if durably else 0
            address = (node.host, node.port)
            destination = AsyncDestination(self._options, address, AsyncRoute(address))
            batches = Batches(self._options, destination, replicas=replicas)
            self._batches[node.name, durably] = batches
        return batches

    async def each(self, commands: Sequence[Command]) -> list[Any]:
        async with self._gate:
            await self._cluster.initialize()
            replies: list[Any] = [None] * len(commands)
            fills = (self._fill(replies, node, indexes, commands) for node, indexes in self.by_node(commands))
            ended = await asyncio.gather(*fills, return_exceptions=True)
        broken = [error for error in ended if error is not None]
        if broken:
            raise broken[0]
        return replies

    async def _fill(self, replies: list[Any], node: Any, indexes: list[int], commands: Sequence[Command]) -> None:
        try:
            found = await self._on(node, [commands[index] for index in indexes])
        except ERRORS:
            with suppress(*ERRORS):
                await self._cluster.execute_command(*commands[indexes[0]])  # as in the sync client
            raise
        for index, reply in zip(indexes, found, strict=True):
            again = _is_followed(reply, commands[index])
            replies[index] = await self._followed(commands[index]) if again else reply

    async def _followed(self, command: Command) -> Any:
        try:
            return await self._cluster.execute_command(*command)
        except ResponseError as error:
            return error

    async def together(self, commands: Sequence[Command]) -> list[Any]:
        async with self._gate:
            await self._cluster.initialize()
            replies = await self._on(self.node_of(commands[0]), commands)
            if isinstance(replies[0], MovedError):
                await self._cluster.execute_command(*commands[0])  # as in the sync client
                replies = await self._on(self.node_of(commands[0]), commands)
            if isinstance(replies[0], AskError):
                replies = (await self._on(*self.asked(replies[0], commands)))[1:]
            return replies

    async def _on(self, node: Any, commands: Sequence[Command]) -> list[Any]:
        # One node and no redirections, so all of it goes over one connection.
        pipeline = self._cluster.pipeline()
        for command in commands:
            pipeline.execute_command(*command, target_nodes=node)
        return _unbroken(await pipeline.execute(raise_on_error=False, allow_redirections=False))

    async def servers(self) -> Sequence[_NodeServer]:
        await self._cluster.initialize()
        return [_NodeServer(node, self._gate) for node in self._cluster.get_primaries()]

    async def close(self) -> None:
        for batches in self._batches.values():
            batches.close()
        await self._cluster.aclose()
        # After a call that broke redis-py takes its client for closed, although other connections are open.
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._cluster.nodes_manager.aclose(nodes)


class _NodeServer:
    """One primary, on asyncio."""

    def __init__(self, node: Any, gate: asyncio.Semaphore) -> None:
        self._node = node
        self._gate = gate

    async def execute(self, *words: Any) -> Any:
        async with self._gate:
            return await self._node.execute_command(*words)


def listen(options: Options) -> Connection:
    """A connection for channels, to a node that the URL names. Every node passes all messages on."""
    addresses = random.sample(options.addresses, min(_LISTENED_AT_MOST, len(options.addresses)))
    for address in addresses[:-1]:
        try:
            return connect(options, address)
        except ERRORS:
            continue  # the error of the last one is raised
    return connect(options, addresses[-1])


TOPOLOGY = Topology(ClusterClient, AsyncClusterClient, listen)
