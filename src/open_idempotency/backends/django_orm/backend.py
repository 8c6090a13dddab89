"""The Django backend: records in a database of the project itself, through connections that Django makes.

``open_idempotency.decisions`` decides inside a transaction that has locked the record's row; ``_shared.sql_verbs``
says what is read and written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from open_idempotency.backends._shared import sql_verbs, urls
from open_idempotency.backends._shared.fronts import SyncFront
from open_idempotency.backends._shared.sql_verbs import Step, Verb
from open_idempotency.backends.django_orm import alias as aliases
from open_idempotency.backends.django_orm.connections import Connections
from open_idempotency.backends.django_orm.errors import Overtaken
from open_idempotency.backends.django_orm.transactions import Statements, Transaction
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.exceptions import ConfigurationError

C = TypeVar("C")
R = TypeVar("R")

_OPTIONS = {"timeout": urls.seconds, "max_connections": urls.count}


class DjangoBackend(SyncFront):
    """The sync front, on the database ``alias`` of ``DATABASES``; ``"open_idempotency.django"`` makes its tables.

    ``timeout``: seconds for each wait: for a connection, a lock, a reply. ``max_connections``: for each process,
    beside those of the application's threads. ``clock``: seconds, for tests; without it the database's clock decides.
    Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        alias: str = "default",
        *,
        timeout: float = 2.0,
        max_connections: int = 10,
        clock: Callable[[], float] | None = None,
    ) -> None:
        try:
            urls.positive(timeout)
        except ValueError as error:
            raise ConfigurationError(f"timeout: {error}") from None
        if max_connections < 1:
            raise ConfigurationError(f"max_connections: must be at least 1, got {max_connections}")
        dialect = aliases.dialect_of(alias)
        super().__init__(sql_verbs.VERBS, self._carry_out)
        #: the database's name in ``DATABASES``
        self.alias = alias
        self.file = aliases.file_of(alias)
        self._timeout = timeout
        self._connections = Connections(alias, dialect, Statements(dialect, clock), timeout, max_connections)
        # Once more than one try: a transaction that was overtaken is tried again.
        self.call_timeout = timeout + dialect.slowest(timeout)
        self._async = AsyncDjangoBackend(over=self)

    @classmethod
    def from_url(cls, url: str, *, clock: Callable[[], float] | None = None) -> DjangoBackend:
        """``django://alias``, with ``timeout`` and ``max_connections``."""
        parts = urls.split(url)
        if not parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError("backend: django:// takes an alias of DATABASES; write django://default")
        return cls(parts.netloc, clock=clock, **urls.options(parts, _OPTIONS))

    def __repr__(self) -> str:
        return f"DjangoBackend({self.alias!r})"

    def now(self) -> float:
        """Seconds since 1970 on the clock that decides; for operators."""
        now: float = self._connections.run(Step("read", Transaction.now, ()))
        return now

    def to_async(self) -> AsyncDjangoBackend:
        """The async front on the same database."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """Apply the migrations of ``open_idempotency.django`` that the database lacks; their names."""
        return aliases.migrate(self.alias)

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._connections.close()

    def _carry_out(self, verb: Verb[C, R], command: C) -> R:
        return sql_verbs.carry_out(partial(self._run, time.monotonic() + self._timeout), verb, command)

    def _run(self, until: float, step: Step) -> Any:
        """Try a transaction again while others are first, as long as there is time."""
        while True:
            try:
                return self._connections.run(step)
            except Overtaken:
                if time.monotonic() >= until:
                    raise


class AsyncDjangoBackend(ThreadedBackend):
    """The async front: ``DjangoBackend`` in threads; takes the same arguments. Since 0.1.

    Django's connections block. Those of this backend belong to no thread, so none is left behind in one.
    """

    def __init__(self, alias: str = "default", *, over: DjangoBackend | None = None, **options: Any) -> None:
        if over is None:
            over = DjangoBackend(alias, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other front
        super().__init__(over)
