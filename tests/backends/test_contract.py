"""The contract suite on every backend, sync and async, on asyncio and on trio."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance import BackendContract, ManualClock
from open_idempotency.conformance.late_claims import Held
from open_idempotency.conformance.sizes import Narrow
from tests.backends import holding, narrowing
from tests.conftest import SERVER_KINDS


class _InEachMode(BackendContract):
    """``sync`` is the sync front, called on an asyncio loop."""

    @pytest.fixture(params=["sync", "asyncio", "trio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def anyio_backend(self, mode: str) -> str:
        return "asyncio" if mode == "sync" else mode

    @pytest.fixture
    def held(self, made: Backend, mode: str) -> Iterator[Held]:
        with holding.held(made, mode) as held:
            yield held

    @pytest.fixture
    def narrow(self, made: Backend, mode: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Narrow]:
        with narrowing.narrow(made, mode, monkeypatch) as narrow:
            yield narrow

    @pytest.fixture
    def backend(self, made: Backend, mode: str) -> Backend | AsyncBackend:
        return made if mode == "sync" else made.to_async()


class TestMemory(_InEachMode):
    """B-12 on memory."""

    @pytest.fixture
    def made(self, clock: ManualClock) -> Backend:
        return MemoryBackend(clock=clock)


class TestSqlite(_InEachMode):
    """B-12 on SQLite."""

    @pytest.fixture
    def made(self, clock: ManualClock, tmp_path: Path) -> Backend:
        # Durability is not what these tests are about, and the disk is slow.
        return SqliteBackend(str(tmp_path / "records.db"), synchronous="normal", timeout=20, clock=clock)


class TestSqliteOneByOne(TestSqlite):
    """B-12 on SQLite without coalescing, where trio behaves as asyncio."""

    @pytest.fixture(params=["sync", "asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, tmp_path: Path) -> Backend:
        path = str(tmp_path / "records.db")
        return SqliteBackend(path, synchronous="normal", coalesce=False, timeout=20, clock=clock)


class _OnServer(_InEachMode):
    server_kind: str
    coalesce = True

    @pytest.fixture
    def made(self, clock: ManualClock, request: pytest.FixtureRequest) -> Backend:
        url: str = request.getfixturevalue(f"{self.server_kind}_url")
        prefix = f"test*:{secrets.token_hex(8)}:"
        return RedisBackend(url, prefix=prefix, timeout=10, coalesce=self.coalesce, clock=clock)


class TestValkey(_OnServer):
    """B-12 on Valkey."""

    server_kind = "valkey"


class TestValkeyOneByOne(_OnServer):
    """B-12 on Valkey with a connection for every call; the other kinds never coalesce."""

    server_kind = "valkey"
    coalesce = False

    @pytest.fixture(params=["asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode


if "redis" in SERVER_KINDS:

    class TestRedis(_OnServer):
        """B-12 on the oldest supported Redis."""

        server_kind = "redis"
