"""The clients of redis-py that reach one server, and what its ``INFO`` says about the safety of records.

Clients have the same interface for every arrangement of servers. This module is for one server whose address is known;
``sentinel`` and ``cluster`` have the other arrangements. Replicas are never read.

Only a server with a memory limit evicts records, so every policy is safe without ``maxmemory``. The limit may be set
later, so ``INFO`` is read again from time to time, by the callers: ``MemoryWatch`` neither waits nor has a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib import import_module
from math import inf
from typing import Any, NamedTuple, Protocol

import redis
import redis.asyncio

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings
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
    """The servers' eviction policy, as far as it is known. A forked process starts with what its parent knew.

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
        """Note that the caller reads ``INFO`` now, so that the next caller does not."""
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
        """Note that reading ``INFO`` failed, as for a user without permission. Earlier results stay."""
        logger.log(
            logging.DEBUG if self._missed else logging.WARNING,
            "%s: the eviction policy is not known: %s (allow INFO, or set eviction=ignore)",
            self._options.where,
            error.__cause__,
        )
        self._missed = True

    def admit(self) -> None:
        """With ``eviction=refuse``, raise ``BackendUnavailable`` if records may be evicted, or if that is not known."""
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
        """Note that a server may have been replaced as the primary. It is found out without waiting."""

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
        """See ``in_batch``. A reply counts when ``min_replicas`` replicas have confirmed it."""
        ...

    async def each(self, commands: Sequence[Command]) -> list[Any]: ...

    async def together(self, commands: Sequence[Command]) -> list[Any]: ...

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]: ...

    async def servers(self) -> Sequence[AsyncServer]: ...

    def suspect(self) -> None: ...

    async def close(self) -> None: ...


class Topology(NamedTuple):
    """The functions that make the clients of an arrangement. ``listen`` makes a connection for channels."""

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
        # Another connection, so that a call that waits for replicas delays no other call.
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


# The examination: what ``INFO`` says of each primary, and of their arrangement (P-17)

On = Callable[..., Any]

_NEARLY_FULL, _AT_LIMIT = 0.8, 0.95
_AOF = "set appendonly yes; with appendfsync everysec a crash loses a second, with always nothing"


def examine(options: Options, servers: Sequence[Server], on: On) -> list[Finding]:
    """Look at each primary. ``on``: runs a plain command on one of them, and raises ``BackendUnavailable``."""
    found: list[Finding] = []
    for server in servers:
        try:
            info: Mapping[str, Any] = on(server, "INFO")
        except BackendUnavailable as error:
            if _is_lost(error):
                raise
            found.append(findings.denied("server", f"INFO is not permitted: {error.__cause__}", "allow INFO to look"))
            continue
        found += _of_server(info, options)
    found += _of_arrangement(options, servers, on)
    return list(dict.fromkeys(found))


def _is_lost(error: BackendUnavailable) -> bool:
    """Whether the server did not reply, as opposed to a refusal."""
    return type(error.__cause__).__name__ not in ("NoPermissionError", "ResponseError")


def _of_server(info: Mapping[str, Any], options: Options) -> Iterator[Finding]:
    name, version = ("Valkey", info["valkey_version"]) if info.get("valkey_version") else (
        "Redis", info.get("redis_version", "of unknown version"),
    )  # fmt: skip
    yield findings.server(f"{name} {version}, port {info.get('tcp_port', '?')}")
    if info.get("role", "master") != "master":
        yield findings.replica("the server is a replica, which takes no writes")
    yield _eviction(info)
    yield _memory(info)
    yield from _persistence(info)
    yield from _replicas(info, options)


def _eviction(info: Mapping[str, Any]) -> Finding:
    dangers = evictions(info)
    if dangers:
        return Finding("eviction", Level.PROBLEM, dangers[0], "CONFIG SET maxmemory-policy noeviction, and in its file")
    policy = info.get("maxmemory_policy", "unknown")
    without = "" if int(info.get("maxmemory", 0)) else ", and no maxmemory is set, so nothing is evicted"
    return Finding("eviction", Level.OK, f"maxmemory-policy is {policy}{without}")


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        total = int(info.get("total_system_memory", 0))
        share = f" of {findings.megabytes(total)} that the machine has" if total else ""
        return Finding("memory", Level.OK, f"{findings.megabytes(used)} are used{share}; no maxmemory is set")
    found = f"{findings.megabytes(used)} of {findings.megabytes(limit)} are used ({used / limit:.0%})"
    cure = "at the limit new keys are refused (503): raise maxmemory, or lower ttl= and max_response_bytes="
    if used < _NEARLY_FULL * limit:
        return Finding("memory", Level.OK, found)
    return Finding("memory", Level.PROBLEM if used > _AT_LIMIT * limit else Level.WARNING, found, cure)


def _persistence(info: Mapping[str, Any]) -> Iterator[Finding]:
    if int(info.get("loading", 0)):
        yield Finding("persistence", Level.PROBLEM, "the server is loading its data, and refuses calls meanwhile")
    if not int(info.get("aof_enabled", 1)):
        lost = "appendonly is off, so a crash of the server loses what was written since its last snapshot"
        yield Finding("persistence", Level.WARNING, f"{lost}, and lost keys run again", _AOF)
    else:
        yield Finding("persistence", Level.OK, "appendonly is on")
    for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(name, "ok") != "ok":
            yield Finding("persistence", Level.PROBLEM, f"{name} is {info[name]}", "look at the server's log and disk")


def _replicas(info: Mapping[str, Any], options: Options) -> Iterator[Finding]:
    connected = int(info.get("connected_slaves", 0))
    if connected < options.min_replicas:
        found = f"{connected} replicas are connected, and min_replicas={options.min_replicas}"
        yield Finding("replicas", Level.PROBLEM, found, "new keys are refused until the replicas are back")
    elif connected and not options.min_replicas:
        found = f"{connected} replicas are connected, and min_replicas is not set"
        cure = "a failover may forget the last keys; min_replicas=1 in the URL waits for a replica"
        yield Finding("replicas", Level.WARNING, found, cure)
    else:
        yield Finding("replicas", Level.OK, f"{connected} replicas are connected")


def _of_arrangement(options: Options, servers: Sequence[Server], on: On) -> Iterator[Finding]:
    if options.topology == "sentinel":
        yield Finding("sentinel", Level.OK, f"the Sentinels name a primary: {options.where}")
    if options.topology != "cluster":
        return
    for server in servers:
        try:
            state = _lines(on(server, "CLUSTER INFO"))
        except BackendUnavailable as error:
            if _is_lost(error):
                raise
            yield findings.denied("cluster", f"CLUSTER INFO is not permitted: {error.__cause__}")
            return
        if state.get("cluster_state") != "ok":
            failed = state.get("cluster_slots_fail", "?")
            found = f"cluster_state is {state.get('cluster_state')}; {failed} slots have failed"
            yield Finding("cluster", Level.PROBLEM, found, "keys of these slots get 503 until their primary is back")
            return
    yield Finding("cluster", Level.OK, f"cluster_state is ok, with {len(servers)} primaries")


def _lines(reply: Any) -> dict[str, str]:
    if isinstance(reply, Mapping):
        return {str(name): str(value) for name, value in reply.items()}
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.split() if ":" in line)
