"""Stores for the operators' tests: each backend that a command can reach, by its URL, and records in each state."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency._core.keys import About
from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import StageKind, encode_response, encode_stage
from open_idempotency.backend import Backend, Claim, Complete, Fail, Get, Lease, Leased, SaveStage, Stage
from tests.backends.django_orm import on_django
from tests.postgres_server import PostgresServer
from tests.topologies import Cluster

#: by name; each test of an operator's story runs on all of them
STORES = (
    "sqlite",
    "valkey",
    "cluster",
    "sentinel",
    "postgres",
    "sqlalchemy-sqlite",
    "sqlalchemy-postgres",
    "django-sqlite",
    "django-postgres",
)
TTL = 3600.0
#: seconds; `Maker.await_end` returns once they are over
ENDED = 0.001
LONG = 600.0


@contextmanager
def opened(name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty backend, with its tables."""
    folder: Path = request.getfixturevalue("tmp_path")
    fresh = f"{name.replace('-', '_')}_{secrets.token_hex(4)}"
    if name.startswith("django"):
        with on_django.aliased(_django_settings(name, fresh, folder, request)) as alias:
            yield f"django://{alias}"
        return
    url = _url(name, fresh, folder, request)
    with open_backend(url) as backend:
        backend.migrate()
    yield url


def _django_settings(name: str, fresh: str, folder: Path, request: pytest.FixtureRequest) -> dict[str, object]:
    if name == "django-sqlite":
        return on_django.sqlite(folder)
    server: PostgresServer = request.getfixturevalue("postgres18")
    server.create_database(fresh)
    return on_django.postgresql(server, fresh)


def _url(name: str, fresh: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if name == "sqlite":
        return f"sqlite:///{folder}/records.db"
    if name == "sqlalchemy-sqlite":
        return f"sqlalchemy+sqlite:///{folder}/records.db"
    if name.endswith("postgres"):
        server: PostgresServer = request.getfixturevalue("postgres18")
        url = server.create_database(fresh)
        return url if name == "postgres" else url.replace("postgresql://", "sqlalchemy+postgresql+psycopg://")
    if name == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return f"{cluster.url}?prefix={fresh}:"
    where: str = request.getfixturevalue(f"{name}_url")
    return f"{where}?prefix={fresh}:"


@dataclass
class Maker:
    """Makes records in a backend, as workers do."""

    backend: Backend
    holder: str = "web-3:812"

    def lease(self, seconds: float = LONG, *, record_id: bytes | None = None, fingerprint: bytes = b"f") -> Lease:
        """The lease of a new attempt, for POST /orders/{id}."""
        owner = os.urandom(16)
        about = About("POST", "/orders/{id}", b"c" * 16, self.holder).encode(owner)
        wanted = record_id or os.urandom(32)
        claimed = self.backend.claim(Claim(wanted, fingerprint, owner, seconds, TTL, about=about))
        assert isinstance(claimed, Leased), claimed
        return claimed.lease

    def save(self, lease: Lease, stage: Stage) -> None:
        """Save a stage with a lease no longer than its rest."""
        self.backend.save_stage(SaveStage(lease, stage))

    def await_end(self, lease: Lease) -> None:
        """Wait until the lease has ended by the backend's clock."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            record = self.backend.get(Get(lease.record_id))
            assert record is not None
            if record.lease_end < self.backend.now():
                return
        raise AssertionError("the lease did not end")

    def alive(self) -> Lease:
        """A running attempt with one completed stage."""
        lease = self.lease()
        self.save(lease, value("reserve", '{"seat": 12}'))
        return lease

    def in_doubt(self, seconds: float = ENDED) -> Lease:
        """An abandoned attempt with a completed stage, and the stage ``charge`` begun."""
        lease = self.lease(seconds)
        self.save(lease, value("reserve", '{"seat": 12}'))
        self.save(lease, begun("charge"))
        if seconds == ENDED:
            self.await_end(lease)
        return lease

    def completed(self, body: bytes = b'{"order": "secret-42"}') -> Lease:
        """A record with a response, status 201."""
        lease = self.lease()
        response = Response(201, [(b"content-type", b"application/json")], body)
        self.backend.complete(Complete(lease, encode_response(response)))
        return lease

    def failed(self, *, final: bool = False) -> Lease:
        """A failed attempt with a completed stage."""
        lease = self.lease()
        self.save(lease, value("reserve", '{"seat": 12}'))
        self.backend.fail(Fail(lease, final))
        return lease


def value(name: str, text: str, key: str = "") -> Stage:
    """A completed stage."""
    return Stage(name, key, encode_stage(StageKind.VALUE, text.encode()))


def begun(name: str, key: str = "", number: int = 1) -> Stage:
    """The intent of a stage, as a worker records it before an external effect."""
    return Stage(name, f"{key}\x1f{number}", encode_stage(StageKind.BEGUN, b"1"))
