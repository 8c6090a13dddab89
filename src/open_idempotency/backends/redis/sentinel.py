"""A primary that Sentinel names. Each new connection asks a Sentinel, and all connections follow the latest reply.

A thread hears when the Sentinels make another server the primary, since the old one may serve for seconds after that.
In a planned failover the old primary still acknowledges writes for about a second after its successor has stopped
following it, before the Sentinels name the successor. The thread hears of that moment too, and no call is made until
they do.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, NamedTuple, cast
from weakref import ref

import redis
import redis.asyncio
import redis.sentinel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from open_idempotency._runtime.loops import in_thread
from open_idempotency.backends.redis.connections import (
    AsyncRoute,
    Connection,
    FreshSSLConnection,
    Reached,
    Route,
    connect,
    no_async_retry,
    no_retry,
    open_connection,
    sync_kind,
    timeouts,
)
from open_idempotency.backends.redis.options import Address, Options
from open_idempotency.backends.redis.pipelining import socket_of
from open_idempotency.backends.redis.refusals import ERRORS
from open_idempotency.backends.redis.topology import AsyncOneServer, OneServer, Topology

logger = logging.getLogger("open_idempotency")

#: seconds between rounds of the listener: where all Sentinels are heard, and where one is not
_IDLE, _ASK_AGAIN = 10.0, 1.0
_READ_AT_ONCE = 4096
_IN_FAILOVER = "failover_in_progress"
_SWITCHED, _PROMOTING = "+switch-master", "+failover-state-send-slaveof-noone"
#: seconds without calls at most, from the moment at which a replica is promoted
_HELD = 5.0
#: seconds until it tries again to subscribe
_SUBSCRIBE_AGAIN = 5.0
# redis-py's rules for what counts as a primary. This object asks no Sentinel itself.
_RULES: Any = cast(Any, redis.sentinel.Sentinel)([])


class _Named(NamedTuple):
    """The primary, as one Sentinel names it. ``epoch``: of two primaries the one with the higher epoch is later."""

    epoch: int
    address: Address
    client: Any


class Search:
    """The order in which Sentinels are asked, and the reply that counts. ``clients``: redis-py's, one for each.

    The Sentinel that replied last is asked first. In a failover Sentinels name the old primary for a while: the leading
    Sentinel until the end of the failover, the others until they hear of it. Such a reply counts only if no Sentinel
    has a better one. It is recognised by the Sentinel's flags, or by an epoch that is lower than the latest.
    """

    def __init__(self, service: str, clients: list[Any], epochs: list[int]) -> None:
        self._service = service
        self.clients = clients
        #: the latest epoch, as a list of one; shared by all searches of a route
        self._epochs = epochs

    def steps(self) -> Generator[Any, Any, Address]:
        """Yields clients to ask, gets their replies to ``SENTINEL MASTERS`` or errors, and returns the address."""
        reasons, doubtful = list[str](), list[_Named]()
        for client in self.clients:
            known = yield client
            if isinstance(known, Exception):
                reasons.append(str(known))
                continue
            state = known.get(self._service)
            if state is None or not _RULES.check_master_state(state, self._service):
                continue
            named = _Named(int(state.get("config-epoch", 0)), (str(state["ip"]), int(state["port"])), client)
            if named.epoch >= self._epochs[0] and _IN_FAILOVER not in state.get("flags", ()):
                return self._accept(named)
            doubtful.append(named)
        if doubtful:
            return self._accept(max(doubtful, key=lambda named: named.epoch))
        # redis-py's own error shows passwords in some versions.
        said = "; ".join(dict.fromkeys(reasons)) or "those that replied do not"
        raise RedisConnectionError(f"no Sentinel names a primary of {self._service!r}: {said}")

    def _accept(self, named: _Named) -> Address:
        self._epochs[0] = named.epoch
        self.prefer(named.client)
        return named.address

    def prefer(self, client: Any) -> None:
        """Ask this one first from now on."""
        # A new list, because other threads may be iterating over the old one.
        self.clients = [client, *(other for other in self.clients if other is not client)]


def _sentinel_arguments(options: Options) -> list[dict[str, Any]]:
    common = {**timeouts(options.for_sentinels), **options.sentinel_login}
    return [{**common, "host": host, "port": port} for host, port in options.addresses]


class Sentinels:
    """Sync clients of the Sentinels. Safe to use from many threads."""

    def __init__(self, options: Options, epochs: list[int]) -> None:
        pool: Any = redis.ConnectionPool
        kind = sync_kind(options.for_sentinels)
        pools = [pool(connection_class=kind, retry=no_retry(), **made) for made in _sentinel_arguments(options)]
        self._by_index = [cast(Any, redis.Redis).from_pool(pool) for pool in pools]
        self._search = Search(options.service, self._by_index, epochs)

    def find(self) -> Address:
        """The address of the primary. Raises one of ``ERRORS``."""
        steps = self._search.steps()
        client = next(steps)
        while True:
            try:
                known: Any = client.sentinel_masters()
            except ERRORS as error:
                known = error
            try:
                client = steps.send(known)
            except StopIteration as end:
                found: Address = end.value
                return found

    def prefer(self, index: int) -> None:
        """Ask the Sentinel with this index in the options first."""
        self._search.prefer(self._by_index[index])

    def close(self) -> None:
        """Close the connections to the Sentinels."""
        for client in self._by_index:
            client.close()


class _Held(Route):
    """A route that can be held: no calls are made to its server before the next primary is known."""

    _held_from: Address | None = None
    _held_until = 0.0

    def hold(self, seconds: float) -> None:
        """Make no calls until the Sentinels name another primary, for so long at most."""
        address, left = self.current
        if address is not None:
            self._held_from, self._held_until = address, time.monotonic() + seconds
            self.current = (None, left + 1)

    def arrive(self, address: Address, left: int) -> Reached:
        """See ``Route.arrive``. Raises one of ``ERRORS`` for the server that is held."""
        if self._is_held(address):
            raise RedisConnectionError("the Sentinels are making another server the primary")
        return super().arrive(address, left)

    def switch(self, address: Address) -> None:
        """See ``Route.switch``. Ignored for the server that is held."""
        if not self._is_held(address):
            super().switch(address)

    def _is_held(self, address: Address) -> bool:
        return address == self._held_from and time.monotonic() < self._held_until


class SwitchListener:
    """Listens to the Sentinels in one thread, and updates the route when another server becomes the primary.

    It subscribes to ``+switch-master`` on every Sentinel, and if permitted to the event by which the leading Sentinel
    promotes a replica. While it cannot hear a Sentinel, it asks every second. It ends when it is closed, or when the
    route is garbage.
    """

    def __init__(self, options: Options, route: _Held, sentinels: Sentinels) -> None:
        self._options = options
        self._service = options.service.encode()
        self._route = ref(route)
        self._sentinels = sentinels
        self._arguments = _sentinel_arguments(options) if options.listens else []
        #: by the index of the Sentinel
        self._heard: dict[int, Connection] = {}
        self._subscribe_at = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def begin(self) -> None:
        """Start the thread, unless it runs."""
        if self._is_running():
            return
        with self._lock:
            if not self._is_running() and not self._closing:
                try:
                    self._start()
                except (OSError, RuntimeError) as error:  # the process may have no more files or threads
                    logger.warning("%s: a switch of the primary may be noticed late: %s", self._options.where, error)

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        wake = wake_reader, wake_writer = socket.socketpair()
        wake_writer.setblocking(False)
        thread = threading.Thread(target=self._run, args=wake, name="open-idempotency-sentinel", daemon=True)
        try:
            thread.start()
        except BaseException:
            wake_reader.close()
            wake_writer.close()
            raise
        self._thread, self._wake_writer = thread, wake_writer

    def look(self) -> None:
        """Let the thread ask the Sentinels now."""
        if self._is_running():
            with suppress(OSError):  # it has just ended, or has not read the earlier bytes yet
                self._wake_writer.send(b"!")

    def close(self) -> None:
        """End the thread, and wait for its end."""
        with self._lock:
            self._closing = True
        if self._thread is not None:
            self.look()
            self._thread.join(2 * self._options.timeout)

    # In the thread

    def _run(self, wake_reader: socket.socket, wake_writer: socket.socket) -> None:
        try:
            while not self._closing and self._route() is not None:
                self._subscribe()
                self._follow()
                try:
                    self._hear(wake_reader)
                except OSError:  # the process may have no more files
                    time.sleep(_ASK_AGAIN)
        finally:
            for connection in self._heard.values():
                connection.disconnect()
            self._heard.clear()
            wake_reader.close()
            wake_writer.close()

    def _subscribe(self) -> None:
        """Subscribe where that is missing, every few seconds."""
        if len(self._heard) == len(self._arguments) or time.monotonic() < self._subscribe_at:
            return
        self._subscribe_at = time.monotonic() + _SUBSCRIBE_AGAIN
        for index, made in enumerate(self._arguments):
            if index not in self._heard and not self._closing:
                with suppress(*ERRORS):  # it is down, or its user may not subscribe: it is asked instead
                    self._heard[index] = _subscribed(self._options, made)

    def _follow(self) -> None:
        """Ask for the primary, and let the route lead there."""
        route = self._route()
        if route is not None and not self._closing:
            with suppress(*ERRORS):  # no Sentinel replies: the route stays as it is, and the next round asks again
                route.switch(self._sentinels.find())

    def _hear(self, wake_reader: socket.socket) -> None:
        """Wait until a Sentinel says something, or until it is time to ask again."""
        complete = self._heard and len(self._heard) == len(self._arguments)
        with selectors.DefaultSelector() as selector:
            selector.register(wake_reader, selectors.EVENT_READ)
            for index, connection in self._heard.items():
                sock = socket_of(connection)
                assert sock is not None  # it is connected, and ``Options.listens`` says that redis-py shows it
                selector.register(sock, selectors.EVENT_READ, index)
            spoke = [key.data for key, _ in selector.select(_IDLE if complete else _ASK_AGAIN)]
        for index in spoke:
            if index is None:
                wake_reader.recv(_READ_AT_ONCE)
            else:
                self._take(index)

    def _take(self, index: int) -> None:
        connection = self._heard[index]
        try:
            while connection.can_read(0):
                self._heed(connection.read_response())
            self._sentinels.prefer(index)
        except ERRORS:
            connection.disconnect()
            del self._heard[index]

    def _heed(self, message: Any) -> None:
        """Stop all calls where a replica of this service is about to be promoted."""
        kind, channel, text = message
        # "slave ADDRESS IP PORT @ SERVICE IP PORT"
        if kind != b"message" or channel != _PROMOTING.encode():
            return
        _, _, of = text.partition(b" @ ")
        route = self._route()
        if route is not None and of.split(b" ")[:1] == [self._service]:
            route.hold(_HELD)


def _subscribed(options: Options, made: dict[str, Any]) -> Connection:
    connection = open_connection(options.for_sentinels, made)
    try:
        connection.send_command("SUBSCRIBE", _SWITCHED)
        connection.read_response()
        with suppress(ResponseError):  # a user may be allowed the first channel only
            connection.send_command("SUBSCRIBE", _PROMOTING)
            connection.read_response()
    except BaseException:
        connection.disconnect()
        raise
    return connection


class SentinelRoute(_Held):
    """The way to the primary. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._sentinels = Sentinels(options, [0])
        self._listener = SwitchListener(options, self, self._sentinels)

    def find(self) -> Reached:
        """Ask the Sentinels. Raises one of ``ERRORS``."""
        left = self.current[1]
        found = self.arrive(self._sentinels.find(), left)
        self._listener.begin()
        return found

    def suspect(self) -> bool:
        """See ``Route.suspect``. The listener asks the Sentinels whether another server is the primary now."""
        self._listener.look()
        return self._is_first_suspicion()

    def close(self) -> None:
        """Close the connections to the Sentinels."""
        self._listener.close()
        self._sentinels.close()


