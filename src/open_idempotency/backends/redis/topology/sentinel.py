"""A primary that Sentinel names: each new connection asks where it is, and goes where the latest answer said."""

from __future__ import annotations

from typing import Any, cast

import redis
import redis.asyncio
import redis.sentinel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from open_idempotency.backends.redis.addresses import Address
from open_idempotency.backends.redis.bounds import BoundedConnection, BoundedSSLConnection
from open_idempotency.backends.redis.connecting import ERRORS, Connection, connect, no_async_retry, no_retry, timeouts
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.topology import Topology
from open_idempotency.backends.redis.topology.single import AsyncOneServer, OneServer

# A server that is a replica by now refuses scripts that write; Redis 6.2 wraps the word into its own sentence.
_REPLICA = "READONLY"
# The library's rules for what counts as a primary; it asks nobody itself.
_RULES: Any = cast(Any, redis.sentinel.Sentinel)([])
_DEMOTED = "the server is a replica by now"


class Discovery:
    """Asks the Sentinels, first the one that answered last. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        self._service = options.service
        kind: Any = BoundedSSLConnection if options.tls else BoundedConnection
        pool: Any = redis.ConnectionPool
        client: Any = redis.Redis
        self._sentinels = [
            client.from_pool(pool(connection_class=kind, retry=no_retry(), **arguments))
            for arguments in _sentinel_arguments(options)
        ]
        #: what the latest answer was
        self.latest: Address | None = None

    def find(self) -> Address:
        """Where the primary is. Raises one of ``ERRORS``."""
        reasons: list[str] = []
        for sentinel in self._sentinels:
            try:
                found = _primary_of(self._service, sentinel.sentinel_masters())
            except ERRORS as error:
                reasons.append(str(error))
                continue
            if found is not None:
                self._sentinels = _first(sentinel, self._sentinels)
                self.latest = found
                return found
        raise _unknown(self._service, reasons)

    def close(self) -> None:
        """Close the connections to the Sentinels."""
        for sentinel in self._sentinels:
            sentinel.close()


class AsyncDiscovery:
    """The same on asyncio, for one event loop."""

    def __init__(self, options: Options) -> None:
        self._service = options.service
        kind: Any = redis.asyncio.SSLConnection if options.tls else redis.asyncio.Connection
        pool: Any = redis.asyncio.ConnectionPool
        client: Any = redis.asyncio.Redis
        self._sentinels = [
            client.from_pool(pool(connection_class=kind, retry=no_async_retry(), **arguments))
            for arguments in _sentinel_arguments(options)
        ]
        self.latest: Address | None = None

    async def find(self) -> Address:
        """See ``Discovery.find``."""
        reasons: list[str] = []
        for sentinel in self._sentinels:
            try:
                found = _primary_of(self._service, await sentinel.sentinel_masters())
            except ERRORS as error:
                reasons.append(str(error))
                continue
            if found is not None:
                self._sentinels = _first(sentinel, self._sentinels)
                self.latest = found
                return found
        raise _unknown(self._service, reasons)

    async def close(self) -> None:
        """Close the connections to the Sentinels."""
        for sentinel in self._sentinels:
            await sentinel.aclose()


def _primary_of(service: str, known: dict[str, dict[str, Any]]) -> Address | None:
    state = known.get(service)
    if state is None or not _RULES.check_master_state(state, service):
        return None
    return str(state["ip"]), int(state["port"])


def _first(one: Any, all_of_them: list[Any]) -> list[Any]:
    # A new list: other threads may be going through the old one.
    return [one, *(other for other in all_of_them if other is not one)]


def _unknown(service: str, reasons: list[str]) -> RedisConnectionError:
    # Said here, since the library's own error shows the passwords of its connections in some versions.
    said = "; ".join(dict.fromkeys(reasons)) or "those that answered do not"
    return RedisConnectionError(f"no Sentinel names a primary of {service!r}: {said}")


def _sentinel_arguments(options: Options) -> list[dict[str, Any]]:
    common = {**timeouts(options), **options.sentinel_login}
    return [{**common, "host": host, "port": port} for host, port in options.addresses]


def _says_replica(error: ResponseError) -> bool:
    return isinstance(error, ReadOnlyError) or _REPLICA in str(error)


class _Primary(BoundedConnection):
    """A connection that goes to the primary."""

    def __init__(self, *, discovery: Discovery, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._discovery = discovery

    def connect(self) -> None:
        connected = self._sock is not None
        if connected and (self.host, self.port) != self._discovery.latest:
            self.disconnect()  # type: ignore[no-untyped-call]  # redis-py's
            connected = False
        if not connected:
            self.host, self.port = self._discovery.find()
        super().connect()

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)
        except ResponseError as error:
            if not _says_replica(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]  # redis-py's
            raise RedisConnectionError(_DEMOTED) from error


class _SSLPrimary(_Primary, BoundedSSLConnection):
    """The same with TLS."""


class _AsyncPrimary(redis.asyncio.Connection):
    """The same on asyncio."""

    def __init__(self, *, discovery: AsyncDiscovery, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._discovery = discovery

    async def connect(self) -> None:
        if self.is_connected and (self.host, self.port) != self._discovery.latest:
            await self.disconnect()
        if not self.is_connected:
            self.host, self.port = await self._discovery.find()
        await super().connect()  # type: ignore[no-untyped-call]  # redis-py's

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            if not _says_replica(error):
                raise
            await self.disconnect()
            raise RedisConnectionError(_DEMOTED) from error


class _AsyncSSLPrimary(_AsyncPrimary, redis.asyncio.SSLConnection):
    """The same on asyncio with TLS."""


class SentinelClient(OneServer):
    """A blocking client of the primary."""

    def _pool(self, options: Options) -> Any:
        self._discovery = Discovery(options)
        kind: Any = _SSLPrimary if options.tls else _Primary
        return self._pool_of(options, connection_class=kind, discovery=self._discovery)

    def close(self) -> None:
        super().close()
        self._discovery.close()


class AsyncSentinelClient(AsyncOneServer):
    """The same on asyncio."""

    def _where(self, options: Options) -> tuple[Any, dict[str, Any]]:
        self._discovery = AsyncDiscovery(options)
        return _AsyncSSLPrimary if options.tls else _AsyncPrimary, {"discovery": self._discovery}

    def is_at(self, address: Address) -> bool:
        return address == self._discovery.latest

    def is_gone(self, error: Exception) -> bool:
        return isinstance(error, ResponseError) and _says_replica(error)

    async def close(self) -> None:
        await super().close()
        await self._discovery.close()


def listen(options: Options) -> Connection:
    """Channels are heard on the primary."""
    discovery = Discovery(options)
    try:
        return connect(options, discovery.find())
    finally:
        discovery.close()


TOPOLOGY = Topology(SentinelClient, AsyncSentinelClient, listen)
