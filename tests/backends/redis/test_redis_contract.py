"""The contract suite on Redis Cluster and behind a Sentinel."""

from __future__ import annotations

import secrets

import pytest

from open_idempotency.backend import Backend
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import ManualClock
from tests.backends.test_contract import _InEachMode
from tests.topologies import Cluster


class TestCluster(_InEachMode):
    """B-12, B-11a on a Cluster of three primaries. Under trio calls are those of the sync front."""

    @pytest.fixture(params=["sync", "asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, cluster: Cluster) -> Backend:
        return RedisBackend(cluster.url, prefix=f"test*:{secrets.token_hex(8)}:", timeout=10, clock=clock)


class TestSentinel(_InEachMode):
    """B-12 on a primary that a Sentinel names: in one mode, as its calls are those on a single server."""

    @pytest.fixture(params=["asyncio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def made(self, clock: ManualClock, sentinel_url: str) -> Backend:
        return RedisBackend(sentinel_url, prefix=f"test*:{secrets.token_hex(8)}:", timeout=10, clock=clock)
