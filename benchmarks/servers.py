"""The backends of a run: real servers from wheels on PyPI, and files, all removed at its end.

The servers have their default settings; the README lists what a figure depends on (``fsync`` is on, Valkey writes
nothing to disk).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.interface import BackendName
from open_idempotency import open_backend
from tests.postgres_server import PostgresServer
from tests.servers import Server


class Servers:
    """Starts each server at its first use; a context manager."""

    def __init__(self) -> None:
        self._ends = ExitStack()
        self._numbers = itertools.count(1)
        self._redis: Server | None = None
        self._postgres: PostgresServer | None = None
        self._database = ""
        self._folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="oi-benchmarks-")))
        self._urls: dict[BackendName, Callable[[], str]] = {
            "memory": lambda: "memory://",
            "sqlite-normal": lambda: f"sqlite:///{self.file()}?synchronous=normal",
            "sqlite-full": lambda: f"sqlite:///{self.file()}?synchronous=full",
            "redis": self._emptied,
            "postgres": self._new_database,
        }

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.close()

    def url(self, backend: BackendName) -> str:
        """The URL of an empty backend; an earlier one on the same server is deleted."""
        return self._urls[backend]()

    def file(self) -> Path:
        """The path of a new file."""
        return self._folder / f"{next(self._numbers)}.db"

    @property
    def redis(self) -> Server:
        """The Valkey server."""
        if self._redis is None:
            self._redis = Server("valkey").start()
            self._ends.callback(self._redis.stop)
        return self._redis

    @property
    def postgres(self) -> PostgresServer:
        """The PostgreSQL 18 server."""
        if self._postgres is None:
            self._postgres = PostgresServer(18).start()
            self._ends.callback(self._postgres.stop)
        return self._postgres

    def _emptied(self) -> str:
        with self.redis.connect() as client:
            client.flushall()
        return self.redis.url

    def _new_database(self) -> str:
        server = self.postgres
        if self._database:
            # Including connections of applications that were not closed.
            with server.connect() as connection:
                connection.execute(f"DROP DATABASE {self._database} WITH (FORCE)".encode())
        self._database = f"run{next(self._numbers)}"
        url = server.create_database(self._database)
        open_backend(url).migrate()
        return url
