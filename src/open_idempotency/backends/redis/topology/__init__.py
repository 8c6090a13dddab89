"""How the servers are arranged: one, a primary that Sentinel names, or a Cluster. Clients that look alike.

Each arrangement has a module of its own over the client library's own client for it; replicas are never read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from open_idempotency.backends.redis.connecting import Connection
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.scripts import Keyed, Script

#: the words of a command
Command = Sequence[Any]


class NotInBatch(Exception):
    """A script is to be run by itself."""


class Server(Protocol):
    """One primary."""

    def execute(self, *words: Any) -> Any:
        """Run one command on it."""


class Client(Protocol):
    """Blocking. Raises one of ``ERRORS`` where a server does not answer."""

    def execute(self, command: Command) -> Any:
        """Run a script, on the server of its first key; what the server refuses is raised."""

    def each(self, commands: Sequence[Command]) -> list[Any]:
        """Run scripts, in one round trip for each server; refusals are returned in their places."""
        ...

    def together(self, commands: Sequence[Command]) -> list[Any]:
        """Run a script and other commands on one connection to its key's server, in one round trip; the same."""
        ...

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]:
        """The positions of the keys, together where one script may take them."""
        ...

    def servers(self) -> Sequence[Server]:
        """All primaries."""
        ...

    def close(self) -> None:
        """Close the connections."""


class AsyncServer(Protocol):
    """See ``Server``."""

    async def execute(self, *words: Any) -> Any: ...


class AsyncClient(Protocol):
    """The same on asyncio, for one event loop."""

    async def execute(self, command: Command) -> Any: ...

    def in_batch(self, script: Script, keyed: Keyed, durably: bool) -> Awaitable[Any]:
        """Run a script, together with what others ask meanwhile; ``durably``: until replicas have what it wrote.

        Bounded in time, and tried again, here; what comes of it is raised as ``BackendUnavailable``. Raises
        ``NotInBatch`` where it is to be run by itself, which does no harm if it has been run already.
        """
        ...

    async def each(self, commands: Sequence[Command]) -> list[Any]: ...

    async def together(self, commands: Sequence[Command]) -> list[Any]: ...

    def groups(self, keys: Sequence[bytes]) -> list[list[int]]: ...

    async def servers(self) -> Sequence[AsyncServer]: ...

    async def close(self) -> None: ...


class Topology(NamedTuple):
    """What makes clients. ``listen`` makes a connection for channels, on any server that hears all messages."""

    client: Callable[[Options], Client]
    async_client: Callable[[Options], AsyncClient]
    listen: Callable[[Options], Connection]


def topology_of(options: Options) -> Topology:
    """The arrangement that the URL named; its module is imported when it is used."""
    module = import_module(f"{__name__}.{options.topology}")
    made: Topology = module.TOPOLOGY
    return made