class AsyncSentinelRoute(_Held, AsyncRoute):
    """``SentinelRoute`` on asyncio, for one event loop."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        pool: Any = redis.asyncio.ConnectionPool
        kind: Any = FreshSSLConnection if options.sentinel_tls else redis.asyncio.Connection
        pools = [pool(connection_class=kind, retry=no_async_retry(), **made) for made in _sentinel_arguments(options)]
        epochs = [0]
        clients = [cast(Any, redis.asyncio.Redis).from_pool(pool) for pool in pools]
        self._search = Search(options.service, clients, epochs)
        self._sentinels = Sentinels(options, epochs)
        self._listener = SwitchListener(options, self, self._sentinels)

    async def look(self) -> Reached:
        """See ``SentinelRoute.find``."""
        left = self.current[1]
        found = self.arrive(await self._ask(), left)
        self._listener.begin()
        return found

    async def _ask(self) -> Address:
        steps = self._search.steps()
        client = next(steps)
        while True:
            try:
                known: Any = await client.sentinel_masters()
            except ERRORS as error:
                known = error
            try:
                client = steps.send(known)
            except StopIteration as end:
                found: Address = end.value
                return found

    def suspect(self) -> bool:
        """See ``Route.suspect``. The listener asks the Sentinels whether another server is the primary now."""
        self._listener.look()
        return self._is_first_suspicion()

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        await in_thread(self._listener.close)
        self._sentinels.close()
        for client in self._search.clients:
            await client.aclose()


class SentinelClient(OneServer):
    """A sync client of the primary."""

    def __init__(self, options: Options) -> None:
        self._way = SentinelRoute(options)
        super().__init__(options, self._way)

    def close(self) -> None:
        super().close()
        self._way.close()


class AsyncSentinelClient(AsyncOneServer):
    """An asyncio client of the primary."""

    def __init__(self, options: Options) -> None:
        self._way = AsyncSentinelRoute(options)
        super().__init__(options, self._way)

    async def close(self) -> None:
        await super().close()
        await self._way.close()


def listen(options: Options) -> Connection:
    """A connection for channels, which are heard on the primary."""
    sentinels = Sentinels(options, [0])
    try:
        return connect(options, sentinels.find())
    finally:
        sentinels.close()


TOPOLOGY = Topology(SentinelClient, AsyncSentinelClient, listen)
