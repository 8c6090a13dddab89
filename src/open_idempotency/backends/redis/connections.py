"""The connections to servers, sync and on asyncio: our timeouts, our deadlines, and no retries but our own.

A connection may have a ``Route``, which says where the primary is. The connection leaves a server that says that it is
a replica, and it reconnects if the route has changed.
"""

from __future__ import annotations

import inspect
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

import redis
import redis.asyncio
import redis.asyncio.connection
import redis.connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from open_idempotency.backends.redis.options import LATE, Address, Options, current
from open_idempotency.backends.redis.pipelining import forget_certificates, packed, socket_of
from open_idempotency.backends.redis.refusals import says_cut_off, says_replica

#: an address that was found, and how many servers had been left by then
Reached = tuple[Address | None, int]

_SCRIPTS = ("EVALSHA", "EVAL")
_REPLACED = "the server is not the primary any more, or may not be"
#: seconds between two suspicions of a route, at least
_CALM = 1.0


class Route:
    """The way to one server whose address is known. Subclasses look for it. Safe to use from many threads."""

    def __init__(self, address: Address | None = None) -> None:
        self._address = address
        #: a connection is used only while this is what it has reached
        self.current: Reached = (address, 0)
        self._calm_until = 0.0

    def find(self) -> Reached:
        """Where a new connection goes. Raises one of ``ERRORS``."""
        return self.current

    def leave(self, reached: Reached) -> None:
        """Note that the server there is a replica now. Connections that reached it are made anew."""
        if reached == self.current:
            self.current = (self._address, reached[1] + 1)

    def suspect(self) -> bool:
        """Make connections anew, since the server may have been replaced as the primary. At most once a second.

        Returns whether they are made anew.
        """
        if not self._is_first_suspicion():
            return False
        self.current = (self._address, self.current[1] + 1)
        return True

    def _is_first_suspicion(self) -> bool:
        now = time.monotonic()
        if now < self._calm_until:
            return False
        self._calm_until = now + _CALM
        return True

    def leave_if(self, error: ResponseError, reached: Reached) -> bool:
        """Whether this refusal means that the connection is to be dropped, and the call sent once more elsewhere."""
        if says_replica(error):
            self.leave(reached)
            return True
        return says_cut_off(error) and self.suspect()

    def switch(self, address: Address) -> None:
        """Note that the server is at ``address`` now. Connections that reached another one are made anew."""
        before, left = self.current
        if before != address:
            self.current = (address, left + 1)

    def arrive(self, address: Address, left: int) -> Reached:
        """Note that a search has found ``address``. ``left``: how many servers had been left when the search began."""
        found = (address, left)
        if left == self.current[1]:
            self.current = found
        return found


class AsyncRoute(Route):
    """``Route`` on asyncio, for one event loop."""

    async def look(self) -> Reached:
        """See ``Route.find``."""
        return self.current


class Connection(Protocol):
    """The parts of redis-py's sync connections that are used here."""

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def send_command(self, *arguments: Any) -> None: ...

    def can_read(self, timeout: float) -> bool: ...

    def read_response(self) -> Any: ...


class _Deadlines(redis.connection.AbstractConnection):
    """The part of a sync connection that keeps the thread's deadline, and follows its ``route`` if it has one."""

    def __init__(self, *, route: Route | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._connects_within: float = arguments["socket_connect_timeout"]
        self._replies_within: float = arguments["socket_timeout"]
        self._route = route
        self._reached: Reached = (None, 0)
        self._connected = False
        #: the thread that waits for a reply, while one does, and whether another thread has given the connection up
        self._reader: int | None = None
        self._given_up = False

    def connect(self) -> None:
        route = self._route
        if self._connected:  # redis-py calls this before each command
            if route is None or self._reached == route.current:
                return
            self.disconnect()
        if route is not None:
            self._reached = route.find()
            if self._reached[0] is not None:
                self.host, self.port = self._reached[0]
        self._limit_step()
        super().connect()  # type: ignore[no-untyped-call]  # redis-py's
        self._connected = True

    def disconnect(self, *arguments: Any) -> None:
        # Also called by redis-py, whenever it gives a connection up.
        self._connected = False
        sock = socket_of(self)
        if sock is not None and self._reader not in (None, threading.get_ident()):
            # Another thread waits for this socket. If it were closed here, the next socket could get its number, and
            # that thread would wait for the wrong one. Instead that thread reads the end of the stream, and closes it.
            self._given_up = True
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            return
        self._given_up = False
        super().disconnect(*arguments)  # type: ignore[no-untyped-call]  # redis-py's

    def send_command(self, *words: Any, **options: Any) -> None:
        # redis-py's own packing takes longer, the more words there are.
        if words[0] in _SCRIPTS:
            self.send_packed_command([packed(words)], options.get("check_health", True))
        else:
            super().send_command(*words, **options)  # type: ignore[no-untyped-call]  # redis-py's

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._limit_step()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]  # redis-py's

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        self._limit_step()
        self._reader = threading.get_ident()
        try:
            return super().read_response(*arguments, **options)
        except ResponseError as error:
            if self._route is None or not self._route.leave_if(error, self._reached):
                raise
            self.disconnect()
            raise RedisConnectionError(f"{_REPLACED}: {error}") from error
        finally:
            self._reader = None
            if self._given_up:
                self.disconnect()

    def _limit_step(self) -> None:
        deadline = current.deadline()
        left = self._replies_within if deadline is None else deadline.until - time.monotonic()
        if left <= 0:
            # The next caller must not read the reply to a command that this caller has sent.
            self.disconnect()
            raise RedisTimeoutError(LATE)
        self.socket_connect_timeout = min(self._connects_within, left)
        self.socket_timeout = min(self._replies_within, left)
        sock = socket_of(self)
        # It nearly always has the full timeout already. Reading the timeout is no system call, setting it is one.
        if sock is not None and sock.gettimeout() != self.socket_timeout:
            sock.settimeout(self.socket_timeout)


