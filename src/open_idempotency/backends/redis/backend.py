"""The Redis backend, sync and async: each verb is one Lua script, run atomically on the server's clock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeoutError

from open_idempotency._runtime.loops import in_thread, on_trio, signal, sleep
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Finding,
    Free,
    Freed,
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
from open_idempotency.backends._shared import urls
from open_idempotency.backends.redis import calls, scripts, topology
from open_idempotency.backends.redis.calls import AsyncCalls, Calls, Limit
from open_idempotency.backends.redis.listening import Listener
from open_idempotency.backends.redis.options import OPTIONS, Deadline, limited, options_of
from open_idempotency.backends.redis.pipelining import without_missing_parts
from open_idempotency.backends.redis.refusals import wrapped
from open_idempotency.backends.redis.scripts import RENEWED_AT_ONCE, SCANNED_AT_ONCE, Script
from open_idempotency.backends.redis.topology import MemoryWatch
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, RecordUnreadable

logger = logging.getLogger("open_idempotency")


class AsyncRedisBackend(AsyncBackend):
    """The async backend, for asyncio and trio. It takes the arguments of ``RedisBackend``. Since 0.1."""

    quotas = True

    def __init__(self, url: str | Any = "", *, over: RedisBackend | None = None, **options: Any) -> None:
        if over is None:
            over = RedisBackend(url, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # they are one pair
        self._sync = over
        self._options = over.options
        self._key = over.options.keys.record
        self._calls = AsyncCalls(self._options, over.calls)
        self._watch = over.watch
        self.call_timeout = over.call_timeout

    def __repr__(self) -> str:
        return f"AsyncRedisBackend({self._options.where!r})"

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``RedisBackend.claim``."""
        watch = self._watch
        if self._options.eviction == "refuse":
            # ``refuse`` promises that no record is made that may be evicted. Before ``INFO`` is read, that is unknown.
            if not watch.looked and watch.next_look <= time.monotonic():
                await self._look()
            watch.admit()
        if self._options.min_replicas:
            result = await self._confirmed(c)
        else:
            key = self._key(c.record_id)
            result = scripts.claimed(c, await self._calls.script(scripts.CLAIM, key, scripts.claim_arguments(c)))
        if watch.next_look <= time.monotonic():
            await self._look()
        return result

    async def _confirmed(self, c: Claim) -> ClaimResult:
        if on_trio():
            return await in_thread(self._sync.claim, c)
        leases: list[Lease] = []
        try:
            return await limited(self._options.budget, self._claim_and_confirm(c, leases))
        except (BackendUnavailable, RedisTimeoutError) as error:
            # The primary may have the claim, although too few replicas do. It would block its key for a whole lease.
            for lease in leases:
                await self._release(lease)
            if isinstance(error, BackendUnavailable):
                raise
            raise wrapped(error) from error

    async def _claim_and_confirm(self, c: Claim, leases: list[Lease]) -> ClaimResult:
        key = self._key(c.record_id)
        result = scripts.claimed(c, await self._calls.script(scripts.CLAIM, key, scripts.claim_arguments(c)))
        if isinstance(result, Leased):
            leases.append(result.lease)
            # A second write after the claim: its confirmation also shows that the claim is still there.
            renewal = scripts.renew_arguments(result.lease)
            reply = await self._calls.script(scripts.RENEW, key, renewal, durably=True)
            if not scripts.is_held(reply):
                self._calls.client().suspect()  # the two calls may have gone to two servers
                raise BackendUnavailable(scripts.GONE)
        return result

    async def _release(self, lease: Lease) -> None:
        try:
            await limited(self._options.timeout, self.release(Release(lease)))
        except (IdempotencyError, RedisTimeoutError) as error:
            logger.warning(
                "%s: an unconfirmed claim could not be released and holds its key until its lease ends: %s", self, error
            )

    async def _look(self) -> None:
        self._watch.begin_look()
        if on_trio():
            await in_thread(self._sync.look)
            return
        try:
            self._watch.heed(await limited(self._options.timeout, self._infos("memory")))
        except BackendUnavailable as error:
            self._watch.missed(error)
        except RedisTimeoutError as error:
            self._watch.missed(wrapped(error))

    async def _infos(self, *sections: str) -> list[Any]:
        return [await self._calls.on(server, "INFO", *sections) for server in await self._calls.servers()]

    async def health(self) -> Health:
        """See ``RedisBackend.health``."""
        infos = await self._infos()
        self._watch.heed(infos)
        return Health(tuple(topology.dangers_of(infos, self._options)))

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``RedisBackend.renew``."""
        renewals: list[Renewal] = []
        # Redis runs nothing else during a script, so a long one would delay every client.
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = c.leases[start : start + RENEWED_AT_ONCE]
            keys = [self._key(lease.record_id) for lease in batch]
            arguments = [scripts.renew_arguments(lease) for lease in batch]
            renewals += scripts.renewed(await self._calls.by_server(scripts.RENEW, keys, arguments))
        return renewals

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        arguments = scripts.save_stage_arguments(c)
        if calls.size_of(arguments) >= calls.SMALLEST_LIMIT:
            return scripts.stage_saved(await self._send_large(scripts.SAVE_STAGE, c.lease, arguments))
        key = self._key(c.lease.record_id)
        return scripts.stage_saved(await self._calls.script(scripts.SAVE_STAGE, key, arguments, durably=True))

    async def complete(self, c: Complete, /) -> Completed:
        """See ``RedisBackend.complete``."""
        arguments = scripts.complete_arguments(c)
        if len(c.response) >= calls.SMALLEST_LIMIT:
            return scripts.completed(await self._send_large(scripts.COMPLETE, c.lease, arguments))
        key = self._key(c.lease.record_id)
        return scripts.completed(await self._calls.script(scripts.COMPLETE, key, arguments, durably=True))

    async def _send_large(self, script: Script, lease: Lease, arguments: scripts.Arguments) -> Any:
        """See ``RedisBackend.send_large``."""
        if on_trio():
            return await in_thread(self._sync.send_large, script, lease, arguments)
        key, size = self._key(lease.record_id), calls.size_of(arguments)
        actions = calls.Actions(
            lambda: self._calls.script(script, key, arguments, durably=True),
            lambda: self._calls.script(scripts.STATUS, key),
            self._limits,
        )
        asked = calls.large_steps(self._sync.size_limit, size, actions)
        try:
            return await limited(self._options.budget, calls.drive_large_async(asked))
        except RedisTimeoutError as error:
            raise wrapped(error) from error

    async def _limits(self) -> list[Any]:
        return [await self._calls.on(each, "CONFIG GET", calls.SETTING) for each in await self._calls.servers()]

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        arguments = scripts.fail_arguments(c)
        if calls.size_of(arguments) >= calls.SMALLEST_LIMIT:
            scripts.code(await self._send_large(scripts.FAIL, c.lease, arguments))
            return
        scripts.code(await self._calls.script(scripts.FAIL, self._key(c.lease.record_id), arguments))

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        key = self._key(c.lease.record_id)
        scripts.code(await self._calls.script(scripts.RELEASE, key, scripts.release_arguments(c)))

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        key = self._key(c.claim.record_id)
        scripts.code(await self._calls.script(scripts.WITHDRAW, key, scripts.withdraw_arguments(c)))

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return scripts.record(c.record_id, await self._calls.script(scripts.GET, self._key(c.record_id)))

    async def delete(self, record_id: bytes, /) -> bool:
        """See ``RedisBackend.delete``."""
        return bool(scripts.code(await self._calls.script(scripts.DELETE, self._key(record_id))))

    async def scan(self) -> AsyncIterator[Record]:
        """See ``RedisBackend.scan``."""
        async with aclosing(self._keys()) as keys:
            async for key in keys:
                record_id = self._options.keys.record_id(key)
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
                script, most = scripts.purging(self._options.keys.is_reservations(key), limit - purged)
                purged += scripts.code(await self._calls.script(script, key, (most,)))
        return purged

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``."""
        key = self._options.keys.reservations(c.scope_id)
        return scripts.reserved(await self._calls.script(scripts.RESERVE, key, scripts.reserve_arguments(c)))

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        key = self._options.keys.reservations(c.scope_id)
        scripts.code(await self._calls.script(scripts.UNRESERVE, key, (c.record_id,)))

    async def _keys(self) -> AsyncGenerator[bytes, None]:
        for server in await self._calls.servers():
            cursor: Any = None
            while cursor is None or int(cursor):
                words = ("SCAN", cursor or 0, "MATCH", self._options.keys.pattern(), "COUNT", SCANNED_AT_ONCE)
                cursor, keys = await self._calls.on(server, *words)
                for key in keys:
                    yield key

    async def wait(self, c: Wait, /) -> None:
        """See ``RedisBackend.wait``. One thread listens for the sync and the async backend, and wakes the task."""
        until, key = time.monotonic() + c.seconds, self._key(c.record_id)
        settled, ended = signal(), signal()
        subscription = self._sync.listener.enter(key, settled, ended)
        try:
            if subscription is not None and await settled.wait(c.seconds) and subscription.confirmed:
                # The attempt may have ended before the subscription: only a look after it can rely on the notification.
                if scripts.is_running(await self._calls.script(scripts.STATUS, key)):
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


