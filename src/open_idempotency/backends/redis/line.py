"""One connection over which batches of commands go, each as one write, to be answered in their order, on asyncio.

The client library connects, with its TLS, login and discovery; then the connection is taken over. Once something goes
wrong with it, it is given up and the next batch has another, so that no reply ever meets a question that is not its.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from open_idempotency.backends.redis.addresses import Address
from open_idempotency.backends.redis.bounds import within_async
from open_idempotency.backends.redis.connecting import CLOSED
from open_idempotency.backends.redis.wire import Replies


class Destination(Protocol):
    """The server that a line goes to."""

    def connection(self) -> Any:
        """One of the client library's connections to it, not connected yet."""

    def is_at(self, address: Address) -> bool:
        """Whether it is, as far as is known, where a connection went."""
        ...

    def is_gone(self, error: Exception) -> bool:
        """Whether a reply says that another server is to be asked."""
        ...


class _Exchange:
    __slots__ = ("answer", "replies", "timer", "wanted")

    def __init__(self, wanted: int, answer: asyncio.Future[list[Any]]) -> None:
        self.wanted = wanted
        self.replies: list[Any] = []
        self.answer = answer
        self.timer: asyncio.TimerHandle

    def fail(self, error: Exception) -> None:
        self.timer.cancel()
        if not self.answer.done():
            self.answer.set_exception(error)


class _Conversation(asyncio.Protocol):
    """A connection from when it is taken over to its end."""

    def __init__(self, writer: asyncio.StreamWriter, address: Address) -> None:
        self.address = address
        # Kept: it closes the connection when it is forgotten.
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._replies = Replies()
        self._awaited: deque[_Exchange] = deque()
        self.is_over = False
        writer.transport.set_protocol(self)

    def exchange(self, commands: Sequence[bytes], seconds: float) -> asyncio.Future[list[Any]]:
        """Send the commands; the future of as many replies. Who has cancelled it leaves replies to nobody."""
        written = b"".join(commands)
        exchange = _Exchange(len(commands), self._loop.create_future())
        exchange.timer = self._loop.call_later(seconds, self._be_late, exchange)
        self._awaited.append(exchange)
        try:
            self._writer.transport.write(written)
        except BaseException:  # as for want of memory: else the next replies would be taken for those to these commands
            exchange.answer.cancel()
            self.end(RedisConnectionError("the commands could not be written"))
            raise
        return exchange.answer

    def _be_late(self, exchange: _Exchange) -> None:
        exchange.fail(RedisTimeoutError("no answer in time"))
        # Those behind it have time left for another connection.
        self.end(RedisConnectionError("the server did not answer the batch before"))

    def data_received(self, data: bytes) -> None:
        try:
            found = self._replies.feed(data)
        except InvalidResponse as error:
            self.end(error)
            return
        for reply in found:
            if not self._awaited:
                self.end(RedisConnectionError(f"the server said what nobody asked for: {reply!r}"))
                return
            self._take(self._awaited[0], reply)

    def _take(self, exchange: _Exchange, reply: Any) -> None:
        exchange.replies.append(reply)
        if len(exchange.replies) == exchange.wanted:
            self._awaited.popleft()
            exchange.timer.cancel()
            if not exchange.answer.done():
                exchange.answer.set_result(exchange.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(RedisConnectionError(f"the connection was closed: {exc}"))

    def end(self, error: Exception) -> None:
        """Give the connection up; whoever waits for a reply gets the error."""
        if self.is_over:
            return
        self.is_over = True
        self._writer.transport.abort()
        for exchange in self._awaited:
            exchange.fail(error)
        self._awaited.clear()


class Line:
    """The connection that one loop has to one server, made when it is needed."""

    def __init__(self, destination: Destination, timeout: float) -> None:
        self._destination = destination
        self._timeout = timeout
        self._conversation: _Conversation | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def exchange(self, commands: Sequence[bytes], until: float) -> list[Any]:
        """Send the commands; their replies, refusals in their places. Raises one of ``ERRORS`` where it broke.

        ``until``: the latest end by ``time.monotonic``; with the connection made, ``timeout`` ends it as well.
        """
        conversation = self._usable()
        if conversation is None:
            conversation = await within_async(until - time.monotonic(), self._connected())
        seconds = min(self._timeout, until - time.monotonic())
        replies = await conversation.exchange(commands, seconds)
        for reply in replies:
            if isinstance(reply, Exception) and self._tells_the_end(reply):
                error = RedisConnectionError(str(reply))
                conversation.end(error)
                raise error from reply
        return replies

    def _tells_the_end(self, reply: Exception) -> bool:
        # As a server says that is still loading its data.
        return isinstance(reply, RedisConnectionError) or self._destination.is_gone(reply)

    def _usable(self) -> _Conversation | None:
        conversation = self._conversation
        if conversation is None or conversation.is_over or not self._destination.is_at(conversation.address):
            return None
        return conversation

    async def _connected(self) -> _Conversation:
        async with self._connecting:
            return self._usable() or await self._connect()

    async def _connect(self) -> _Conversation:
        self._demand_open()
        self._hang_up("its server is another by now")
        connection = self._destination.connection()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._conversation = _taken_over(connection)
        self._demand_open()
        return self._conversation

    def _demand_open(self) -> None:
        if self._closed:
            self._hang_up(CLOSED)
            raise RedisError(CLOSED)

    def _hang_up(self, reason: str) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.end(RedisError(reason))

    def close(self) -> None:
        """Close the connection, for good; whoever waits gets an error."""
        self._closed = True
        self._hang_up(CLOSED)


def _taken_over(connection: Any) -> _Conversation:
    reader, writer = connection._reader, connection._writer
    # It would warn that nobody had closed it.
    connection._reader = connection._writer = None
    if reader.at_eof():
        writer.close()
        raise RedisConnectionError("the connection was closed at once")
    return _Conversation(writer, (connection.host, connection.port))
