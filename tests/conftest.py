"""Fixtures that all suites share: event loop libraries and real servers."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import pytest
from hypothesis import HealthCheck, settings

from open_idempotency import open_backend
from open_idempotency._engine import shutdown
from open_idempotency._engine.heartbeat import _Beats
from tests import mariadb_server
from tests.effort import times
from tests.matrix import SUITES, is_full
from tests.passed_before import PassedBefore
from tests.poolers import POOLERS, PgBouncer, Pooler, pgbouncer_binary
from tests.postgres_server import PostgresServer
from tests.servers import CAN_EXIST, Server
from tests.topologies import Cluster, Sentinel, replicated

# The time to generate and test a value depends on the machine's load, not on the code.
settings.register_profile(
    "patient", settings(max_examples=times(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
)
settings.load_profile("patient")

#: the URL of an existing server, which replaces the Valkey one and is never flushed
ADDRESS = os.environ.get("OI_TEST_REDIS_URL")
SERVER_KINDS = [kind for kind, can_exist in CAN_EXIST.items() if can_exist]
#: Starlette's BaseHTTPMiddleware leaves a stream of its own open before this release, where what it wraps raises
CLOSES_ITS_STREAMS = (0, 45, 1)
LEFT_OPEN = "Unclosed <MemoryObject(Receive|Send)Stream"


def pytest_xdist_auto_num_workers() -> int | None:
    """``-n auto``: two test processes for each core, since tests wait for servers for more than half of the time."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # xdist reads it
    return 2 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Freeze what was collected: scanning it at each garbage collection would take half a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Leave out what passed in an earlier command, and ignore the stream that an old Starlette leaves open.

    Otherwise the test that runs when that stream is collected would fail.
    """
    config.pluginmanager.register(
        PassedBefore(os.environ.get("OI_TEST_PASSED_IN"), os.environ.get("OI_TEST_PASSED_TO"))
    )
    if tuple(int(part) for part in version("starlette").split(".")[:3]) < CLOSES_ITS_STREAMS:
        config.addinivalue_line("filterwarnings", f"ignore:{LEFT_OPEN}:ResourceWarning")
        # also a stream that is collected between tests or at the end
        warnings.filterwarnings("ignore", LEFT_OPEN, ResourceWarning)


def pytest_report_header() -> list[str]:
    """Print which servers and cells are tested, and which cannot exist here, so that none is missing silently."""
    missing = [kind for kind, can_exist in CAN_EXIST.items() if not can_exist]
    bouncer = pgbouncer_binary() or "none here, the pooler of tests/poolers.py stands for it"
    in_full = [suite for suite in SUITES if is_full(suite)]
    notes = [
        f"servers: {', '.join(SERVER_KINDS)}",
        f"pgbouncer: {bouncer}",
        f"MariaDB or MySQL: {'in use' if mariadb_server.IN_USE else 'not in use, see OI_TEST_MARIADB'}",
        f"matrices in full (OI_TEST_...=full): {', '.join(in_full) or 'none'}",
    ]
    return notes + [f"servers without a wheel for this Python, deselected: {', '.join(missing)}"] * bool(missing)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run on both libraries."""
    library: str = request.param
    return library


@contextmanager
def _running(kind: str) -> Iterator[str]:
    server = Server(kind).start()
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey server for this test process; start it once, and keep to keys of your own."""
    if ADDRESS:
        yield ADDRESS
        return
    with _running("valkey") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The oldest Redis that is supported, for this test process."""
    with _running("redis") as url:
        yield url


@contextmanager
def _running_postgres(version: int) -> Iterator[PostgresServer]:
    # Durability is not what most tests are about, and the disk is slow.
    server = PostgresServer(version, "fsync=off", "autovacuum=off").start()
    try:
        open_backend(server.url()).migrate()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres18() -> Iterator[PostgresServer]:
    """The newest PostgreSQL, for this test process, with the tables made; keep to keys of your own."""
    with _running_postgres(18) as server:
        yield server


@pytest.fixture(scope="session")
def postgres16() -> Iterator[PostgresServer]:
    """An older PostgreSQL, for this test process, with the tables made; keep to keys of your own."""
    with _running_postgres(16) as server:
        yield server


@pytest.fixture(params=POOLERS, scope="session")
def pooler(request: pytest.FixtureRequest, postgres18: PostgresServer) -> Iterator[Pooler | PgBouncer]:
    """A pooler in transaction mode before that server: the simulated one, and PgBouncer if it is installed."""
    with POOLERS[request.param](postgres18.port) as pooler:
        yield pooler


@pytest.fixture(params=SERVER_KINDS)
def server_url(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Cluster of three primaries for this test process; keep to keys of your own, and leave its nodes running."""
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def sentinel_url() -> Iterator[str]:
    """A primary that a Sentinel names, for this test process; leave both running."""
    with replicated(0) as (primary, _):
        sentinel = Sentinel(primary.port)
        try:
            yield sentinel.start().sentinel_url
        finally:
            sentinel.stop()


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """Stop recording in the background after a test: its backend is gone, and would fill the logs of later tests."""
    yield
    for leases in list(shutdown._leases.get()):
        if isinstance(leases, _Beats):
            leases._recordings.pending.clear()
            leases._watched.clear()
            if leases._closed:  # its thread may still wait for a backend that a test has held up
                shutdown.dismiss(leases)