class RedisBackend(Backend):
    """The sync backend for a ``redis://``, ``redis+sentinel://`` or ``redis+cluster://`` URL.

    ``url``: the URL, or a client of the application's: ``redis.Redis``, ``redis.asyncio.Redis``, ``RedisCluster`` of
    either, or what ``master_for`` of a Sentinel returns. Of a client its settings are used (hosts, TLS, login,
    database, path of a socket, timeouts below 1 second), never its connections; ``close`` does not close it.
    ``prefix``: before the names of all keys (default ``oi:``). ``timeout``: seconds for each step of a call
    (default 1). ``max_connections``: for each process and event loop (default 64). ``min_replicas``: how many replicas
    must confirm a write before it counts (default 0), within ``replicas_timeout`` seconds (default half of
    ``timeout``). ``eviction``: ``warn`` (default), ``refuse`` or ``ignore`` where the server may evict records.
    ``coalesce``: whether the calls on asyncio that arrive while a batch is in flight are sent as the next batch, over
    one connection for each loop and server (``coalesce=yes|no`` in the URL, default yes); otherwise each call has a
    connection to itself. ``clock``: seconds, for tests; by default the server's clock decides. Raises
    ``ConfigurationError``. Since 0.1.
    """

    quotas = True
    frees = True

    def __init__(
        self,
        url: str | Any,
        *,
        prefix: str | None = None,
        timeout: urls.Seconds | None = None,
        max_connections: int | None = None,
        min_replicas: int | None = None,
        replicas_timeout: urls.Seconds | None = None,
        eviction: str | None = None,
        coalesce: bool | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        given = {
            "prefix": prefix,
            "timeout": timeout,
            "max_connections": max_connections,
            "min_replicas": min_replicas,
            "replicas_timeout": replicas_timeout,
            "eviction": eviction,
            "coalesce": coalesce,
            "clock": clock,
        }
        #: from the URL and the keywords
        self.options = self._options = without_missing_parts(options_of(url, given))
        self._calls = Calls(self._options)
        self._key = self._options.keys.record
        #: what is known about the servers' memory; shared with the async backend, and passed on in a fork
        self.watch = MemoryWatch(self._options)
        self._size_limits = PerProcess(Limit)
        self._listeners = PerProcess(lambda: Listener(self._options))
        self.call_timeout = self._options.call_timeout
        self._async = AsyncRedisBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> RedisBackend:
        """``redis://user:password@host:port/db?prefix=…&timeout=…``. The documentation has the other schemes."""
        return cls(url, **urls.keywords(options, OPTIONS, "redis://"))

    def __repr__(self) -> str:
        return f"RedisBackend({self._options.where!r})"

    @property
    def calls(self) -> Calls:
        """The sync calls, for the async backend."""
        return self._calls

    def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``. A claim that ``min_replicas`` replicas do not confirm is released and refused."""
        watch = self.watch
        if self._options.eviction == "refuse":
            if not watch.looked and watch.next_look <= time.monotonic():
                self.look()
            watch.admit()
        result = self._confirmed(c) if self._options.min_replicas else self._claim(c)
        if watch.next_look <= time.monotonic():
            self.look()
        return result

    def _claim(self, c: Claim) -> ClaimResult:
        return scripts.claimed(c, self._calls.script(scripts.CLAIM, self._key(c.record_id), scripts.claim_arguments(c)))

    def _confirmed(self, c: Claim) -> ClaimResult:
        lease: Lease | None = None
        try:
            with Deadline(self._options.budget):
                result = self._claim(c)
                if isinstance(result, Leased):
                    lease = result.lease
                    self._confirm(lease)
                return result
        except BackendUnavailable:
            if lease is not None:
                self._release(lease)
            raise

    def _confirm(self, lease: Lease) -> None:
        # Replicas confirm writes of the same connection, so the claim is written again. That shows a failover as well.
        key = self._key(lease.record_id)
        if not scripts.is_held(self._calls.durable(scripts.RENEW, key, scripts.renew_arguments(lease))):
            self._calls.client().suspect()  # the two calls may have gone to two servers
            raise BackendUnavailable(scripts.GONE)

    def _release(self, lease: Lease) -> None:
        try:
            with Deadline(self._options.timeout):
                self.release(Release(lease))
        except IdempotencyError as error:
            logger.warning(
                "%s: an unconfirmed claim could not be released and holds its key until its lease ends: %s", self, error
            )

    def look(self) -> None:
        """Read the servers' memory settings for ``watch``, in ``timeout`` seconds. Raises no error of a server."""
        self.watch.begin_look()
        try:
            with Deadline(self._options.timeout):
                self.watch.heed([self._calls.on(server, "INFO", "memory") for server in self._calls.servers()])
        except BackendUnavailable as error:
            self.watch.missed(error)

    def health(self) -> Health:
        """See ``Backend.health``. ``INFO`` of each primary: eviction, memory, persistence and replicas."""
        infos = [self._calls.on(server, "INFO") for server in self._calls.servers()]
        self.watch.heed(infos)
        return Health(tuple(topology.dangers_of(infos, self._options)))

    def examine(self) -> Sequence[Finding]:
        """See ``Backend.examine``. Each primary is looked at."""
        return topology.examine(self._options, self._calls.servers(), self._calls.on)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``. A record that cannot be read is LOST. More than 500 leases take several calls."""
        renewals: list[Renewal] = []
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = c.leases[start : start + RENEWED_AT_ONCE]
            keys = [self._key(lease.record_id) for lease in batch]
            arguments = [scripts.renew_arguments(lease) for lease in batch]
            renewals += scripts.renewed(self._calls.by_server(scripts.RENEW, keys, arguments))
        return renewals

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        arguments = scripts.save_stage_arguments(c)
        if calls.size_of(arguments) >= calls.SMALLEST_LIMIT:
            return scripts.stage_saved(self.send_large(scripts.SAVE_STAGE, c.lease, arguments))
        return scripts.stage_saved(self._calls.durable(scripts.SAVE_STAGE, self._key(c.lease.record_id), arguments))

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``. It succeeds at the server's memory limit too."""
        arguments = scripts.complete_arguments(c)
        if len(c.response) >= calls.SMALLEST_LIMIT:
            return scripts.completed(self.send_large(scripts.COMPLETE, c.lease, arguments))
        return scripts.completed(self._calls.durable(scripts.COMPLETE, self._key(c.lease.record_id), arguments))

    def send_large(self, script: Script, lease: Lease, arguments: scripts.Arguments) -> Any:
        """Run a script of an owner with a value that a server may refuse for its size.

        Raises ``RecordTooLarge`` where one does.
        """
        key, size = self._key(lease.record_id), calls.size_of(arguments)
        actions = calls.Actions(
            lambda: self._calls.durable(script, key, arguments),
            lambda: self._calls.script(scripts.STATUS, key),
            lambda: [self._calls.on(server, "CONFIG GET", calls.SETTING) for server in self._calls.servers()],
        )
        with Deadline(self._options.budget):
            return calls.drive_large(calls.large_steps(self.size_limit, size, actions))

    @property
    def size_limit(self) -> Limit:
        """What this process knows about the size of values; shared with the async backend."""
        return self._size_limits.get()

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        arguments = scripts.fail_arguments(c)
        if calls.size_of(arguments) >= calls.SMALLEST_LIMIT:
            scripts.code(self.send_large(scripts.FAIL, c.lease, arguments))
            return
        scripts.code(self._calls.script(scripts.FAIL, self._key(c.lease.record_id), arguments))

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        scripts.code(self._calls.script(scripts.RELEASE, self._key(c.lease.record_id), scripts.release_arguments(c)))

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        scripts.code(self._calls.script(scripts.WITHDRAW, self._key(c.claim.record_id), scripts.withdraw_arguments(c)))

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return scripts.record(c.record_id, self._calls.script(scripts.GET, self._key(c.record_id)))

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``. A record that cannot be read is deleted as well."""
        return bool(scripts.code(self._calls.script(scripts.DELETE, self._key(record_id))))

    def free(self, c: Free, /) -> Freed:
        """See ``Backend.free``."""
        return scripts.freed(self._calls.script(scripts.FREE, self._key(c.record_id), scripts.free_arguments(c)))

    def now(self) -> float:
        """See ``Backend.now``. In a Cluster it is the clock of one of the primaries."""
        if self._options.clock is not None:
            return self._options.clock()
        seconds, microseconds = self._calls.on(self._calls.servers()[0], "TIME")
        return float(seconds) + float(microseconds) / 1_000_000

    def ids(self, prefix: bytes = b"") -> Iterator[bytes]:
        """See ``Backend.ids``. The servers compare the names of all keys. An id may come twice, as in ``scan``."""
        for key in self._keys(prefix.hex().encode()):
            record_id = self._options.keys.record_id(key)
            if record_id is not None:
                yield record_id

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``. A record may come twice while the server rehashes its table."""
        for key in self._keys():
            record_id = self._options.keys.record_id(key)
            record = None if record_id is None else self.get(Get(record_id))
            if record is not None:
                yield record

    def scan_headers(self) -> Iterator[Record]:
        """See ``Backend.scan_headers``; as with ``scan``, a record may come twice."""
        for keys in self._batches(scripts.HEADERS_AT_ONCE):
            known = [(key, record_id) for key in keys if (record_id := self._options.keys.record_id(key)) is not None]
            if not known:
                continue
            named = [key for key, _ in known]
            replies = self._calls.by_server(scripts.HEADERS, named, [()] * len(named))
            for (_, record_id), reply in zip(known, replies, strict=True):
                try:
                    record = scripts.record(record_id, reply)
                except RecordUnreadable as error:
                    raise RecordUnreadable(f"record {record_id[:6].hex()}: {error}") from error
                if record is not None:
                    yield record

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``. The server removes expired records by itself, so little is left to do."""
        purged = 0
        for key in self._keys():
            if purged >= limit:
                break
            script, most = scripts.purging(self._options.keys.is_reservations(key), limit - purged)
            purged += scripts.code(self._calls.script(script, key, (most,)))
        return purged

    def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``. It is refused at the server's memory limit."""
        key = self._options.keys.reservations(c.scope_id)
        return scripts.reserved(self._calls.script(scripts.RESERVE, key, scripts.reserve_arguments(c)))

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        key = self._options.keys.reservations(c.scope_id)
        scripts.code(self._calls.script(scripts.UNRESERVE, key, (c.record_id,)))

    def _keys(self, beginning: bytes = b"") -> Iterator[bytes]:
        for keys in self._batches(SCANNED_AT_ONCE, beginning):
            yield from keys

    def _batches(self, count: int, beginning: bytes = b"") -> Iterator[Sequence[bytes]]:
        """The keys of records and reservations with ``beginning`` after the prefix, about ``count`` at a time."""
        pattern = self._options.keys.pattern(beginning)
        for server in self._calls.servers():
            cursor: Any = None
            while cursor is None or int(cursor):
                words = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", count)
                cursor, keys = self._calls.on(server, *words)
                yield keys

    @property
    def listener(self) -> Listener:
        """This process's listener for the ends of attempts; shared with the async backend."""
        return self._listeners.get()

    def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``. The server wakes it. Where listening is not possible it returns after ``c.pause``."""
        until, key = time.monotonic() + c.seconds, self._key(c.record_id)
        settled, ended = threading.Event(), threading.Event()
        subscription = self.listener.enter(key, settled, ended)
        try:
            if subscription is not None and settled.wait(c.seconds) and subscription.confirmed:
                # The attempt may have ended before the subscription was confirmed. Then no message comes.
                if scripts.is_running(self._calls.script(scripts.STATUS, key)):
                    ended.wait(until - time.monotonic())
                return
        except BackendUnavailable:
            pass  # the next claim reports it
        finally:
            if subscription is not None:
                subscription.leave()
        time.sleep(max(0.0, min(c.pause, until - time.monotonic())))

    def to_async(self) -> AsyncRedisBackend:
        """The async backend on the same servers."""
        return self._async

    def close(self) -> None:
        """Close this process's connections. They open again when the backend is used again."""
        listener = self._listeners.pop()
        if listener is not None:
            listener.close()
        self._calls.close()
