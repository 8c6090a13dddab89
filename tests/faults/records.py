"""The backends of one test: servers, behind a proxy or not, or files; and direct access to what they store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis

from open_idempotency.backends.redis import scripts
from tests.conftest import SERVER_KINDS
from tests.faults.site import BRISK, BRISK_POSTGRES
from tests.postgres_server import PostgresServer

RECORDS, STAGES = "open_idempotency_records", "open_idempotency_stages"
#: the version of each kind of PostgreSQL
VERSIONS = {"postgres": 18, "postgres16": 16}
#: the fixture of its server
POSTGRES = {kind: f"postgres{version}" for kind, version in VERSIONS.items()}
#: the older servers repeat what the newer ones show, so in the full form only
_SHORT = {"sqlite", "valkey", "postgres"}


def _on(kinds: Iterable[str], short: Iterable[str] = _SHORT) -> pytest.MarkDecorator:
    """Run on each of these kinds; kinds outside of ``short`` run in the full form only."""
    left_out = {kind: [pytest.mark.full_form] * (kind not in short) for kind in kinds}
    return pytest.mark.parametrize("backend_kind", [pytest.param(kind, marks=left_out[kind]) for kind in left_out])


on_files = _on(["sqlite"])
on_redis = _on(SERVER_KINDS)
on_postgres = _on(POSTGRES)
on_servers = _on([*SERVER_KINDS, *POSTGRES])
#: backends that lock rows or tables without blocking reads
on_databases = _on(["sqlite", *POSTGRES])
everywhere = _on(["sqlite", *SERVER_KINDS, *POSTGRES])
#: every backend in the full form; for tests that take seconds and depend little on the backend
mostly_files = _on(["sqlite", *SERVER_KINDS, *POSTGRES], short=["sqlite"])
#: the same for faults of the network
mostly_redis = _on([*SERVER_KINDS, *POSTGRES], short=["valkey"])
wsgi_and_asgi = pytest.mark.parametrize("interface", ["wsgi", "asgi"])


def sqlite_url(folder: Path, options: str = BRISK) -> str:
    """A new database file."""
    return f"sqlite:///{folder}/records.db" + f"?{options}" * bool(options)


class OnRedis:
    """Records under their own prefix, on a shared server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"{uuid4().hex}:"
        self.port = urlsplit(url).port or 6379
        self.plain = redis.Redis.from_url(url, socket_timeout=10, protocol=2)

    def at(self, port: int | None = None, options: str = BRISK) -> str:
        """The URL, with the proxy's port if there is a proxy."""
        parts = urlsplit(self.url)
        user, _, _ = parts.netloc.rpartition("@")
        place = f"{user}@127.0.0.1" if user else "127.0.0.1"
        return f"redis://{place}:{port or self.port}{parts.path}?prefix={self.prefix}" + f"&{options}" * bool(options)

    def command(self, verb: str) -> bytes:
        """Bytes that identify the command of a verb on the network."""
        script: scripts.Script = getattr(scripts, verb.upper())
        return script.sha.encode()

    def keys(self) -> list[bytes]:
        """The keys of the records."""
        return list(self.plain.scan_iter(f"{self.prefix}*", count=1000))

    def forget(self) -> None:
        """Delete the records, as an operator or an eviction would."""
        self.plain.delete(*self.keys())

    def snapshot(self) -> object:
        """Everything that is stored."""
        # Not DUMP: reading a hash may change the order of its fields.
        return [
            self.plain.hgetall(key) if self.plain.type(key) == b"hash" else self.plain.get(key) for key in self.keys()
        ]

    def prepare(self) -> None:
        """Load all scripts, so that each verb is one command."""
        for script in vars(scripts).values():
            if isinstance(script, scripts.Script):
                self.plain.script_load(script.source)

    def close(self) -> None:
        """Delete the keys."""
        if self.keys():
            self.forget()
        self.plain.close()


class OnPostgres:
    """Records on a server that the tests of this process use in turn."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.port = server.port
        self.forget()

    def at(self, port: int | None = None, options: str = BRISK_POSTGRES) -> str:
        """The URL, with the proxy's port if there is a proxy."""
        url = self.server.url().replace(f":{self.port}/", f":{port or self.port}/")
        return url + f"?{options}" * bool(options)

    def command(self, verb: str) -> bytes:
        """Bytes that identify the statement of a verb on the network."""
        return f"open_idempotency.{verb}(".encode()

    def ask(self, statement: str) -> list[Any]:
        """The rows of a statement that does not go through the backend."""
        with self.server.connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def change(self, statement: str) -> None:
        """Change rows without the backend."""
        self.ask(statement)

    def forget(self) -> None:
        """Delete the records and their stages, as an operator would."""
        self.ask("DELETE FROM open_idempotency.records")

    def snapshot(self) -> object:
        """Everything that is stored."""
        return [self.ask(f"SELECT * FROM open_idempotency.{table} ORDER BY 1") for table in ("records", "stages")]

    def lock(self) -> psycopg.Connection[Any]:
        """A transaction that blocks writes of any record, and no reads, until it ends."""
        connection = psycopg.connect(self.server.url(), connect_timeout=5)
        connection.execute("LOCK TABLE open_idempotency.records IN EXCLUSIVE MODE")
        return connection

    def prepare(self) -> None:
        """Do nothing: each verb is always one statement."""

    def close(self) -> None:
        """Do nothing: the next test deletes the rows."""


class OnFile:
    """Records in a file of their own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records.db"
        self._folder = folder

    def at(self, options: str = BRISK) -> str:
        """The URL."""
        return sqlite_url(self._folder, options)

    def ask(self, statement: str) -> list[Any]:
        """The rows of a statement that does not go through the backend."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def change(self, statement: str) -> None:
        """Change rows without the backend."""
        self.ask(statement)

    def forget(self) -> None:
        """Delete the records, as restoring an old copy would."""
        self.change(f"DELETE FROM {STAGES}")
        self.change(f"DELETE FROM {RECORDS}")

    def snapshot(self) -> object:
        """Everything that is stored."""
        return self.ask(f"SELECT * FROM {RECORDS}")

    def close(self) -> None:
        """Do nothing: pytest deletes the folder."""


#: records behind a network
OnServer = OnRedis | OnPostgres
Records = OnRedis | OnPostgres | OnFile
