"""The Redis backend, for Redis 6.2 and later and Valkey: one script, one key and one round trip for each verb.

The scripts decide on the server's clock; what they decide is ``open_idempotency.decisions`` said in Lua. Nothing is
kept on the server but the records: no session state, and a script that it forgot is sent again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.exceptions import NoScriptError

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backend import (
    Backend,
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
from open_idempotency.backends.redis.aio import AsyncRedisBackend
from open_idempotency.backends.redis.clients import ERRORS, make_client, may_retry, wrapped
from open_idempotency.backends.redis.listening import Listener
from open_idempotency.backends.redis.options import read_url
from open_idempotency.backends.redis.scripts import RENEWED_AT_ONCE, SCANNED_AT_ONCE, Script
from open_idempotency.exceptions import BackendUnavailable


class RedisBackend(Backend):
    """The blocking colour, on the server at a ``redis://`` or ``rediss://`` URL.

    ``prefix``: before the names of all keys (default ``oi:``). ``timeout``: seconds for each step of a call
    (default 1). ``max_connections``: for each process and event loop (default 64). ``clock``: seconds, for tests;
    without it the server's clock decides. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str | None = None,
        timeout: float | None = None,
        max_connections: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        given = {"prefix": prefix, "timeout": timeout, "max_connections": max_connections, "clock": clock}
        #: what the URL and the keywords said
        self.options = self._options = read_url(url, given)
        self._clients = PerProcess(lambda: make_client(self._options))
        self._listeners = PerProcess(lambda: Listener(self._options))
        self.call_timeout = self._options.call_timeout
        self._async = AsyncRedisBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> RedisBackend:
        """``redis://user:password@host:port/db?prefix=…&timeout=…&max_connections=…``, or ``rediss://``."""
        return cls(url, **options)

    def __repr__(self) -> str:
        return f"RedisBackend({self._options.where!r})"

    def call(self, script: Script, keys: Sequence[bytes], *arguments: scripts.Argument) -> Any:
        """Run one script; tried once more where the connection broke. Raises ``BackendUnavailable``."""
        return self._tried(self._evaluate, script, keys, arguments)

    def command(self, *arguments: Any) -> Any:
        """Run one plain command in the same way."""
        return self._tried(self._execute, *arguments)

    def _tried(self, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.monotonic()
        try:
            try:
                return function(*arguments)
            except ERRORS as error:
                if not may_retry(error, started, self._options):
                    raise
                return function(*arguments)
        except ERRORS as error:
            raise wrapped(error) from error

    def _execute(self, *arguments: Any) -> Any:
        return self._clients.get().execute_command(*arguments)

    def _evaluate(self, script: Script, keys: Sequence[bytes], arguments: scripts.Arguments) -> Any:
        rest = (len(keys), *keys, self._options.now(), *arguments)
        try:
            return self._execute("EVALSHA", script.sha, *rest)
        except NoScriptError:
            return self._execute("EVAL", script.source, *rest)

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        key = self._options.key(c.record_id)
        return replies.claimed(c, self.call(scripts.CLAIM, (key,), *scripts.claim_arguments(c)))

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; a record that cannot be read is LOST. More than 500 leases take several calls."""
        answers: list[Renewal] = []
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = Renew(c.leases[start : start + RENEWED_AT_ONCE])
            keys = [self._options.key(lease.record_id) for lease in batch.leases]
            answers += replies.renewed(self.call(scripts.RENEW, keys, *scripts.renew_arguments(batch)))
        return answers

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        key = self._options.key(c.lease.record_id)
        return replies.stage_saved(self.call(scripts.SAVE_STAGE, (key,), *scripts.save_stage_arguments(c)))

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``; succeeds at the server's memory limit too."""
        key = self._options.key(c.lease.record_id)
        return replies.completed(self.call(scripts.COMPLETE, (key,), *scripts.complete_arguments(c)))

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        key = self._options.key(c.lease.record_id)
        replies.code(self.call(scripts.FAIL, (key,), *scripts.fail_arguments(c)))

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        key = self._options.key(c.lease.record_id)
        replies.code(self.call(scripts.RELEASE, (key,), *scripts.release_arguments(c)))

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return replies.record(c.record_id, self.call(scripts.GET, (self._options.key(c.record_id),)))

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes a record that cannot be read as well."""
        return bool(replies.code(self.call(scripts.DELETE, (self._options.key(record_id),))))

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``; a record may come twice while the server reorganises its table."""
        for key in self._keys():
            record_id = self._options.record_id(key)
            record = None if record_id is None else self.get(Get(record_id))
            if record is not None:
                yield record

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``; the server forgets expired records by itself, so there is little to do."""
        purged = 0
        for key in self._keys():
            if purged >= limit:
                break
            purged += replies.code(self.call(scripts.PURGE, (key,)))
        return purged

    def _keys(self) -> Iterator[bytes]:
        cursor: Any = 0
        while True:
            cursor, keys = self.command("SCAN", cursor, "MATCH", self._options.pattern(), "COUNT", SCANNED_AT_ONCE)
            yield from keys
            if int(cursor) == 0:
                return

    @property
    def listener(self) -> Listener:
        """What this process hears of attempts that end; for both colours."""
        return self._listeners.get()

    def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``; told by the server, or after ``c.pause`` where it cannot be."""
        until, key = time.monotonic() + c.seconds, self._options.key(c.record_id)
        settled, ended = threading.Event(), threading.Event()
        subscription = self.listener.enter(key, settled, ended)
        try:
            if subscription is not None and settled.wait(c.seconds) and subscription.confirmed:
                # It may have ended before the subscription was confirmed, and then no message comes.
                if replies.is_running(self.command(*scripts.status_of(key))):
                    ended.wait(until - time.monotonic())
                return
        except BackendUnavailable:
            pass  # the next claim tells
        finally:
            if subscription is not None:
                subscription.leave()
        time.sleep(max(0.0, min(c.pause, until - time.monotonic())))

    def to_async(self) -> AsyncRedisBackend:
        """The asynchronous colour on the same server."""
        return self._async

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        listener = self._listeners.pop()
        if listener is not None:
            listener.close()
        client = self._clients.pop()
        if client is not None:
            client.close()
