"""What every connection to a server is made with, blocking or not: our timeouts, and no retries but our own."""

from __future__ import annotations

import inspect
import socket
from typing import Any, Protocol

import redis
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

from open_idempotency.backends.redis.addresses import Address
from open_idempotency.backends.redis.options import Options

#: what the client library raises; that of its Cluster client is no RedisError
ERRORS = (RedisError, RedisClusterException, OSError)
CLOSED = "the backend was closed during the call"


class Connection(Protocol):
    """What we use of ``redis.Connection``."""

    _sock: socket.socket

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def send_command(self, *arguments: Any) -> None: ...

    def can_read(self, timeout: float) -> bool: ...

    def read_response(self) -> Any: ...


def no_retry() -> Retry:
    """The library tries once."""
    return Retry(NoBackoff(), 0)


def no_async_retry() -> AsyncRetry:
    """The same on asyncio."""
    return AsyncRetry(NoBackoff(), 0)


def _anonymous() -> dict[str, Any]:
    """Arguments that save the round trips in which the library would introduce itself on each connection."""
    parameters = inspect.signature(redis.Connection).parameters
    known = inspect.signature(redis.connection.AbstractConnection).parameters
    if "driver_info" in parameters or "driver_info" in known:
        return {"driver_info": None}
    return {name: None for name in ("lib_name", "lib_version") if name in known}


_ANONYMOUS = _anonymous()


def timeouts(options: Options) -> dict[str, Any]:
    """What connections to all kinds of servers have in common, TLS included."""
    return {
        **_ANONYMOUS,
        **options.ssl,
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "protocol": 2,
    }


def arguments(options: Options) -> dict[str, Any]:
    """For a connection to the server that has the records, but where it is."""
    return {**timeouts(options), **options.login, "db": options.database}


def pool_arguments(options: Options) -> dict[str, Any]:
    """For a pool of those that waits for a connection."""
    return {**arguments(options), "max_connections": options.max_connections, "timeout": options.timeout}


def connect(options: Options, address: Address) -> Connection:
    """A connection of its own for channels, which have no database number. Raises one of ``ERRORS``."""
    kind: Any = redis.SSLConnection if options.tls else redis.Connection
    host, port = address
    made = {**arguments(options), "db": 0, "host": host, "port": port}
    connection: Connection = kind(retry=no_retry(), **made)
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection
