"""Batches of scripts over one connection to a server, on asyncio, and all that we use of redis-py's private parts.

The requests that arrive while a batch is in flight are the next batch, which is one write. Every request of a batch has
what it would have alone: it is sent once more where the connection broke, a script that the server forgot is sent in
full, and replicas confirm all writes of a batch at once.

redis-py connects, with its TLS, login and discovery. Then the connection is taken over from it. A connection on which
anything goes wrong is dropped, and the next batch has a new one, so no request gets the reply to another one. A request
that a server redirects, as in a Cluster, is left to redis-py's own client.

The servers' protocol (RESP 2) is written and read here. redis-py does that for one command and one reply at a time,
which is most of the cost of its calls.

``without_missing_parts`` looks for the private parts when a backend is made. Where one is missing the backend works
without it, through redis-py's pools, and logs a warning.
"""

from __future__ import annotations

import asyncio
import logging
import re
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
from open_idempotency.backends.redis.refusals import CLOSED, ERRORS, error_of, may_retry, wrapped
from open_idempotency.backends.redis.scripts import Argument, Keyed, Script, Unconfirmed, confirmed, evaluation
from open_idempotency.exceptions import BackendUnavailable

logger = logging.getLogger("open_idempotency")

# Private parts of redis-py: which of them exist

_SOCKET, _STREAMS, _CERTIFICATES = "_sock", ("_reader", "_writer"), "ssl_context"


def without_missing_parts(options: Options) -> Options:
    """The options without features that the installed redis-py lacks. A missing part is logged as a warning."""
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
    """The names of the attributes that redis-py's connections should have but lack."""
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


# Commands to bytes, bytes to replies

#: the words of a command
Command = Sequence[Any]

_END = b"\r\n"
_ARRAY, _TEXT, _INTEGER, _SIMPLE, _ERROR = b"*$:+-"
# The end of one word and the length of the next; nearly all words are short.
_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(128)]


def packed(command: Command) -> bytes:
    """A command as it is sent. Its words are bytes of any kind, text or whole numbers."""
    pieces = [b"*%d" % len(command)]
    for word in command:
        if type(word) is not bytes:
            word = b"%d" % word if type(word) is int else _octets(word)
        length = len(word)
        pieces.append(_LENGTHS[length] if length < len(_LENGTHS) else b"\r\n$%d\r\n" % length)
        pieces.append(word)
    pieces.append(_END)
    return b"".join(pieces)


def _octets(word: Any) -> bytes:
    return word.encode() if isinstance(word, str) else bytes(word)


class Replies:
    """Cuts received bytes into replies. An error reply is an exception of redis-py's, which is not raised."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        # Without it, each piece of a large value would be parsed from the beginning of the value.
        self._needed = 0

    def feed(self, data: bytes) -> list[Any]:
        """The replies that are complete now. After ``InvalidResponse`` it must not be fed again."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
        found: list[Any] = []
        position, end = 0, len(data)
        try:
            while position < end:
                numbers = _NUMBERS(data, position)
                words = () if numbers is None else numbers[2][1:-2].split(b"\r\n:")
                if numbers is not None and len(words) == int(numbers[1]):
                    reply, position = [*map(int, words)], numbers.end()
                else:
                    reply, position = _reply(data, position)
                found.append(reply)
        except _Incomplete as incomplete:
            self._needed = incomplete.length - position
        except ValueError as error:
            raise InvalidResponse(f"not a reply: {error}") from error
        self._rest = bytearray(data[position:])
        return found


class _Incomplete(Exception):
    """A reply is not complete. ``length``: how many bytes are needed at least, from the beginning."""

    def __init__(self, length: int) -> None:
        self.length = length


#: a short array of numbers, as most replies are; the next reply may follow it
_NUMBERS = re.compile(rb"\*(\d)\r\n((?::-?\d+\r\n)+)").match


def _reply(data: bytes, position: int) -> tuple[Any, int]:
    """The reply at ``position``, and where it ends. It is a loop, not a recursion, because every call pays for it."""
    open_arrays: list[tuple[list[Any], int]] = []
    while True:
        value, position, missing = _value(data, position)
        if missing:
            open_arrays.append((value, missing))
            continue
        while open_arrays:
            array, size = open_arrays[-1]
            array.append(value)
            if len(array) < size:
                break
            value = open_arrays.pop()[0]
        else:
            return value, position


