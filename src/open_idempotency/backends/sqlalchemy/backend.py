"""The SQLAlchemy backend: records in PostgreSQL, MySQL, MariaDB or SQLite, through whichever driver SQLAlchemy knows.

``open_idempotency.decisions`` decides under the lock of the record's row; here is only loading and saving. Nothing of
a session is used on PostgreSQL. For PostgreSQL alone ``postgresql://`` has fewer round trips, and tells who waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

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
from open_idempotency.backends.sqlalchemy import drivers, options, quotas, schema, verbs
from open_idempotency.backends.sqlalchemy.aio import AsyncSqlalchemyBackend
from open_idempotency.backends.sqlalchemy.loop_engines import LoopEngines
from open_idempotency.backends.sqlalchemy.runners import OnEngine, OnLoop, Runner
from open_idempotency.backends.sqlalchemy.transactions import Settings

T = TypeVar("T")


class SqlalchemyBackend(Backend):
    """The blocking colour, on the database of a URL ``sqlalchemy+…://`` or of an engine.

    An ``Engine`` or ``AsyncEngine`` lends its way to connect; the connections are the backend's own. With an
    asynchronous driver this colour awaits it in a thread. ``timeout``: seconds to wait for a connection, for a lock,
    and for an answer (default 2). ``max_connections``: for each process and event loop (default 10). ``clock``:
    seconds, for tests; without it the server's clock decides, with SQLite the machine's. Raises
    ``ConfigurationError``, ``MissingExtra`` without the driver. Since 0.1.
    """

    quotas = True

    def __init__(
        self,
        source: str | Engine | AsyncEngine,
        *,
        timeout: float | None = None,
        max_connections: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        given = {"timeout": timeout, "max_connections": max_connections, "clock": clock}
        #: what the URL or the engine, and the keywords said
        self.options = options.read(source, given)
        drivers.check(self.options)
        settings = Settings(self.options.dialect, self.options.timeout, self.options.clock)
        #: those of event loops, for both colours
        self.engines = LoopEngines(self.options, settings)
        blocking = self.options.blocking
        self._runner: Runner = OnEngine(self.options, settings) if blocking else OnLoop(self.options, self.engines)
        self.call_timeout = self.options.call_timeout
        self._async = AsyncSqlalchemyBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SqlalchemyBackend:
        """``sqlalchemy+`` before a URL of SQLAlchemy's; ``timeout`` and ``max_connections`` are ours."""
        return cls(url, **options)

    def __repr__(self) -> str:
        return f"SqlalchemyBackend({self.options.where!r})"

    def run(self, step: verbs.Step) -> Any:
        """Carry out one step of a verb. Raises ``BackendUnavailable``."""
        return self._runner.run(step)

    def _do(self, steps: verbs.Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                step = steps.send(self.run(step))
        except StopIteration as stop:
            answer: T = stop.value
            return answer

    def claim(self, c: Claim, /) -> ClaimAnswer:
        """See ``Backend.claim``."""
        return self._do(verbs.claim(c))

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``; a record that cannot be read is LOST. More than 100 leases take several calls."""
        return self._do(verbs.renew(c))

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        return self._do(verbs.once("write", verbs.save_stage, c))

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        return self._do(verbs.once("write", verbs.complete, c))

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self._do(verbs.once("write", verbs.fail, c))

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self._do(verbs.once("write", verbs.release, c))

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self._do(verbs.once("write", verbs.withdraw, c))

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        return self._do(verbs.once("read", verbs.get, c))

    def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``; deletes a record that cannot be read as well."""
        return self._do(verbs.once("write", verbs.delete, record_id))

    def scan(self) -> Iterator[Record]:
        """See ``Backend.scan``."""
        after = b""
        while found := self._do(verbs.once("read", verbs.scan, after)):
            for record_id in found:
                record = self.get(Get(record_id))
                if record is not None:
                    yield record
            after = found[-1]

    def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""
        return self._do(verbs.purge(limit))

    def reserve(self, c: Reserve, /) -> ReserveAnswer:
        """See ``Backend.reserve``; a key that counts already and a caller over its quota only read, mostly."""
        return self._do(quotas.reserve(c))

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self._do(verbs.once("write", quotas.unreserve, c))

    def to_async(self) -> AsyncSqlalchemyBackend:
        """The asynchronous colour over the same records."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """See ``Backend.migrate``; makes the tables of ``metadata`` that are missing. Raises ``BackendUnavailable``."""
        return self._runner.call(schema.migrate, "write")

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._runner.close()
