"""The Cluster's client on asyncio; see ``cluster`` for what it does with redirections and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis.asyncio
import redis.asyncio.cluster
from redis.exceptions import AskError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency.backends.redis.addresses import Address
from open_idempotency.backends.redis.batches import Batches
from open_idempotency.backends.redis.bounds import within_async
from open_idempotency.backends.redis.connecting import ERRORS, arguments, no_async_retry
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.scripts import Keyed, Script
from open_idempotency.backends.redis.topology import Command, NotInBatch
from open_idempotency.backends.redis.topology.redirections import REDIRECTIONS, by_node, by_slot, key_of, redirected
from open_idempotency.exceptions import BackendUnavailable


class AsyncClusterClient:
    """A client of all nodes for one event loop."""

    def __init__(self, options: Options) -> None:
        made = arguments(options)
        del made["db"]
        node: Any = redis.asyncio.cluster.ClusterNode
        client: Any = redis.asyncio.cluster.RedisCluster
        self._cluster: Any = client(
            startup_nodes=[node(*address) for address in options.addresses],
            retry=no_async_retry(),
            ssl=options.tls,
            max_connections=options.max_connections,
            **made,
        )
        # The library refuses a call when all connections are taken; here it waits, within its time.
        self._gate = asyncio.Semaphore(options.max_connections)
        self._options = options
        self._known = False
        self._learning = asyncio.Lock()
        self._lines: dict[tuple[str, bool], Batches] = {}

    async def execute(self, command: Command) -> Any:
        async with self._gate:
            await self._know()
            return await self._cluster.execute_command(*command)

    async def _know(self) -> None:
        """Learn the nodes before the first call: calls that make the library do so at the same moment may lose their
        connections to each other.
        """
        if not self._known:
            async with self._learning:
                await self._cluster.initialize()
                self._known = True

    async def in_batch(self, script: Script, keyed: Keyed, durably: bool) -> Any:
        """On a connection to the key's node; what is not answered there the library's client is to look for."""
        keys, _ = keyed
        try:
            await within_async(self._options.connects_within, self._know())
            return await self._batches(keys[0], durably).ask(script, keyed, self._options.now())
        except ERRORS as error:
            raise NotInBatch from error
        except BackendUnavailable as error:
            if isinstance(error.__cause__, RedisConnectionError | ResponseError):
                raise NotInBatch from error
            raise

    def _batches(self, key: bytes, durably: bool) -> Batches:
        node = self._cluster.get_node_from_key(key)
        batches = self._lines.get((node.name, durably))
        if batches is None:
            replicas = self._options.min_replicas if durably else 0
            batches = Batches(self._options, Node(node.host, node.port, self._options), replicas=replicas)
            self._lines[node.name, durably] = batches
        return batches

    async def each(self, commands: Sequence[Command]) -> list[Any]:
        async with self._gate:
            await self._cluster.initialize()
            replies: list[Any] = [None] * len(commands)
            batches = by_node(commands, self._node_of)
            fills = (self._fill(replies, node, positions, commands) for node, positions in batches)
            ended = await asyncio.gather(*fills, return_exceptions=True)
        broken = [error for error in ended if error is not None]
        if broken:
            raise broken[0]
        return replies

    async def _fill(self, replies: list[Any], node: Any, positions: list[int], commands: Sequence[Command]) -> None:
        try:
            found = await self._on(node, [commands[position] for position in positions])
        except ERRORS:
            with suppress(*ERRORS):
                await self._cluster.execute_command(*commands[positions[0]])
            raise
        for position, reply in zip(positions, found, strict=True):
            replies[position] = await self._followed(commands[position]) if redirected(reply) else reply

    async def _followed(self, command: Command) -> Any:
        try:
            return await self._cluster.execute_command(*command)
        except ResponseError as error:
            return error

    async def together(self, commands: Sequence[Command]) -> list[Any]:
        async with self._gate:
            await self._cluster.initialize()
            node, asking = self._node_of(commands[0]), False
            replies: list[Any] = []
            for _ in range(REDIRECTIONS):
                replies = await self._on(node, [("ASKING",), *commands] if asking else commands)
                replies, first = replies[asking:], replies[asking]
                asking = isinstance(first, AskError)
                if isinstance(first, AskError):
                    node = self._cluster.get_node(first.host, first.port) or node
                elif isinstance(first, MovedError):
                    await self._followed(commands[0])
                    node = self._node_of(commands[0])
                else:
                    break
            return replies

    async def _on(self, node: Any, commands: Sequence[Command]) -> list[Any]:
        queued = [redis.asyncio.cluster.PipelineCommand(place, *command) for place, command in enumerate(commands)]
        await node.execute_pipeline(queued)
        replies: list[Any] = [command.result for command in queued]
        for reply in replies:
            # What is no refusal of the server broke the connection.
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise reply
        return replies

    def _node_of(self, command: Command) -> Any:
        return self._cluster.get_node_from_key(key_of(command))

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        return by_slot(keys, self._cluster.keyslot)

    async def servers(self) -> Sequence[NodeServer]:
        await self._cluster.initialize()
        return [NodeServer(node, self._gate) for node in self._cluster.get_primaries()]

    async def close(self) -> None:
        for batches in self._lines.values():
            batches.close()
        await self._cluster.aclose()


class Node:
    """Where the batches for one node go."""

    def __init__(self, host: str, port: int, options: Options) -> None:
        self._options = options
        self._address = (host, port)

    def connection(self) -> Any:
        kind: Any = redis.asyncio.SSLConnection if self._options.tls else redis.asyncio.Connection
        host, port = self._address
        return kind(retry=no_async_retry(), **{**arguments(self._options), "db": 0, "host": host, "port": port})

    def is_at(self, address: Address) -> bool:
        return address == self._address

    def is_gone(self, error: Exception) -> bool:
        return False


class NodeServer:
    """One primary."""

    def __init__(self, node: Any, gate: asyncio.Semaphore) -> None:
        self._node = node
        self._gate = gate

    async def execute(self, *words: Any) -> Any:
        async with self._gate:
            return await self._node.execute_command(*words)