def _value(data: bytes, position: int) -> tuple[Any, int, int]:
    """One value, where it ends, and how many of the following values belong to it."""
    line = data.find(_END, position)
    if line < 0:
        raise _Incomplete(len(data) + 1)
    kind, after = data[position], line + 2
    if kind == _INTEGER:
        return int(data[position + 1 : line]), after, 0
    if kind == _TEXT:
        length = int(data[position + 1 : line])
        if length < 0:
            return None, after, 0
        end = after + length
        if len(data) < end + 2:
            raise _Incomplete(end + 2)
        return data[after:end], end + 2, 0
    if kind == _ARRAY:
        length = int(data[position + 1 : line])
        return (None if length < 0 else []), after, max(0, length)
    if kind == _SIMPLE:
        return data[position + 1 : line], after, 0
    if kind == _ERROR:
        return error_of(data[position + 1 : line].decode("utf-8", "replace")), after, 0
    raise ValueError(f"byte {kind} at the start")


# The connection


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

    def __init__(self, connection: Any, route: Route) -> None:
        reader, writer = connection._reader, connection._writer
        # Else redis-py would warn that the connection was not closed.
        connection._reader = connection._writer = None
        if reader.at_eof():
            writer.close()
            raise RedisConnectionError("the connection was closed at once")
        self.reached = connection.reached
        self._route = route
        # Kept, because a writer closes its connection when it is garbage.
        self._writer: asyncio.StreamWriter = writer
        self._loop = asyncio.get_running_loop()
        self._replies = Replies()
        self._in_flight: deque[_Exchange] = deque()
        self.is_over = False
        writer.transport.set_protocol(self)

    def exchange(self, commands: Sequence[bytes], seconds: float) -> asyncio.Future[list[Any]]:
        """Send the commands; the future of their replies. After its cancellation the replies are discarded.

        Raises redis-py's ``ConnectionError`` where the connection has ended: no reply would come.
        """
        if self.is_over:
            raise RedisConnectionError("the connection was closed before it was used")
        written = b"".join(commands)
        exchange = _Exchange(len(commands), self._loop.create_future())
        exchange.timer = self._loop.call_later(seconds, self._time_out, exchange)
        self._in_flight.append(exchange)
        try:
            self._writer.transport.write(written)
        except BaseException:  # such as MemoryError: later replies must not be matched with these commands
            exchange.outcome.cancel()
            self.drop(RedisConnectionError("the commands could not be written"))
            raise
        return exchange.outcome

    def _time_out(self, exchange: _Exchange) -> None:
        exchange.fail(RedisTimeoutError(LATE))
        # The exchanges after this one have time left for another connection.
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
            if isinstance(reply, Exception) and self._must_leave(reply):
                ended = RedisConnectionError(str(reply))
                ended.__cause__ = reply
                self.drop(ended)
                return
            exchange = self._in_flight[0]
            exchange.replies.append(reply)
            if len(exchange.replies) == exchange.wanted:
                self._in_flight.popleft()
                exchange.timer.cancel()
                if not exchange.outcome.done():
                    exchange.outcome.set_result(exchange.replies)

    def _must_leave(self, refusal: Exception) -> bool:
        """Whether a refusal means that another connection is needed."""
        if isinstance(refusal, ResponseError) and self._route.leave_if(refusal, self.reached):
            return True
        # For example BusyLoadingError: the server is loading its data.
        return isinstance(refusal, RedisConnectionError)

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

    def exchange(self, commands: Sequence[bytes], until: float) -> Awaitable[list[Any]]:
        """Send the commands; their replies, with refusals at their positions. Raises one of ``ERRORS`` where it broke.

        ``until``: the latest end, a time of ``time.monotonic``. Once connected, ``timeout`` seconds end it as well.
        """
        # Not ``async def``: the caller waits for the replies themselves, and no frame between is resumed.
        stream = self._stream
        if stream is None or stream.is_over or stream.reached != self._route.current:
            return self._connect_and_exchange(commands, until)
        return stream.exchange(commands, min(self._timeout, until - time.monotonic()))

    async def _connect_and_exchange(self, commands: Sequence[bytes], until: float) -> list[Any]:
        stream = await limited(until - time.monotonic(), self._connected())
        return await stream.exchange(commands, min(self._timeout, until - time.monotonic()))

    async def _connected(self) -> _Stream:
        async with self._connecting:
            stream = self._stream
            if stream is None or stream.is_over or stream.reached != self._route.current:
                return await self._connect()
            return stream

    async def _connect(self) -> _Stream:
        self._refuse_if_closed()
        self._drop(RedisConnectionError("its server is another one now"))
        connection = self._destination.connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        stream = self._stream = _Stream(connection, self._route)
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


# The batches


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
        """Run one script on one key. Returns its reply. Raises ``BackendUnavailable``."""
        (key,), arguments = keyed
        now = self._options.now()
        command = packed((*script.called, key, now, *arguments))
        request = _Request(script, keyed, now, command)
        if not self._next.idle and self._next.busy:
            # In turn, so that both have equal parts.
            self._next, self._other = self._other, self._next
        return self._next.ask(request, len(command))

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
        """Send the scripts that the server forgot in full. Other errors become ``BackendUnavailable``."""
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