class _Unix(redis.UnixDomainSocketConnection):
    """redis-py's connection to the path of a socket; earlier releases take no time limit for connecting."""

    def __init__(self, *, socket_connect_timeout: float, **arguments: Any) -> None:
        super().__init__(**arguments)  # type: ignore[no-untyped-call]  # redis-py's


class DeadlineConnection(_Deadlines, redis.Connection):
    """A sync connection to a host and a port."""


class DeadlineSSLConnection(_Deadlines, redis.SSLConnection):
    """A sync connection to a host and a port, with TLS."""


class DeadlineUnixConnection(_Deadlines, _Unix):
    """A sync connection to the path of a socket."""


class _Following(redis.asyncio.connection.AbstractConnection):
    """The part of a connection on asyncio that follows its ``route``.

    ``reached``: what the route said when it connected.
    """

    def __init__(self, *, route: AsyncRoute, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._route = route
        self.reached: Reached = (None, 0)

    async def connect(self) -> None:
        if self.is_connected:
            if self.reached == self._route.current:
                return
            await self.disconnect()
        self.reached = await self._route.look()
        if self.reached[0] is not None:
            self.host, self.port = self.reached[0]
        await super().connect()  # type: ignore[no-untyped-call]  # redis-py's

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            if not self._route.leave_if(error, self.reached):
                raise
            await self.disconnect()
            raise RedisConnectionError(f"{_REPLACED}: {error}") from error


class AsyncConnection(_Following, redis.asyncio.Connection):
    """A connection on asyncio to a host and a port."""


class FreshSSLConnection(redis.asyncio.SSLConnection):
    """redis-py's connection with TLS, which reads the files of certificates again whenever it connects.

    redis-py keeps what it has read, so a certificate that was renewed would be refused until a restart.
    """

    async def connect(self) -> None:
        if not self.is_connected:
            forget_certificates(self)
        await super().connect()  # type: ignore[no-untyped-call]  # redis-py's


class AsyncSSLConnection(_Following, FreshSSLConnection):
    """A connection on asyncio to a host and a port, with TLS."""


class AsyncUnixConnection(_Following, redis.asyncio.UnixDomainSocketConnection):
    """A connection on asyncio to the path of a socket."""


def no_retry() -> Retry:
    """The setting with which redis-py tries once."""
    return Retry(NoBackoff(), 0)


def no_async_retry() -> AsyncRetry:
    """The setting with which redis-py on asyncio tries once."""
    return AsyncRetry(NoBackoff(), 0)


def _anonymous() -> dict[str, Any]:
    """Arguments that save the round trips in which redis-py would introduce itself on each connection."""
    parameters = inspect.signature(redis.Connection).parameters
    known = inspect.signature(redis.connection.AbstractConnection).parameters
    if "driver_info" in parameters or "driver_info" in known:
        return {"driver_info": None}
    return {name: None for name in ("lib_name", "lib_version") if name in known}


_ANONYMOUS = _anonymous()


def timeouts(options: Options) -> dict[str, Any]:
    """Arguments of connections to servers of all kinds, TLS included."""
    return {
        **_ANONYMOUS,
        **options.ssl,
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "protocol": 2,
    }


def arguments(options: Options) -> dict[str, Any]:
    """Arguments of connections to servers that hold records, without the address."""
    return {**timeouts(options), **options.login, "db": options.database}


def pool_arguments(options: Options) -> dict[str, Any]:
    """Arguments of a pool of these connections. A call waits for a free connection."""
    return {**arguments(options), "max_connections": options.max_connections, "timeout": options.timeout}


def address_arguments(options: Options, address: Address | None) -> dict[str, Any]:
    """Arguments of connections that say where they go. ``address``: None where the server has the path of a socket."""
    if address is None:
        return {"path": options.path}
    host, port = address
    return {"host": host, "port": port}


def sync_kind(options: Options) -> Any:
    """The class of sync connections."""
    return _kind(options, DeadlineConnection, DeadlineSSLConnection, DeadlineUnixConnection)


def _kind(options: Options, plain: Any, tls: Any, unix: Any) -> Any:
    return tls if options.tls else unix if options.path else plain


class AsyncDestination:
    """Makes connections on asyncio that follow a route; ``kind`` with ``arguments``, for a pool of them as well."""

    def __init__(self, options: Options, address: Address | None, route: AsyncRoute) -> None:
        self.route = route
        self.kind = _kind(options, AsyncConnection, AsyncSSLConnection, AsyncUnixConnection)
        self.arguments = {**arguments(options), **address_arguments(options, address), "route": route}

    def connection(self) -> Any:
        """A new connection, not connected yet."""
        made: Any = self.kind(retry=no_async_retry(), **self.arguments)
        return made


def connect(options: Options, address: Address | None) -> Connection:
    """A new connection for channels, which have no database number. Raises one of ``ERRORS``."""
    return open_connection(options, {**arguments(options), "db": 0, **address_arguments(options, address)})


def open_connection(options: Options, made: dict[str, Any]) -> Connection:
    """A new sync connection, outside pools and deadlines, with the arguments ``made``. Raises one of ``ERRORS``."""
    kind = _kind(options, redis.Connection, redis.SSLConnection, _Unix)
    connection: Connection = kind(retry=no_retry(), **made)
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection
