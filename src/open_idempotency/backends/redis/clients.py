"""The clients that a backend has: one for each process, and for asyncio one for each event loop in it.

All are made on first use. What the library raises is told here from what a second try may mend.
"""

from __future__ import annotations

import asyncio
import time

from redis.exceptions import ClusterDownError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.redis.connecting import ERRORS
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.topology import AsyncClient, Client, topology_of
from open_idempotency.exceptions import BackendUnavailable

__all__ = ["ERRORS", "LoopClients", "ProcessClients", "may_retry", "wrapped"]

_RETRIED = (RedisConnectionError, ClusterDownError, TryAgainError)


def wrapped(error: Exception) -> BackendUnavailable:
    """The library's error as ours; the caller keeps it as the cause."""
    return BackendUnavailable(f"Redis: {type(error).__name__}: {error}")


def may_retry(error: Exception, started: float, options: Options) -> bool:
    """Whether a second try makes sense: the connection broke, as after a restart, and there is time left."""
    return isinstance(error, _RETRIED) and time.monotonic() - started < options.timeout


class Closings:
    """Tells a call whether it was closed under way: what the library raises then is anything."""

    def __init__(self) -> None:
        self._number = 0

    def happened(self) -> None:
        """Something was closed."""
        self._number += 1

    def __call__(self) -> int:
        """A number that another call finds changed where something was closed between the two."""
        return self._number


class ProcessClients:
    """The blocking client of each process."""

    def __init__(self, options: Options) -> None:
        self._clients: PerProcess[Client] = PerProcess(lambda: topology_of(options).client(options))
        self.get = self._clients.get
        self.closings = Closings()

    def close(self) -> None:
        """Close this process's client; the next call makes another."""
        client = self._clients.pop()
        if client is not None:
            self.closings.happened()
            client.close()


class LoopClients:
    """The asyncio clients of this process, by event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._clients: PerProcess[dict[asyncio.AbstractEventLoop, AsyncClient]] = PerProcess(dict)
        self.closings = Closings()

    def get(self) -> AsyncClient:
        """The running loop's client. A new loop's first call forgets those of loops that were closed."""
        clients = self._clients.get()
        loop = asyncio.get_running_loop()
        client = clients.get(loop)
        if client is None:
            # Not a weak dictionary: connections hold their loop, so an entry would keep itself alive.
            for other in [other for other in list(clients) if other.is_closed()]:
                clients.pop(other, None)
            client = clients[loop] = topology_of(self._options).async_client(self._options)
        return client

    async def close(self) -> None:
        """Close the running loop's client; those of other loops can only be closed there."""
        client = self._clients.get().pop(asyncio.get_running_loop(), None)
        if client is not None:
            self.closings.happened()
            await client.close()
