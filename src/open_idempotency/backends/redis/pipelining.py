"""Batches of scripts over one connection to a server, on asyncio, and all that we use of redis-py's private parts.

The requests that arrive while a batch is in flight are the next batch, which is one write. Every request of a batch has
what it would have alone: it is sent once more where the connection broke, a script that the server forgot is sent in
full, and replicas confirm all writes of a batch at once.

redis-py connects, with its TLS, login and discovery. Then the connection is taken over from it. A connection on which
anything goes wrong is dropped, and the next batch has a new one, so no request gets the reply to another one. A request
that a server redirects, as in a Cluster, is left to redis-py's own client.

``without_missing_parts`` looks for the private parts when a backend is made. Where one is missing the backend works
without it, through redis-py's pools, and logs a warning.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from open_idempotency.backends._shared.coalescing import Limits, LoopCoalescer
from open_idempotency.backends.redis.options import LATE, Options, limited
from open_idempotency.backends.redis.protocol import CLOSED, ERRORS, Replies, may_retry, packed, wrapped
from open_idempotency.backends.redis.scripts import Argument, Keyed, Script, Unconfirmed, confirmed, evaluation
from open_idempotency.exceptions import BackendUnavailable

logger = logging.getLogger("open_idempotency")

_SOCKET, _STREAMS, _CERTIFICATES = "_sock", ("_reader", "_writer"), "ssl_context"


def without_missing_parts(options: Options) -> Options:
    """The options without what the installed redis-py cannot do for us. A missing part is logged as a warning."""
    if options.tls and not hasattr(redis.asyncio.SSLConnection(), _CERTIFICATES):
        logger.warning(
            "%s: redis-py %s has no %s on its connections: after a certificate was renewed this process has to be "
            "restarted. Install a version of open-idempotency that knows this redis-py",
            options.where,
            redis.__version__,
            _CERTIFICATES,
        )
    missing = _missing_parts()
    if not missing:
        return options
    logger.warning(
        "%s: redis-py %s has no %s on its connections: calls are not batched, and duplicates poll for the outcome. "
        "Install a version of open-idempotency that knows this redis-py",
        options.where,
        redis.__version__,
        ", ".join(missing),
    )
    return replace(options, coalesce=options.coalesce and not set(_STREAMS) & set(missing), listens=not missing)


@lru_cache(1)
def _missing_parts() -> tuple[str, ...]:
    """The names of the attributes that redis-py's connections should have, and have not."""
    sync: Any = redis.Connection
    expected = ((sync(), (_SOCKET,)), (redis.asyncio.Connection(), _STREAMS))
    return tuple(name for connection, names in expected for name in names if not hasattr(connection, name))


def socket_of(connection: Any) -> socket.socket | None:
    """The socket of a sync connection. None where it is not connected, or where redis-py does not show it."""
    try:
        found: socket.socket | None = connection._sock
    except AttributeError:
        return None
    return found


def forget_certificates(connection: Any) -> None:
    """Let a connection on asyncio with TLS read the files of certificates again when it connects."""
    with suppress(AttributeError):  # another redis-py: it keeps what it has read
        connection.ssl_context.context = None


class Route(Protocol):
    """Where the server is, and whether it is the primary."""

    #: compared with what a connection reached, which may be used as long as the two are equal
    current: Any

    def leave_if(self, error: ResponseError, reached: Any) -> bool:
        """Whether this refusal means that the server there is to be left."""
        ...

    def suspect(self) -> bool:
        """The server may have been replaced as the primary. Whether its connections are made anew."""
        ...


class Destination(Protocol):
    """The server that a pipelined connection goes to, by its route."""

    @property
    def route(self) -> Route:
        """Where it is."""
        ...

    def connection(self) -> Any:
        """A new connection of redis-py's, not connected yet. Once it is, ``reached`` says where it went."""


@dataclass(slots=True, eq=False)
class _Exchange:
    """Commands in flight. ``wanted``: how many replies they have."""

    wanted: int
    outcome: asyncio.Future[list[Any]]
    replies: list[Any] = field(default_factory=list[Any])
    timer: asyncio.TimerHandle = field(init=False)

    def fail(self, error: Exception) -> None:
        self.timer.cancel()
        if not self.outcome.done():
            self.outcome.set_exception(error)


