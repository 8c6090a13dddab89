"""Backends of one test's own: servers behind a proxy or not, files, and a look at what they hold from behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis

from open_idempotency.backends.redis import scripts
from tests.conftest import SERVER_KINDS
from tests.faults.site import BRISK

RECORDS, STAGES = "open_idempotency_records", "open_idempotency_stages"
#: the older server repeats what the newer one shows, so in the full form only
_SERVERS = [pytest.param(kind, marks=[pytest.mark.full_form] * (kind != "valkey")) for kind in SERVER_KINDS]
on_servers = pytest.mark.parametrize("backend_kind", _SERVERS)
on_files = pytest.mark.parametrize("backend_kind", ["sqlite"])
both_colours = pytest.mark.parametrize("colour", ["wsgi", "asgi"])
#: everywhere in the full form, for what takes seconds and does not depend on the backend
mostly_files = pytest.mark.parametrize(
    "backend_kind", ["sqlite", *(pytest.param(kind, marks=pytest.mark.full_form) for kind in SERVER_KINDS)]
)
everywhere = pytest.mark.parametrize("backend_kind", ["sqlite", *_SERVERS])


def sqlite_url(folder: Path, options: str = BRISK) -> str:
    """A database of its own."""
    return f"sqlite:///{folder}/records.db" + f"?{options}" * bool(options)


class OnServer:
    """Records under a prefix of their own on a server that others use too."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"{uuid4().hex}:"
        self.port = urlsplit(url).port or 6379
        self.plain = redis.Redis.from_url(url, socket_timeout=10, protocol=2)

    def at(self, port: int | None = None, options: str = BRISK) -> str:
        """The URL, where a proxy stands before the server with the proxy's port."""
        parts = urlsplit(self.url)
        user, _, _ = parts.netloc.rpartition("@")
        place = f"{user}@127.0.0.1" if user else "127.0.0.1"
        return f"redis://{place}:{port or self.port}{parts.path}?prefix={self.prefix}" + f"&{options}" * bool(options)

    def keys(self) -> list[bytes]:
        """The keys of the records."""
        return list(self.plain.scan_iter(f"{self.prefix}*", count=1000))

    def forget(self) -> None:
        """Delete the records, as an operator or an eviction would."""
        self.plain.delete(*self.keys())

    def load_scripts(self) -> None:
        """Have the server know all scripts, so that each verb is one command."""
        for script in vars(scripts).values():
            if isinstance(script, scripts.Script):
                self.plain.script_load(script.source)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.keys():
            self.forget()
        self.plain.close()


class OnFile:
    """Records in a file of their own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records.db"
        self._folder = folder

    def at(self, options: str = BRISK) -> str:
        """The URL."""
        return sqlite_url(self._folder, options)

    def change(self, statement: str) -> None:
        """Change rows behind the backend's back."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        try:
            connection.execute(statement)
        finally:
            connection.close()

    def forget(self) -> None:
        """Delete the records, as a restored copy would."""
        self.change(f"DELETE FROM {STAGES}")
        self.change(f"DELETE FROM {RECORDS}")

    def close(self) -> None:
        """The folder is pytest's."""
