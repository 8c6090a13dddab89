"""Row 9: the server's memory is full, with a policy that refuses writes and with one that evicts keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest
import redis

from tests.faults.effects import Effects
from tests.faults.handlers import charging, plain
from tests.faults.records import on_redis
from tests.faults.site import BRISK, PATIENCE, Order, Worker
from tests.servers import Server

pytestmark = on_redis
LIMIT = "12mb"
_BLOCK = b"x" * 65536


class StartServer(Protocol):
    def __call__(self, policy: str) -> Server: ...


@pytest.fixture
def start_server(backend_kind: str) -> Iterator[StartServer]:
    """``start_server(policy)``: a server with a small memory limit."""
    servers: list[Server] = []

    def start(policy: str) -> Server:
        servers.append(Server(backend_kind, "--maxmemory", LIMIT, "--maxmemory-policy", policy).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def _fill(server: Server) -> None:
    """Fill the server's memory by lowering its limit below what it holds."""
    with server.connect() as operator:
        operator.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            operator.set("other", b"x")


@pytest.mark.fault("memory limit, noeviction", row=9, invariants=("I2", "I4", "I8"))
def test_at_the_limit_claims_are_refused_and_completions_are_kept(
    start_server: StartServer, effects: Effects, interface: str
) -> None:
    """B-11b: no new request runs, and completed work is not lost."""
    server = start_server("noeviction")
    with Worker(interface, f"{server.url}?{BRISK}", lease=15) as worker:
        running, new = Order(charging(effects, hold="response")), Order(plain(effects))
        owner = worker.start(running)
        running.until_arrived()
        _fill(server)
        refused = worker.post(new)
        assert (refused.status, new.runs) == (503, 0)
        running.script.release.set()
        first = owner.result(PATIENCE)
        assert (first.status, first.unrecorded) == (201, False)
        again = worker.post(running)
        assert (again.replayed, again.body) == (True, first.body)
    assert effects.all() == ["reserve 1", "charge 1"]


@pytest.mark.fault("memory limit, evicting policy", row=9, invariants=("I2",), kind="documented")
def test_an_evicting_policy_forgets_what_was_completed(start_server: StartServer, effects: Effects) -> None:
    """An evicted key runs again."""
    server = start_server("allkeys-lru")
    with Worker("wsgi", f"{server.url}?{BRISK}") as worker, server.connect() as other:
        order = Order(plain(effects))
        assert worker.post(order).status == 201
        ours = other.keys("oi:*")
        for number in range(20_000):
            other.set(f"other:{number}", _BLOCK)
            if not other.exists(*ours):
                break
        again = worker.post(order)
        assert (again.status, again.replayed) == (201, False)
    assert effects.all() == ["run 1", "run 1"]
