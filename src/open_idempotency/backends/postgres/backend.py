"""The PostgreSQL backend: each verb is one function on the server, one statement, one round trip.

The functions decide on the server's clock, and say in SQL what ``open_idempotency.decisions`` says. They are made by
``open-idempotency migrate``. Nothing of a session is used, so a pooler in transaction mode may stand in between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
    Reserve,
    ReserveAnswer,
    SaveStage,
    StageSaved,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency.backends.postgres import replies, schema, statements
from open_idempotency.backends.postgres.aio import AsyncPostgresBackend
from open_idempotency.backends.postgres.asking import Asking
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.listening import Listener
from open_idempotency.backends.postgres.options import read_url
from open_idempotency.backends.postgres.statements import RENEWED_AT_ONCE, SCANNED_AT_ONCE, Verb
from open_idempotency.exceptions import BackendUnavailable


class PostgresBackend(Backend):
    """The blocking colour, on the database at a ``postgresql://`` URL.

    ``timeout``: seconds to wait for a connection, and then for an answer (default 2). ``max_connections``: for each
    process and event loop (default 10). ``listen``: ``"no"`` where no connection may be kept for notifications, as
    behind a pooler in transaction mode; waiting duplicates then poll. ``coalesce``: whether what is asked
    while many others are on their way goes out with them, in one statement and one commit (default true). ``prepare``:
    whether a connection prepares what it sends often, where nothing in between prevents it (default true). ``clock``:
    seconds, for tests; without it the server's clock decides. Raises ``ConfigurationError``. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = None,
        max_connections: int | None = None,
        listen: str | None = None,
        coalesce: bool | None = None,
        prepare: bool | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        given = {
            "timeout": timeout,
            "max_connections": max_connections,
            "listen": listen,
            "coalesce": coalesce,
            "prepare": prepare,
            "clock": clock,
        }
        #: what the URL and the keywords said
        self.options = self._options = read_url(url, given)
        self._asking = Asking(self._options)
        self._listeners = PerProcess(lambda: Listener(self._options))
        self.call_timeout = self._options.call_timeout
        self._async = AsyncPostgresBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> PostgresBackend:
        """``postgresql://user:password@host:port/database?timeout=…&max_connections=…``, and libpq's own options."""
        return cls(url, **options)

    def __repr__(self) -> str:
        return f"PostgresBackend({self._options.where!r})"

    def rows(self, statement: Statement, *parameters: Any) -> list[Any]:
        """Run a statement whose first parameter is the time. Raises ``BackendUnavailable``."""
        return self._asking.rows(statement, *parameters)

    def row(self, verb: Verb, c: Any) -> Row:
        """What the function of the verb answers; asked with what other threads ask. Raises ``BackendUnavailable``."""
        return self._asking.row(verb, c)

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return replies.claimed(c, self.row(statements.CLAIM, c))

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; a record that cannot be read is LOST. More than 500 leases take several calls."""
        answers: list[Renewal] = []
        for start in range(0, len(c.leases), RENEWED_AT_ONCE):
            batch = Renew(c.leases[start : start + RENEWED_AT_ONCE])
            answers += replies.renewed(self.rows(statements.RENEW, *statements.renew(batch))[0][0])
        return answers

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return replies.stage_saved(self.row(statements.SAVE_STAGE, c))

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return replies.completed(self.row(statements.COMPLETE, c)[0])

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        replies.code(self.row(statements.FAIL, c)[0])

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        replies.code(self.row(statements.RELEASE, c)[0])

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self.rows(statements.WITHDRAW, *statements.withdraw(c))

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        found = self.rows(statements.GET, *statements.get(c))
        return replies.record(c.record_id, found[0] if found else None)

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes a record that cannot be read as well."""
        return bool(self.rows(statements.FORGET, record_id)[0][0])

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        last = b""
        while True:
            found = self.rows(statements.SCAN, last, SCANNED_AT_ONCE)
            for (record_id,) in found:
                record = self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < SCANNED_AT_ONCE:
                return
            last = found[-1][0]

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        return int(self.rows(statements.PURGE, limit)[0][0])

    def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``; a key that counts already only reads, mostly."""
        return replies.reserved(self.rows(statements.RESERVE, *statements.reserve(c))[0])

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self.rows(statements.UNRESERVE, *statements.unreserve(c))

    @property
    def listener(self) -> Listener:
        """What this process hears of attempts that end; for both colours."""
        return self._listeners.get()

    def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``; told by the server, or after ``c.pause`` where it cannot be."""
        until, ended = time.monotonic() + c.seconds, threading.Event()
        if not self.listener.enter(c.record_id, ended):
            time.sleep(min(c.pause, c.seconds))
            return
        try:
            if self.rows(statements.AWAIT, c.record_id)[0][0]:
                ended.wait(until - time.monotonic())
        except BackendUnavailable:
            time.sleep(max(0.0, min(c.pause, until - time.monotonic())))  # the next claim tells
        finally:
            self.listener.leave(c.record_id, ended)

    def to_async(self) -> AsyncPostgresBackend:
        """The asynchronous colour over the same records."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """See ``Backend.migrate``; makes the schema ``open_idempotency``. Raises ``BackendUnavailable``."""
        return schema.migrate(self._options)

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        listener = self._listeners.pop()
        if listener is not None:
            listener.close()
        self._asking.close()
