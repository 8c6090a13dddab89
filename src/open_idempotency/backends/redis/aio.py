"""The async Redis backend: the same scripts, arguments and replies as in the sync one, awaited.

redis-py knows only asyncio. Under trio each call is made by the sync backend, in a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from redis.exceptions import TimeoutError as RedisTimeoutError

from open_idempotency._runtime.loops import in_thread, on_trio, signal, sleep
from open_idempotency.backend import (
    AsyncBackend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Health,
    Lease,
    Leased,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency.backends.redis import memory, scripts
from open_idempotency.backends.redis.calls import AsyncCalls
from open_idempotency.backends.redis.deadlines import limited
from open_idempotency.backends.redis.protocol import wrapped
from open_idempotency.backends.redis.scripts import RENEWED_AT_ONCE, SCANNED_AT_ONCE, Script
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError

if TYPE_CHECKING:
    from open_idempotency.backends.redis.backend import RedisBackend

logger = logging.getLogger("open_idempotency")


class AsyncRedisBackend(AsyncBackend):
    """The async backend, for asyncio and trio. It takes the arguments of ``RedisBackend``. Since 0.1."""

    quotas = True

    def __init__(self, url: str = "", *, over: RedisBackend | None = None, **options: Any) -> None:
        if over is None:
            from open_idempotency.backends.redis.backend import RedisBackend

            over = RedisBackend(url, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # they are one pair
        self._sync = over
        self._options = over.options
        self._calls = AsyncCalls(self._options, over.calls)
        self.call_timeout = over.call_timeout

    def __repr__(self) -> str:
        return f"AsyncRedisBackend({self._options.where!r})"

    def call(self, script: Script, keys: Sequence[bytes], *arguments: scripts.Argument) -> Awaitable[Any]:
        """Run one script, once more where the connection broke. Raises ``BackendUnavailable``."""
        return self._calls.script(script, keys, arguments)

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``RedisBackend.claim``."""
        if on_trio():
            return await in_thread(self._sync.claim, c)
        watch = self._sync.watch
        if watch.unknown() and watch.due():
            await self._look()
        watch.admit()
        if self._options.min_replicas:
            answer = await self._confirmed(c)
        else:
            answer = scripts.claimed(c, await self._send_claim(c))
        if watch.due():
            await self._look()
        return answer

    async def _confirmed(self, c: Claim) -> ClaimResult:
        leases: list[Lease] = []
        try:
            return await limited(self._options.budget, self._claim_and_confirm(c, leases))
        except (BackendUnavailable, RedisTimeoutError) as error:
            for lease in leases:
                await self._release(lease)
            if isinstance(error, BackendUnavailable):
                raise
            raise wrapped(error) from error

    async def _claim_and_confirm(self, c: Claim, leases: list[Lease]) -> ClaimResult:
        answer = scripts.claimed(c, await self._send_claim(c))
        if isinstance(answer, Leased):
            leases.append(answer.lease)
            key = self._options.key(c.record_id)
            scripts.held(await self._calls.durable(scripts.RENEW, key, scripts.renew_arguments(answer.lease)))
        return answer

    async def _release(self, lease: Lease) -> None:
        try:
            await limited(self._options.timeout, self.release(Release(lease)))
        except (IdempotencyError, RedisTimeoutError) as error:
            logger.warning(
                "%s: an unconfirmed claim could not be released and holds its key until its lease ends: %s", self, error
            )

    async def _look(self) -> None:
        try:
            self._sync.watch.heed(await limited(self._options.timeout, self._infos("memory")))
        except BackendUnavailable as error:
            self._sync.watch.missed(error)
        except RedisTimeoutError as error:
            self._sync.watch.missed(wrapped(error))

    async def _infos(self, *sections: str) -> list[Any]:
        return [await self._calls.on(server, "INFO", *sections) for server in await self._calls.servers()]

    async def health(self) -> Health:
        """See ``RedisBackend.health``."""
        infos = await self._infos()
        self._sync.watch.heed(infos)
        return Health(tuple(memory.dangers_of(infos, self._options)))

    def _send_claim(self, c: Claim) -> Awaitable[Any]:
        return self.call(scripts.CLAIM, (self._options.key(c.record_id),), *scripts.claim_arguments(c))

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``RedisBackend.renew``."""
        answers: list[Renewal] = []
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = c.leases[start : start + RENEWED_AT_ONCE]
            keys = [self._options.key(lease.record_id) for lease in batch]
            arguments = [scripts.renew_arguments(lease) for lease in batch]
            answers += scripts.renewed(await self._calls.by_server(scripts.RENEW, keys, arguments))
        return answers

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        key = self._options.key(c.lease.record_id)
        reply = await self._calls.durable(scripts.SAVE_STAGE, key, scripts.save_stage_arguments(c))
        return scripts.stage_saved(reply)

    async def complete(self, c: Complete, /) -> Completed:
        """See ``RedisBackend.complete``."""
        key = self._options.key(c.lease.record_id)
        return scripts.completed(await self._calls.durable(scripts.COMPLETE, key, scripts.complete_arguments(c)))

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        key = self._options.key(c.lease.record_id)
        scripts.code(await self.call(scripts.FAIL, (key,), *scripts.fail_arguments(c)))

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        key = self._options.key(c.lease.record_id)
        scripts.code(await self.call(scripts.RELEASE, (key,), *scripts.release_arguments(c)))

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        key = self._options.key(c.claim.record_id)
        scripts.code(await self.call(scripts.WITHDRAW, (key,), *scripts.withdraw_arguments(c)))

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return scripts.record(c.record_id, await self.call(scripts.GET, (self._options.key(c.record_id),)))

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``RedisBackend.delete``."""
        return bool(scripts.code(await self.call(scripts.DELETE, (self._options.key(record_id),))))

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
                script, most = scripts.purging(self._options.holds_reservations(key), limit - purged)
                purged += scripts.code(await self.call(script, (key,), most))
        return purged

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``."""
        key = self._options.reservations_key(c.scope_id)
        return scripts.reserved(await self.call(scripts.RESERVE, (key,), *scripts.reserve_arguments(c)))

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        key = self._options.reservations_key(c.scope_id)
        scripts.code(await self.call(scripts.UNRESERVE, (key,), c.record_id))

    async def _keys(self) -> AsyncGenerator[bytes, None]:
        for server in await self._calls.servers():
            cursor: Any = None
            while cursor is None or int(cursor):
                words = ("SCAN", cursor or 0, "MATCH", self._options.pattern(), "COUNT", SCANNED_AT_ONCE)
                cursor, keys = await self._calls.on(server, *words)
                for key in keys:
                    yield key

    async def wait(self, c: Wait, /) -> None:
        """See ``RedisBackend.wait``. One thread listens for the sync and the async backend, and wakes the task."""
        until, key = time.monotonic() + c.seconds, self._options.key(c.record_id)
        settled, ended = signal(), signal()
        subscription = self._sync.listener.enter(key, settled, ended)
        try:
            if subscription is not None and await settled.wait(c.seconds) and subscription.confirmed:
                if scripts.is_running(await self.call(scripts.STATUS, (key,))):
                    await ended.wait(max(0.0, until - time.monotonic()))
                return
        except BackendUnavailable:
            pass
        finally:
            if subscription is not None:
                subscription.leave()
        await sleep(max(0.0, min(c.pause, until - time.monotonic())))

    def to_sync(self) -> RedisBackend:
        """The sync backend on the same servers."""
        return self._sync

    async def close(self) -> None:
        """Close the connections of the running loop and of the sync backend."""
        await self._calls.close()
        self._sync.close()
