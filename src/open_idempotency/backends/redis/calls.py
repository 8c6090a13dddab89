"""Carrying out scripts: in bounded time, retried once if that may help, confirmed by replicas if required.

``Calls`` blocks. ``AsyncCalls`` is for asyncio. redis-py does not know trio, so under trio it makes the sync calls
in a thread. Whatever redis-py raises leaves here as ``BackendUnavailable``.

A value over a megabyte is sent by ``large_steps``, since a server that refuses it for its size ends the connection.

Each process has one sync client, and one asyncio client for each event loop. They are made on first use.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from math import inf
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from open_idempotency._runtime.loops import current_library, in_thread, on_trio
from open_idempotency._runtime.processes import PerProcess, is_local, translated
from open_idempotency.backends.redis.options import CLUSTER, SINGLE, Deadline, Options, limited
from open_idempotency.backends.redis.pipelining import Command
from open_idempotency.backends.redis.refusals import CLOSED, DIVIDED, ERRORS, is_without_code, may_retry, wrapped
from open_idempotency.backends.redis.scripts import (
    Argument,
    Arguments,
    Keyed,
    Script,
    Unconfirmed,
    confirmed,
    evaluation,
)
from open_idempotency.backends.redis.topology import AsyncClient, Client, InBatch, NotInBatch, Server, topology_of
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge

P = ParamSpec("P")
R = TypeVar("R")
#: yields commands that are sent at once, and gets their replies
Steps = Generator[list[Command], list[Any], R]
#: bytes of a response or a stage from which on a call has a connection to itself
_LARGE = 128 * 1024


def _durable_steps(script: Script, keyed: Keyed, options: Options) -> Steps[Any]:
    """Run a script. Returns its reply once ``min_replicas`` replicas have what it wrote."""
    now, wait = options.now(), options.wait_command
    found = yield [evaluation(script, keyed, now), wait]
    # A server that was restarted, or a new primary, has forgotten the scripts.
    if isinstance(found[0], NoScriptError):
        found = yield [evaluation(script, keyed, now, source=True), wait]
    return confirmed(_raised(found), options.min_replicas)


def _grouped_steps(
    script: Script,
    keys: Sequence[bytes],
    arguments: Sequence[Arguments],
    groups: Sequence[Sequence[int]],
    options: Options,
) -> Steps[list[Any]]:
    """Run a script once for each group of indexes of the keys. Returns the replies in the order of the keys.

    While a slot moves between two nodes of a Cluster, neither has all keys of its group. Then each key is sent alone.
    """
    now = options.now()
    found = yield from _evaluated(script, [_keyed_of(group, keys, arguments) for group in groups], now)
    replies: dict[int, Any] = {}
    apart: list[int] = []
    for group, reply in zip(groups, found, strict=True):
        if isinstance(reply, DIVIDED) and len(group) > 1:
            apart += group
        else:
            replies.update(zip(group, _whole(reply), strict=True))
    if apart:
        found = yield from _evaluated(script, [_keyed_of((index,), keys, arguments) for index in apart], now)
        replies.update((index, _whole(reply)[0]) for index, reply in zip(apart, found, strict=True))
    return [replies[index] for index in sorted(replies)]


def _evaluated(script: Script, batches: Sequence[Keyed], now: Argument) -> Steps[list[Any]]:
    """Run a script on each batch of keys, in full if a server does not know it. Returns replies, refusals included."""
    found = yield [evaluation(script, keyed, now) for keyed in batches]
    forgotten = [index for index, reply in enumerate(found) if isinstance(reply, NoScriptError)]
    if forgotten:
        again = yield [evaluation(script, batches[index], now, source=True) for index in forgotten]
        for index, reply in zip(forgotten, again, strict=True):
            found[index] = reply
    return found


def _whole(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _keyed_of(group: Sequence[int], keys: Sequence[bytes], arguments: Sequence[Arguments]) -> Keyed:
    return [keys[index] for index in group], tuple(value for index in group for value in arguments[index])


def _raised(found: list[Any]) -> list[Any]:
    return [_whole(reply) for reply in found]


def _drive(steps: Steps[R], send: Callable[[Sequence[Command]], list[Any]]) -> R:
    commands = next(steps)
    while True:
        replies = send(commands)
        try:
            commands = steps.send(replies)
        except StopIteration as end:
            result: R = end.value
            return result


async def _drive_async(steps: Steps[R], send: Callable[[Sequence[Command]], Awaitable[list[Any]]]) -> R:
    commands = next(steps)
    while True:
        replies = await send(commands)
        try:
            commands = steps.send(replies)
        except StopIteration as end:
            result: R = end.value
            return result


class Calls:
    """The calls of the sync backend to its servers. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._clients: PerProcess[Client] = PerProcess(lambda: topology_of(options).client(options))
        #: how often a client was closed; a call that was in flight then may get any error
        self._closings = 0
        # one for each call under way; any thread may add and discard, since sets are changed atomically
        self._deadlines: set[Deadline] = set()

    def client(self) -> Client:
        """This process's client."""
        return self._clients.get()

    def close(self) -> None:
        """Close this process's connections. The next call makes others."""
        client = self._clients.pop()
        self._closings += 1
        # A call does not go on by another connection, as to a node of a Cluster.
        for deadline in list(self._deadlines):
            deadline.until = -inf
        if client is not None:
            client.close()

    def script(self, script: Script, key: bytes, arguments: Arguments = ()) -> Any:
        """Run one script on one key, once more if the connection broke. Returns its reply."""
        return self._run(self._evaluate, script, ((key,), arguments))

    def _evaluate(self, client: Client, script: Script, keyed: Keyed) -> Any:
        now = self._options.now()
        try:
            return client.execute(evaluation(script, keyed, now))
        except NoScriptError:
            return client.execute(evaluation(script, keyed, now, source=True))

    def durable(self, script: Script, key: bytes, arguments: Arguments) -> Any:
        """``script``. With ``min_replicas`` it fails unless that many replicas have what the script wrote."""
        if not self._options.min_replicas:
            return self.script(script, key, arguments)
        keyed = ((key,), arguments)
        return self._run(lambda client: self._durably(client, script, keyed))

    def _durably(self, client: Client, script: Script, keyed: Keyed) -> Any:
        try:
            return _drive(_durable_steps(script, keyed, self._options), client.together)
        except Unconfirmed:
            client.suspect()
            raise

    def by_server(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Arguments]) -> list[Any]:
        """Run a script that takes many keys, each with arguments and a reply; one round trip for each server."""
        return self._run(
            lambda client: _drive(
                _grouped_steps(script, keys, arguments, client.groups(keys), self._options), client.each
            )
        )

    def servers(self) -> Sequence[Server]:
        """All primaries, for ``on``."""
        return self._run(lambda client: client.servers())

    def on(self, server: Server, *words: Any) -> Any:
        """Run one plain command on one of ``servers``."""
        return self._run(lambda _: server.execute(*words))

    def _run(self, function: Callable[Concatenate[Client, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        started, closings = time.monotonic(), self._closings
        deadline = Deadline(self._options.budget)
        try:
            with deadline:
                self._deadlines.add(deadline)
                try:
                    return function(self._clients.get(), *args, **kwargs)
                except ERRORS as error:
                    # An owner may send a script twice (B-08). A client that was closed meanwhile stays closed.
                    if self._closings != closings or not may_retry(error, started, self._options.timeout):
                        raise
                    return function(self._clients.get(), *args, **kwargs)
        except ERRORS as error:
            raise wrapped(error if self._closings == closings else RedisError(CLOSED)) from error
        except Exception as error:
            if is_local(error):
                raise translated(error)  # noqa: B904 (it has its cause)
            if self._closings == closings:
                raise
            raise wrapped(RedisError(CLOSED)) from error
        finally:
            self._deadlines.discard(deadline)


class AsyncCalls:
    """The calls of the async backend to its servers. ``sync``: makes the calls under trio.

    A call that is several steps for redis-py is cancelled when its time is over. With one server the timeouts of the
    steps add up to less than that.
    """

    def __init__(self, options: Options, sync: Calls) -> None:
        self._options = options
        self._sync = sync
        #: by process and loop: a loop that was made before the process forked is found in both
        self._clients: dict[tuple[int, asyncio.AbstractEventLoop], AsyncClient] = {}
        self._closings = 0
        self._limited = options.topology != SINGLE or options.min_replicas > 0

    def client(self) -> AsyncClient:
        """The running loop's client. The first call of a new loop forgets the clients of closed loops."""
        here = os.getpid(), asyncio.get_running_loop()
        client = self._clients.get(here)
        if client is None:
            # Not a weak dictionary: connections hold their loop, so an entry would keep itself alive. What another
            # process has made before it forked stays: its connections must not be closed here.
            for process, loop in list(self._clients):
                if process == here[0] and loop.is_closed():
                    self._clients.pop((process, loop), None)
            client = self._clients[here] = topology_of(self._options).async_client(self._options)
        return client

    async def close(self) -> None:
        """Close the running loop's client. The clients of other loops can only be closed there."""
        if current_library() == "asyncio":
            client = self._clients.pop((os.getpid(), asyncio.get_running_loop()), None)
            if client is not None:
                self._closings += 1
                await client.close()

    def script(self, script: Script, key: bytes, arguments: Arguments = (), *, durably: bool = False) -> Awaitable[Any]:
        """See ``Calls.script``, and ``Calls.durable`` for a script that is run ``durably``.

        It is run in a batch; by itself where the options exclude batches, or none is possible now.
        """
        # Not ``async def``: saves one coroutine frame for each call in flight.
        durably = durably and self._options.min_replicas > 0
        loop = asyncio._get_running_loop()
        client = None if loop is None else self._clients.get((os.getpid(), loop))
        # A loop with a client has made calls before. A task of trio's that is its guest is no task of asyncio's.
        if client is None or asyncio.current_task(loop) is None:
            if on_trio():
                return in_thread(self._sync.durable if durably else self._sync.script, script, key, arguments)
            client = self.client()
        keyed = ((key,), arguments)
        last = arguments[-1] if arguments else b""
        # A large argument would delay everything behind it on the one connection of the batches.
        if not self._options.coalesce or (type(last) is bytes and len(last) > _LARGE):
            return self._alone(script, keyed, durably, self._options.budget)
        in_batch = client.durably_in_batch if durably else client.in_batch
        if self._options.topology == CLUSTER:
            return self._in_batch_or_alone(in_batch, script, keyed, durably)
        return in_batch(script, keyed)

    async def _in_batch_or_alone(self, in_batch: InBatch, script: Script, keyed: Keyed, durably: bool) -> Any:
        started = time.monotonic()
        try:
            return await in_batch(script, keyed)
        except NotInBatch:
            seconds = self._options.budget + started - time.monotonic()
            return await self._alone(script, keyed, durably, seconds)

    async def _alone(self, script: Script, keyed: Keyed, durably: bool, seconds: float) -> Any:
        if durably:
            return await self._run(lambda client: self._durably(client, script, keyed), seconds)
        return await self._run(lambda client: self._evaluate(client, script, keyed), seconds)

    async def _evaluate(self, client: AsyncClient, script: Script, keyed: Keyed) -> Any:
        now = self._options.now()
        try:
            return await client.execute(evaluation(script, keyed, now))
        except NoScriptError:
            return await client.execute(evaluation(script, keyed, now, source=True))

    async def _durably(self, client: AsyncClient, script: Script, keyed: Keyed) -> Any:
        try:
            return await _drive_async(_durable_steps(script, keyed, self._options), client.together)
        except Unconfirmed:
            client.suspect()
            raise

    async def by_server(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Arguments]) -> list[Any]:
        """See ``Calls.by_server``."""
        if on_trio():
            return await in_thread(self._sync.by_server, script, keys, arguments)
        return await self._run(
            lambda client: _drive_async(
                _grouped_steps(script, keys, arguments, client.groups(keys), self._options), client.each
            )
        )

    async def servers(self) -> Sequence[Any]:
        """See ``Calls.servers``; for ``on`` under the same async library."""
        if on_trio():
            return await in_thread(self._sync.servers)
        return await self._run(lambda client: client.servers())

    async def on(self, server: Any, *words: Any) -> Any:
        """See ``Calls.on``."""
        if on_trio():
            return await in_thread(self._sync.on, server, *words)
        return await self._run(lambda _: server.execute(*words))

    async def _run(self, function: Callable[[AsyncClient], Awaitable[R]], seconds: float | None = None) -> R:
        closings = self._closings
        try:
            if self._limited:
                return await limited(seconds or self._options.budget, self._try(function, closings))
            return await self._try(function, closings)
        except ERRORS as error:
            raise wrapped(error) from error
        except Exception as error:
            if is_local(error):
                raise translated(error)  # noqa: B904 (it has its cause)
            if self._closings == closings:
                raise
            raise wrapped(RedisError(CLOSED)) from error

    async def _try(self, function: Callable[[AsyncClient], Awaitable[R]], closings: int) -> R:
        started = time.monotonic()
        try:
            return await self._once(function)
        except ERRORS as error:
            if self._closings != closings or not may_retry(error, started, self._options.timeout):
                raise
            return await self._once(function)

    async def _once(self, function: Callable[[AsyncClient], Awaitable[R]]) -> R:
        try:
            return await function(self.client())
        except AttributeError as error:
            # redis-py gives out a connection that another task has dropped at this very moment: an attribute of None.
            if error.name is None or error.obj is not None:
                raise
            raise RedisConnectionError(str(error)) from error


# Values that a server refuses for their size: how that is distinguished from a server that is down. A server that gets
# a value over ``proto-max-bulk-len`` ends the connection, with an error or without. So do proxies with a limit of their
# own. Nothing here costs anything for values below ``SMALLEST_LIMIT``. Before a larger value the server is asked for
# its limit, where the user may ask (``CONFIG GET``). Otherwise the value is tried. Where its connection ends each time,
# and a small call on the same key works after each time, its size is refused.

#: bytes; no server has a lower ``proto-max-bulk-len``
SMALLEST_LIMIT = 1024 * 1024
SETTING = "proto-max-bulk-len"
#: seconds until a process asks for the limit again
_EVERY = 300.0
_TRIES = 2


class Limit:
    """The servers' limit, as far as one process knows it. ``most``: bytes; None if no server reports it."""

    def __init__(self) -> None:
        self.most: int | None = None
        self._next = 0.0

    def due(self) -> bool:
        """Whether the caller should ask for it now. The next caller then should not."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _EVERY
        return True

    def heed(self, replies: Sequence[Any]) -> None:
        """Take the replies of the servers to ``CONFIG GET``; the lowest limit counts."""
        limits = [int(reply[SETTING]) for reply in replies if isinstance(reply, dict) and SETTING in reply]
        self.most = min(limits, default=None)


class Actions(NamedTuple):
    """The functions that ``large_steps`` yields. Each returns a result, or on asyncio an awaitable of it.

    ``send`` sends the value, ``small`` makes a small call on the same key, ``limits`` asks all servers for the limit.
    """

    send: Callable[[], Any]
    small: Callable[[], Any]
    limits: Callable[[], Any]


def size_of(arguments: Arguments) -> int:
    """The bytes of the value, which comes last."""
    last = arguments[-1] if arguments else b""
    return len(last) if isinstance(last, bytes) else 0


def large_steps(limit: Limit, size: int, actions: Actions) -> Generator[Callable[[], Any], Any, Any]:
    """Send a large value; its reply. Raises ``RecordTooLarge`` if the value is refused for its size."""
    if limit.due():
        try:
            limit.heed((yield actions.limits))
        except BackendUnavailable:  # such as for a user who may not ask
            limit.heed(())
    if limit.most is not None and size > limit.most:
        raise RecordTooLarge(
            f"Redis: {size} bytes are over the server's {SETTING} ({limit.most}); raise it, or lower max_response_bytes"
        )
    refused: Exception | None = None
    for _ in range(_TRIES):
        try:
            return (yield actions.send)
        except BackendUnavailable as error:
            if not _may_mean_size(error.__cause__):
                raise
            refused = error
        yield actions.small  # raises if the server is down
    raise RecordTooLarge(
        f"Redis: the connection ends whenever {size} bytes are sent, and smaller calls work; raise the limit of the "
        f"server ({SETTING}) or of the proxy before it, or lower max_response_bytes"
    ) from refused


def _may_mean_size(cause: BaseException | None) -> bool:
    return isinstance(cause, RedisConnectionError) or (isinstance(cause, Exception) and is_without_code(cause))


def drive_large(asked: Generator[Callable[[], Any], Any, Any]) -> Any:
    """Carry out ``large_steps``."""
    try:
        action = next(asked)
        while True:
            try:
                result = action()
            except BackendUnavailable as error:
                action = asked.throw(error)
            else:
                action = asked.send(result)
    except StopIteration as end:
        return end.value


async def drive_large_async(asked: Generator[Callable[[], Awaitable[Any]], Any, Any]) -> Any:
    """Carry out ``large_steps`` on asyncio."""
    try:
        action = next(asked)
        while True:
            try:
                result = await action()
            except BackendUnavailable as error:
                action = asked.throw(error)
            else:
                action = asked.send(result)
    except StopIteration as end:
        return end.value
