"""The same as ``calls`` on asyncio. Under trio, which the client library does not know, the blocking calls in a thread.

A call that is more than one step for the library is cancelled when its time is over; with one server, the timeouts of
the steps add up to less.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from open_idempotency._perform.local_failures import is_local, translated
from open_idempotency._perform.loops import current_library, in_thread, on_trio
from open_idempotency.backends.redis.bounds import within_async
from open_idempotency.backends.redis.calls import Calls, in_order, keyed_of, raised
from open_idempotency.backends.redis.clients import ERRORS, LoopClients, may_retry, wrapped
from open_idempotency.backends.redis.connecting import CLOSED
from open_idempotency.backends.redis.options import SINGLE, Options
from open_idempotency.backends.redis.replies import confirmed
from open_idempotency.backends.redis.scripts import Arguments, Keyed, Script, evaluation
from open_idempotency.backends.redis.topology import AsyncClient, NotInBatch

R = TypeVar("R")
#: bytes of an answer or a stage from which on it goes on a connection of its own
_LARGE = 128 * 1024


class AsyncCalls:
    """What the asynchronous backend asks of its servers, over the blocking one's calls."""

    def __init__(self, options: Options, blocking: Calls) -> None:
        self._options = options
        self._blocking = blocking
        self._clients = LoopClients(options)
        self._limited = options.topology != SINGLE or options.min_replicas > 0

    async def close(self) -> None:
        """Close the running loop's connections."""
        if current_library() == "asyncio":
            await self._clients.close()

    def script(self, script: Script, keys: Sequence[bytes], arguments: Arguments) -> Awaitable[Any]:
        """See ``Calls.script``."""
        # No coroutine of its own, as in durable: under load each of them that waits is woken in turn.
        if on_trio():
            return in_thread(self._blocking.script, script, keys, arguments)
        keyed = (keys, arguments)
        return self._batched(script, keyed, False, lambda client: self._evaluate(client, script, keyed))

    async def _batched(
        self, script: Script, keyed: Keyed, durably: bool, alone: Callable[[AsyncClient], Awaitable[R]]
    ) -> R:
        """Run a script in a batch; ``alone`` where batches are not wanted, or not possible at the moment."""
        seconds = self._options.budget
        last = keyed[1][-1] if keyed[1] else b""
        # What is large would hold up all that comes behind it on the one connection of the batches.
        if self._options.coalesce and (type(last) is not bytes or len(last) <= _LARGE):
            started = time.monotonic()
            try:
                answer: R = await self._clients.get().in_batch(script, keyed, durably)
                return answer
            except NotInBatch:
                seconds += started - time.monotonic()
        return await self._run(alone, seconds)

    async def _evaluate(self, client: AsyncClient, script: Script, keyed: Keyed) -> Any:
        now = self._options.now()
        try:
            return await client.execute(evaluation(script, keyed, now))
        except NoScriptError:
            return await client.execute(evaluation(script, keyed, now, source=True))

    def durable(self, script: Script, key: bytes, arguments: Arguments) -> Awaitable[Any]:
        """See ``Calls.durable``."""
        if not self._options.min_replicas:
            return self.script(script, (key,), arguments)
        if on_trio():
            return in_thread(self._blocking.durable, script, key, arguments)
        keyed = ((key,), arguments)
        return self._batched(script, keyed, True, lambda client: self._waited(client, script, keyed))

    async def _waited(self, client: AsyncClient, script: Script, keyed: Keyed) -> Any:
        now, wait = self._options.now(), self._options.wait_command
        found = await client.together([evaluation(script, keyed, now), wait])
        if isinstance(found[0], NoScriptError):
            found = await client.together([evaluation(script, keyed, now, source=True), wait])
        return confirmed(raised(found), self._options.min_replicas)

    async def by_server(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Arguments]) -> list[Any]:
        """See ``Calls.by_server``."""
        if on_trio():
            return await in_thread(self._blocking.by_server, script, keys, arguments)
        return await self._run(lambda client: self._grouped(client, script, keys, arguments))

    async def _grouped(
        self, client: AsyncClient, script: Script, keys: Sequence[bytes], arguments: Sequence[Arguments]
    ) -> list[Any]:
        groups, now = client.groups(keys), self._options.now()
        batches = [keyed_of(group, keys, arguments) for group in groups]
        found = await client.each([evaluation(script, keyed, now) for keyed in batches])
        forgotten = [place for place, reply in enumerate(found) if isinstance(reply, NoScriptError)]
        if forgotten:
            again = await client.each([evaluation(script, batches[place], now, source=True) for place in forgotten])
            for place, reply in zip(forgotten, again, strict=True):
                found[place] = reply
        return in_order(groups, raised(found))

    async def servers(self) -> Sequence[Any]:
        """See ``Calls.servers``; for ``on`` under the same library."""
        if on_trio():
            return await in_thread(self._blocking.servers)
        return await self._run(lambda client: client.servers())

    async def on(self, server: Any, *words: Any) -> Any:
        """See ``Calls.on``."""
        if on_trio():
            return await in_thread(self._blocking.on, server, *words)
        return await self._run(lambda _: server.execute(*words))

    async def _run(self, function: Callable[[AsyncClient], Awaitable[R]], seconds: float | None = None) -> R:
        closings = self._clients.closings()
        try:
            if self._limited:
                return await within_async(seconds or self._options.budget, self._tried(function, closings))
            return await self._tried(function, closings)
        except ERRORS as error:
            raise wrapped(error) from error
        except Exception as error:
            if is_local(error):
                raise translated(error)  # noqa: B904 (it has its cause)
            if self._clients.closings() == closings:
                raise
            raise wrapped(RedisError(CLOSED)) from error

    async def _tried(self, function: Callable[[AsyncClient], Awaitable[R]], closings: int) -> R:
        started = time.monotonic()
        try:
            return await self._carried_out(function)
        except ERRORS as error:
            if self._clients.closings() != closings or not may_retry(error, started, self._options):
                raise
            return await self._carried_out(function)

    async def _carried_out(self, function: Callable[[AsyncClient], Awaitable[R]]) -> R:
        try:
            return await function(self._clients.get())
        except AttributeError as error:
            # redis-py gives out a connection that another task has dropped at this very moment.
            if "NoneType" not in str(error):
                raise
            raise RedisConnectionError(str(error)) from error
