"""The asynchronous colour of the Redis backend: the same scripts, arguments and replies, awaited.

The client library knows asyncio alone, so under trio each call is the blocking colour's, made in a thread.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from open_idempotency._perform.loops import current_library, in_thread, signal, sleep
from open_idempotency.backend import (
    AsyncBackend,
    Claim,
    ClaimAnswer,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    SaveStage,
    StageSaved,
    Wait,
)
from open_idempotency.backends.redis import replies, scripts
from open_idempotency.backends.redis.clients import ERRORS, LoopClients, may_retry, wrapped
from open_idempotency.backends.redis.scripts import RENEWED_AT_ONCE, SCANNED_AT_ONCE, Script
from open_idempotency.exceptions import BackendUnavailable

if TYPE_CHECKING:
    from open_idempotency.backends.redis.backend import RedisBackend


class AsyncRedisBackend(AsyncBackend):
    """The asynchronous colour, on asyncio and on trio; takes the same arguments as ``RedisBackend``. Since 0.1."""

    def __init__(self, url: str = "", *, over: RedisBackend | None = None, **options: Any) -> None:
        if over is None:
            from open_idempotency.backends.redis.backend import RedisBackend

            over = RedisBackend(url, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]
        self._sync = over
        self._options = over.options
        self._clients = LoopClients(self._options)
        self.call_timeout = over.call_timeout

    def __repr__(self) -> str:
        return f"AsyncRedisBackend({self._options.where!r})"

    async def call(self, script: Script, keys: Sequence[bytes], *arguments: scripts.Argument) -> Any:
        """Run one script; tried once more where the connection broke. Raises ``BackendUnavailable``."""
        if current_library() == "trio":
            return await in_thread(self._sync.call, script, keys, *arguments)
        return await self._tried(self._evaluate, script, keys, arguments)

    async def command(self, *arguments: Any) -> Any:
        """Run one plain command in the same way."""
        if current_library() == "trio":
            return await in_thread(self._sync.command, *arguments)
        return await self._tried(self._execute, *arguments)

    async def _tried(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        started = time.monotonic()
        try:
            try:
                return await function(*arguments)
            except ERRORS as error:
                if not may_retry(error, started, self._options):
                    raise
                return await function(*arguments)
        except ERRORS as error:
            raise wrapped(error) from error

    async def _execute(self, *arguments: Any) -> Any:
        return await self._clients.get().execute_command(*arguments)

    async def _evaluate(self, script: Script, keys: Sequence[bytes], arguments: scripts.Arguments) -> Any:
        rest = (len(keys), *keys, self._options.now(), *arguments)
        try:
            return await self._execute("EVALSHA", script.sha, *rest)
        except NoScriptError:
            return await self._execute("EVAL", script.source, *rest)

    async def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        key = self._options.key(c.record_id)
        return replies.claimed(c, await self.call(scripts.CLAIM, (key,), *scripts.claim_arguments(c)))

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``RedisBackend.renew``."""
        answers: list[Renewal] = []
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = Renew(c.leases[start : start + RENEWED_AT_ONCE])
            keys = [self._options.key(lease.record_id) for lease in batch.leases]
            answers += replies.renewed(await self.call(scripts.RENEW, keys, *scripts.renew_arguments(batch)))
        return answers

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        key = self._options.key(c.lease.record_id)
        reply = await self.call(scripts.SAVE_STAGE, (key,), *scripts.save_stage_arguments(c))
        return replies.stage_saved(reply)

    async def complete(self, c: Complete, /) -> Completed:
        """See ``RedisBackend.complete``."""
        key = self._options.key(c.lease.record_id)
        return replies.completed(await self.call(scripts.COMPLETE, (key,), *scripts.complete_arguments(c)))

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        key = self._options.key(c.lease.record_id)
        replies.code(await self.call(scripts.FAIL, (key,), *scripts.fail_arguments(c)))

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        key = self._options.key(c.lease.record_id)
        replies.code(await self.call(scripts.RELEASE, (key,), *scripts.release_arguments(c)))

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return replies.record(c.record_id, await self.call(scripts.GET, (self._options.key(c.record_id),)))

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``RedisBackend.delete``."""
        return bool(replies.code(await self.call(scripts.DELETE, (self._options.key(record_id),))))

    async def scan(self) -> AsyncIterator[Record]:
        """See ``RedisBackend.scan``."""
        async with aclosing(self._keys()) as keys:
            async for key in keys:
                record_id = self._options.record_id(key)
                record = None if record_id is None else await self.get(Get(record_id))
                if record is not None:
                    yield record

    async def purge(self, limit: int = 1000) -> int:
        """See ``RedisBackend.purge``."""
        purged = 0
        async with aclosing(self._keys()) as keys:
            async for key in keys:
                if purged >= limit:
                    break
                purged += replies.code(await self.call(scripts.PURGE, (key,)))
        return purged

    async def _keys(self) -> AsyncGenerator[bytes, None]:
        cursor: Any = 0
        while True:
            cursor, keys = await self.command(
                "SCAN", cursor, "MATCH", self._options.pattern(), "COUNT", SCANNED_AT_ONCE
            )
            for key in keys:
                yield key
            if int(cursor) == 0:
                return

    async def wait(self, c: Wait, /) -> None:
        """See ``RedisBackend.wait``; the same thread listens for both colours, and wakes the task."""
        until, key = time.monotonic() + c.seconds, self._options.key(c.record_id)
        settled, ended = signal(), signal()
        subscription = self._sync.listener.enter(key, settled, ended)
        try:
            if subscription is not None and await settled.wait(c.seconds) and subscription.confirmed:
                if replies.is_running(await self.command(*scripts.status_of(key))):
                    await ended.wait(max(0.0, until - time.monotonic()))
                return
        except BackendUnavailable:
            pass
        finally:
            if subscription is not None:
                subscription.leave()
        await sleep(max(0.0, min(c.pause, until - time.monotonic())))

    def to_sync(self) -> RedisBackend:
        """The blocking colour on the same server."""
        return self._sync

    async def close(self) -> None:
        """Close the running loop's connections, and the blocking colour's."""
        if current_library() == "asyncio":
            await self._clients.close()
        self._sync.close()
