"""The client library, set up so that every call is bounded: our timeouts, and no retries but our own.

One client for each process, and for asyncio one for each event loop in it; all are made on first use.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from typing import Any, Protocol, cast

import redis
import redis.asyncio
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.redis.options import Options
from open_idempotency.exceptions import BackendUnavailable

#: what the client library raises
ERRORS = (RedisError, OSError)


class Client(Protocol):
    """What we use of ``redis.Redis``."""

    def execute_command(self, *arguments: Any) -> Any: ...

    def close(self) -> None: ...


class Connection(Protocol):
    """What we use of ``redis.Connection``."""

    _sock: socket.socket

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def send_command(self, *arguments: Any) -> None: ...

    def can_read(self, timeout: float) -> bool: ...

    def read_response(self) -> Any: ...


class AsyncClient(Protocol):
    """What we use of ``redis.asyncio.Redis``."""

    async def execute_command(self, *arguments: Any) -> Any: ...

    async def aclose(self) -> None: ...


def wrapped(error: Exception) -> BackendUnavailable:
    """The library's error as ours; the caller keeps it as the cause."""
    return BackendUnavailable(f"Redis: {type(error).__name__}: {error}")


def may_retry(error: Exception, started: float, options: Options) -> bool:
    """Whether a second try makes sense: the connection broke, as after a restart, and there is time left."""
    return isinstance(error, RedisConnectionError) and time.monotonic() - started < options.timeout


def _anonymous() -> dict[str, Any]:
    """Arguments that save the round trips in which the library would introduce itself on each connection."""
    parameters = inspect.signature(redis.Connection).parameters
    known = inspect.signature(redis.connection.AbstractConnection).parameters
    if "driver_info" in parameters or "driver_info" in known:
        return {"driver_info": None}
    return {name: None for name in ("lib_name", "lib_version") if name in known}


_ANONYMOUS = _anonymous()


def _arguments(options: Options) -> dict[str, Any]:
    return {
        **_ANONYMOUS,
        **options.connection,
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "protocol": 2,
    }


def _pool_arguments(options: Options) -> dict[str, Any]:
    return {**_arguments(options), "max_connections": options.max_connections, "timeout": options.timeout}


def connect(options: Options) -> Connection:
    """A connection of its own for channels, which have no database number. Raises one of ``ERRORS``."""
    kind: Any = redis.SSLConnection if options.tls else redis.Connection
    connection: Connection = kind(retry=Retry(NoBackoff(), 0), **{**_arguments(options), "db": 0})
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection


def make_client(options: Options) -> Client:
    """A blocking client with a bounded pool."""
    kind = redis.SSLConnection if options.tls else redis.Connection
    pool: Any = redis.BlockingConnectionPool
    client: Any = redis.Redis
    made = pool(connection_class=kind, retry=Retry(NoBackoff(), 0), **_pool_arguments(options))
    return cast(Client, client.from_pool(made))


def make_async_client(options: Options) -> AsyncClient:
    """An asyncio client with a bounded pool, for the running loop."""
    kind = redis.asyncio.SSLConnection if options.tls else redis.asyncio.Connection
    pool = redis.asyncio.BlockingConnectionPool(
        connection_class=kind, retry=AsyncRetry(NoBackoff(), 0), **_pool_arguments(options)
    )
    client: Any = redis.asyncio.Redis
    return cast(AsyncClient, client.from_pool(pool))


class LoopClients:
    """The asyncio clients of this process, by event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._clients: PerProcess[dict[asyncio.AbstractEventLoop, AsyncClient]] = PerProcess(dict)

    def get(self) -> AsyncClient:
        """The running loop's client. A new loop's first call forgets those of loops that were closed."""
        clients = self._clients.get()
        loop = asyncio.get_running_loop()
        client = clients.get(loop)
        if client is None:
            # Not a weak dictionary: connections hold their loop, so an entry would keep itself alive.
            for other in [other for other in list(clients) if other.is_closed()]:
                clients.pop(other, None)
            client = clients[loop] = make_async_client(self._options)
        return client

    async def close(self) -> None:
        """Close the running loop's client; those of other loops can only be closed there."""
        client = self._clients.get().pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
