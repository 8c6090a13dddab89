"""A Cluster, through the library's own client for it, which follows resharding and failovers.

That client is told not to retry: the backend tries once more, and every step is bounded. What has to go over one
connection, or in one round trip to each server, goes to the node directly; redirections are followed here then.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis
import redis.cluster
from redis.exceptions import AskError, MovedError

from open_idempotency.backends.redis.bounds import BoundedConnection, BoundedSSLConnection, seconds_left, within
from open_idempotency.backends.redis.connecting import ERRORS, Connection, connect, no_retry, pool_arguments
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.topology import Command, Topology
from open_idempotency.backends.redis.topology.async_cluster import AsyncClusterClient
from open_idempotency.backends.redis.topology.redirections import (
    LISTENED_AT_MOST,
    REDIRECTIONS,
    by_node,
    by_slot,
    key_of,
    redirected,
)
from open_idempotency.backends.redis.topology.single import PlainServer, pipelined


class ClusterClient:
    """A blocking client of all nodes."""

    def __init__(self, options: Options) -> None:
        (host, port), *others = options.addresses
        arguments = pool_arguments(options)
        del arguments["db"]
        node: Any = redis.cluster.ClusterNode
        client: Any = redis.cluster.RedisCluster
        # Only the nodes of a client that was made from a URL may have connections of our class.
        self._cluster: Any = client(
            url=f"redis://{'[' + host + ']' if ':' in host else host}:{port}",
            startup_nodes=[node(*address) for address in others],
            retry=no_retry(),
            connection_class=BoundedSSLConnection if options.tls else BoundedConnection,
            connection_pool_class=redis.BlockingConnectionPool,
            **arguments,
        )

    def execute(self, command: Command) -> Any:
        return self._cluster.execute_command(*command)

    def each(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        batches = by_node(commands, self._node_of)
        broken: Exception | None = None
        for number, (node, positions) in enumerate(batches):
            try:
                # A node that is away may not take the time of those that come after it.
                with within((seconds_left() or 0.0) / (len(batches) - number)):
                    self._fill(replies, node, positions, commands)
            except ERRORS as error:
                broken = error
        if broken is not None:
            raise broken
        return replies

    def _fill(self, replies: list[Any], node: Any, positions: list[int], commands: Sequence[Command]) -> None:
        try:
            found = self._on(node, [commands[position] for position in positions])
        except ERRORS:
            # The library's client learns from an error of its own where the slots are now; here it is given one.
            with suppress(*ERRORS):
                self.execute(commands[positions[0]])
            raise
        for position, reply in zip(positions, found, strict=True):
            replies[position] = self._followed(commands[position]) if redirected(reply) else reply

    def _followed(self, command: Command) -> Any:
        try:
            return self.execute(command)
        except redis.ResponseError as error:
            return error

    def together(self, commands: Sequence[Command]) -> list[Any]:
        node, asking = self._node_of(commands[0]), False
        replies: list[Any] = []
        for _ in range(REDIRECTIONS):
            replies = self._on(node, [("ASKING",), *commands])[1:] if asking else self._on(node, commands)
            first, asking = replies[0], isinstance(replies[0], AskError)
            if isinstance(first, AskError):
                node = self._cluster.get_node(first.host, first.port) or node
            elif isinstance(first, MovedError):
                self._followed(commands[0])
                node = self._node_of(commands[0])
            else:
                break
        return replies

    def _on(self, node: Any, commands: Sequence[Command]) -> list[Any]:
        return pipelined(self._cluster.get_redis_connection(node), commands)

    def _node_of(self, command: Command) -> Any:
        return self._cluster.get_node_from_key(key_of(command))

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        return by_slot(keys, self._cluster.keyslot)

    def servers(self) -> Sequence[PlainServer]:
        return [PlainServer(self._cluster.get_redis_connection(node)) for node in self._cluster.get_primaries()]

    def close(self) -> None:
        self._cluster.close()


def listen(options: Options) -> Connection:
    """Every node hears the messages of all: the first that answers, of those that the URL names."""
    addresses = random.sample(options.addresses, min(LISTENED_AT_MOST, len(options.addresses)))
    for address in addresses[:-1]:
        try:
            return connect(options, address)
        except ERRORS:
            continue  # the last one's error is raised
    return connect(options, addresses[-1])


TOPOLOGY = Topology(ClusterClient, AsyncClusterClient, listen)
