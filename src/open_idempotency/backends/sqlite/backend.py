"""The SQLite backend: works across the processes of one machine, and is the default for embedded use.

What only reads (a replay, a 409, a 422) is one SELECT and takes no lock. What writes reads again inside a write
transaction, where ``open_idempotency.decisions`` decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

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
    Withdraw,
)
from open_idempotency.backends import urls
from open_idempotency.backends.sqlite import verbs
from open_idempotency.backends.sqlite.asynchronous import AsyncSqliteBackend
from open_idempotency.backends.sqlite.connections import Connections
from open_idempotency.backends.sqlite.location import database_path
from open_idempotency.backends.sqlite.transactions import Transactions
from open_idempotency.exceptions import ConfigurationError

_BATCH = 100
_SYNCHRONOUS = ("full", "normal")
_OPTIONS = {"timeout": urls.seconds, "synchronous": urls.choice(*_SYNCHRONOUS), "coalesce": urls.yes_or_no}


class SqliteBackend(Backend):
    """The blocking colour, on the database file at ``path``, which is created; its directory must exist.

    ``timeout``: seconds to wait for another writer. ``synchronous``: ``"full"``, where an acknowledged write
    survives a power cut, or ``"normal"``, where it survives a crash of the process. ``coalesce``: whether what wants
    to write while a transaction is on its way shares the next one; threads do so with ``"full"``, tasks always.
    ``clock``: seconds, for tests. Raises ``ConfigurationError``. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        path: str,
        *,
        timeout: float = 2.0,
        synchronous: str = "full",
        coalesce: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if synchronous not in _SYNCHRONOUS:
            raise ConfigurationError(f"synchronous: {synchronous!r} is none of {', '.join(_SYNCHRONOUS)}")
        try:
            urls.positive(timeout)
        except ValueError as error:
            raise ConfigurationError(f"timeout: {error}") from None
        self._path = database_path(path)
        self._now = clock or time.time
        self._connections = Connections(self._path, timeout, synchronous)
        self._transactions = Transactions(self._connections, self._now, timeout, coalesce, synchronous == "full")
        # The turn among this process's threads, the opening of a connection, the turn among processes.
        self.call_timeout = 3 * timeout
        self._async = AsyncSqliteBackend(self._path, over=self)

    @classmethod
    def from_url(cls, url: str, *, clock: Callable[[], float] | None = None) -> SqliteBackend:
        """``sqlite:///relative.db``, ``sqlite:////absolute.db``, with ``timeout``, ``synchronous`` and
        ``coalesce=yes|no``.
        """
        parts = urls.split(url)
        if parts.netloc:
            raise ConfigurationError(
                "backend: sqlite:// takes no host; write sqlite:///relative.db or sqlite:////absolute.db"
            )
        return cls(urls.path(parts), clock=clock, **urls.options(parts, _OPTIONS))

    def __repr__(self) -> str:
        return f"SqliteBackend({self._path!r})"

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return self._transactions.ask(verbs.CLAIM, c)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; a record that cannot be read is LOST, so that the others are renewed."""
        return self._transactions.ask(verbs.RENEW, c) if c.leases else []

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return self._transactions.ask(verbs.SAVE_STAGE, c, len(c.stage.frame))

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return self._transactions.ask(verbs.COMPLETE, c, len(c.response))

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self._transactions.ask(verbs.FAIL, c, len(c.response or b""))

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self._transactions.ask(verbs.RELEASE, c)

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self._transactions.ask(verbs.WITHDRAW, c)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return self._connections.read(verbs.get, c.record_id, self._now)

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes a record that cannot be read as well."""
        return self._transactions.ask(verbs.DELETE, record_id)

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        last = b""
        while True:
            found = self._connections.read(verbs.find_live, last, _BATCH, self._now)
            for record_id in found:
                record = self.get(Get(record_id))
                if record is not None:
                    yield record
            if len(found) < _BATCH:
                return
            last = found[-1]

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        purged = 0
        while purged < limit:
            batch = self._transactions.ask(verbs.PURGE, min(_BATCH, limit - purged))
            purged += batch
            if batch < _BATCH:
                break
        return purged

    def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``; a key that counts already and a caller over its quota only read, mostly."""
        return self._transactions.ask(verbs.RESERVE, c)

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self._transactions.ask(verbs.UNRESERVE, c)

    def to_async(self) -> AsyncSqliteBackend:
        """The asynchronous colour on the same file."""
        return self._async

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._connections.close()