class _Stream(asyncio.Protocol):
    """An open connection, from the takeover to its end."""

    def __init__(self, connection: Any) -> None:
        reader, writer = connection._reader, connection._writer
        # Else redis-py would warn that the connection was not closed.
        connection._reader = connection._writer = None
        if reader.at_eof():
            writer.close()
            raise RedisConnectionError("the connection was closed at once")
        self.reached = connection.reached
        # Kept, because a writer closes its connection when it is garbage.
        self._writer: asyncio.StreamWriter = writer
        self._loop = asyncio.get_running_loop()
        self._replies = Replies()
        self._in_flight: deque[_Exchange] = deque()
        self.is_over = False
        writer.transport.set_protocol(self)

    def exchange(self, commands: Sequence[bytes], seconds: float) -> asyncio.Future[list[Any]]:
        """Send the commands; the future of their replies. After its cancellation the replies are discarded."""
        written = b"".join(commands)
        exchange = _Exchange(len(commands), self._loop.create_future())
        exchange.timer = self._loop.call_later(seconds, self._time_out, exchange)
        self._in_flight.append(exchange)
        try:
            self._writer.transport.write(written)
        except BaseException:  # such as MemoryError: the next replies must not be taken for those to these commands
            exchange.outcome.cancel()
            self.drop(RedisConnectionError("the commands could not be written"))
            raise
        return exchange.outcome

    def _time_out(self, exchange: _Exchange) -> None:
        exchange.fail(RedisTimeoutError(LATE))
        # The exchanges behind it have time left for another connection.
        self.drop(RedisConnectionError("the server did not reply to the batch before"))

    def data_received(self, data: bytes) -> None:
        try:
            found = self._replies.feed(data)
        except InvalidResponse as error:
            self.drop(error)
            return
        for reply in found:
            if not self._in_flight:
                self.drop(RedisConnectionError(f"the server sent a reply to no command: {reply!r}"))
                return
            exchange = self._in_flight[0]
            exchange.replies.append(reply)
            if len(exchange.replies) == exchange.wanted:
                self._in_flight.popleft()
                exchange.timer.cancel()
                if not exchange.outcome.done():
                    exchange.outcome.set_result(exchange.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(RedisConnectionError(f"the connection was closed: {exc}"))

    def drop(self, error: Exception) -> None:
        """Close the connection. All exchanges in flight end with ``error``."""
        if self.is_over:
            return
        self.is_over = True
        self._writer.transport.abort()
        for exchange in self._in_flight:
            exchange.fail(error)
        self._in_flight.clear()


class PipelinedConnection:
    """The connection of one event loop to one destination. It opens when it is needed, and again after it broke."""

    def __init__(self, destination: Destination, timeout: float) -> None:
        self._destination = destination
        self._route = destination.route
        self._timeout = timeout
        self._stream: _Stream | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def exchange(self, commands: Sequence[bytes], until: float) -> list[Any]:
        """Send the commands; their replies, with refusals at their positions. Raises one of ``ERRORS`` where it broke.

        ``until``: the latest end, a time of ``time.monotonic``. Once connected, ``timeout`` seconds end it as well.
        """
        stream = self._usable()
        if stream is None:
            stream = await limited(until - time.monotonic(), self._connected())
        seconds = min(self._timeout, until - time.monotonic())
        replies = await stream.exchange(commands, seconds)
        for reply in replies:
            if isinstance(reply, Exception) and self._ends(stream, reply):
                error = RedisConnectionError(str(reply))
                stream.drop(error)
                raise error from reply
        return replies

    def _ends(self, stream: _Stream, refusal: Exception) -> bool:
        """Whether a refusal means that another connection is needed."""
        if isinstance(refusal, ResponseError) and self._route.leave_if(refusal, stream.reached):
            return True
        # For example BusyLoadingError: the server is loading its data.
        return isinstance(refusal, RedisConnectionError)

    def _usable(self) -> _Stream | None:
        stream = self._stream
        if stream is None or stream.is_over or stream.reached != self._route.current:
            return None
        return stream

    async def _connected(self) -> _Stream:
        async with self._connecting:
            return self._usable() or await self._connect()

    async def _connect(self) -> _Stream:
        self._refuse_if_closed()
        self._drop(RedisConnectionError("its server is another one now"))
        connection = self._destination.connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        stream = self._stream = _Stream(connection)
        self._refuse_if_closed()
        return stream

    def _refuse_if_closed(self) -> None:
        if self._closed:
            self._drop(RedisError(CLOSED))
            raise RedisError(CLOSED)

    def _drop(self, error: Exception) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.drop(error)

    def close(self) -> None:
        """Close the connection for good. Exchanges in flight end with an error."""
        self._closed = True
        self._drop(RedisError(CLOSED))


class _Request(NamedTuple):
    script: Script
    keyed: Keyed
    now: Argument
    command: bytes


_command_of = attrgetter("command")


class Batches:
    """The batches of one event loop for one server.

    ``replicas``: how many replicas must have what a batch wrote before its replies count.

    There are two coalescers. While the server works on one batch, this process reads the replies to the other one and
    sends the next: under load that saves half of the time.
    """

    def __init__(self, options: Options, destination: Destination, *, replicas: int = 0) -> None:
        self._options = options
        self._replicas = replicas
        self._route = destination.route
        self._connection = PipelinedConnection(destination, options.timeout)
        self._send = self._send_durably if replicas else self._connection.exchange
        first, second = (LoopCoalescer(self._carry_out, Limits(options.timeout)) for _ in range(2))
        self._next: LoopCoalescer[_Request, Any] = first
        self._other: LoopCoalescer[_Request, Any] = second

    def ask(self, script: Script, keyed: Keyed) -> Awaitable[Any]:
        """Run one script on one key; its reply. Raises ``BackendUnavailable``."""
        (key,), arguments = keyed
        now = self._options.now()
        command = packed((*script.called, key, now, *arguments))
        if self._next.busy:
            # In turn, so that both have equal parts.
            self._next, self._other = self._other, self._next
        return self._next.ask(_Request(script, keyed, now, command), len(command))

    def close(self) -> None:
        """Close the connection. Requests in flight are refused."""
        self._connection.close()

    async def _carry_out(self, batch: Sequence[_Request]) -> list[Any]:
        started = time.monotonic()
        until = started + self._options.carried_out_within
        retried = False
        while True:
            try:
                replies = await self._send([*map(_command_of, batch)], until)
                for reply in replies:
                    if isinstance(reply, Exception):
                        return await self._without_errors(batch, replies, until)
                return replies
            except ERRORS as error:
                if retried or not may_retry(error, started, self._options.timeout):
                    raise wrapped(error) from error
                retried = True

    async def _without_errors(self, batch: Sequence[_Request], replies: list[Any], until: float) -> list[Any]:
        """Send the scripts that the server forgot in full; every other error becomes one of ours."""
        forgotten = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if forgotten:
            again = await self._send([_in_full(batch[index]) for index in forgotten], until)
            for index, reply in zip(forgotten, again, strict=True):
                replies[index] = reply
        return [_unavailable(reply) if isinstance(reply, Exception) else reply for reply in replies]

    async def _send_durably(self, commands: Sequence[bytes], until: float) -> list[Any]:
        found = await self._connection.exchange((*commands, packed(self._options.wait_command)), until)
        # The reply to WAIT: how many replicas have all that this connection wrote, and so the whole batch.
        having = found.pop()
        return [self._confirmed(reply, having) for reply in found]

    def _confirmed(self, reply: Any, having: Any) -> Any:
        for refusal in (reply, having):
            if isinstance(refusal, Exception):
                return refusal
        try:
            return confirmed((reply, having), self._replicas)
        except Unconfirmed as error:
            self._route.suspect()
            return error


def _in_full(request: _Request) -> bytes:
    return packed(evaluation(request.script, request.keyed, request.now, source=True))


def _unavailable(error: Exception) -> Exception:
    if isinstance(error, BackendUnavailable):
        return error
    unavailable = wrapped(error)
    unavailable.__cause__ = error
    return unavailable
