"""Row 6: a replica that has not received the last writes becomes the primary.

Replication goes through a fault proxy, which goes silent, as a network does. Then the primary is killed, and the
replica is promoted by hand, as an operator or a Sentinel would. PostgreSQL's replica is a copy by ``pg_basebackup``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from open_idempotency import open_backend
from tests.faults.effects import Effects
from tests.faults.handlers import plain
from tests.faults.proxy import FaultProxy
from tests.faults.records import POSTGRES, VERSIONS, on_postgres, on_servers
from tests.faults.site import BRISK, BRISK_POSTGRES, Order, Worker, until
from tests.postgres_server import PostgresServer
from tests.servers import Server

#: writes are lost on the way to the replica here, not on the way to the disk
_WITHOUT_DISK = ("fsync=off",)


class Pair(Protocol):
    """A primary, and a replica whose ``link`` to it is a proxy; both URLs have no options."""

    primary: str
    replica: str
    link: FaultProxy
    #: options
    brisk: str

    def demand(self) -> str:
        """Require that the replica confirms claims; the URL options for that."""

    def await_step(self) -> None:
        """Wait until the replica has every write of the primary."""

    def fail_over(self) -> None:
        """Kill the primary, and promote the replica with what it has."""


class _RedisPair:
    brisk = BRISK

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self._primary = Server(kind, "--repl-diskless-sync-delay", "0").start()
        stack.callback(self._primary.stop)
        self._replica = Server(kind).start()
        stack.callback(self._replica.stop)
        self.primary, self.replica = self._primary.url, self._replica.url
        self.link = stack.enter_context(FaultProxy(self._primary.port))
        with self._replica.connect() as operator:
            operator.execute_command("REPLICAOF", "127.0.0.1", self.link.port)
        self.await_step()

    def demand(self) -> str:
        return "&min_replicas=1"

    def await_step(self) -> None:
        with self._replica.connect() as operator:
            until(lambda: operator.info("replication"), lambda said: said["master_link_status"] == "up")

    def fail_over(self) -> None:
        self._primary.kill()
        with self._replica.connect() as operator:
            operator.execute_command("REPLICAOF", "NO", "ONE")


class _PostgresPair:
    """The primary's data survive the kill: the next test starts it again."""

    brisk = BRISK_POSTGRES

    def __init__(self, primary: PostgresServer, stack: ExitStack) -> None:
        self._primary = primary
        self._demand("''")
        self.link = stack.enter_context(FaultProxy(primary.port))
        self._replica = PostgresServer(primary.version, *_WITHOUT_DISK, replica_of=self.link.port).start()
        stack.callback(self._replica.stop)
        self.primary, self.replica = primary.url(), self._replica.url()

    def _demand(self, standbys: str) -> None:
        with self._primary.connect() as operator:
            operator.execute(f"ALTER SYSTEM SET synchronous_standby_names = {standbys}".encode())
            operator.execute("SELECT pg_reload_conf()")

    def demand(self) -> str:
        self._demand("'*'")
        with self._primary.connect() as operator:
            state = "SELECT sync_state FROM pg_stat_replication"
            until(lambda: operator.execute(state).fetchall(), lambda rows: rows == [("sync",)])
        return ""

    def await_step(self) -> None:
        with self._primary.connect() as operator:
            behind = "SELECT pg_current_wal_lsn() > replay_lsn FROM pg_stat_replication"
            until(lambda: operator.execute(behind).fetchall(), lambda rows: rows == [(False,)])

    def fail_over(self) -> None:
        self._primary.kill()
        with self._replica.connect() as operator:
            operator.execute("SELECT pg_promote()")


@pytest.fixture(scope="module")
def primaries() -> Iterator[dict[str, PostgresServer]]:
    """The PostgreSQL servers of these tests, which may be killed."""
    servers: dict[str, PostgresServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


def _primary(kind: str, servers: dict[str, PostgresServer]) -> PostgresServer:
    if kind in servers:
        servers[kind].kill()
        return servers[kind].start()
    servers[kind] = PostgresServer(VERSIONS[kind], *_WITHOUT_DISK).start()
    open_backend(servers[kind].url()).migrate()
    return servers[kind]


@pytest.fixture
def pair(backend_kind: str, primaries: dict[str, PostgresServer]) -> Iterator[Pair]:
    """A running pair, with the replica in step."""
    with ExitStack() as stack:
        if backend_kind in POSTGRES:
            yield _PostgresPair(_primary(backend_kind, primaries), stack)
        else:
            yield _RedisPair(backend_kind, stack)


@on_servers
@pytest.mark.fault("failover to a replica that was behind", row=6, invariants=("I2",), kind="documented")
def test_a_failover_forgets_what_the_replica_had_not_received(pair: Pair, effects: Effects) -> None:
    """A completed response is lost, so its retry runs again."""
    with (
        Worker("wsgi", f"{pair.primary}?{pair.brisk}") as before,
        Worker("wsgi", f"{pair.replica}?{pair.brisk}") as after,
    ):
        order = Order(plain(effects))
        pair.link.swallow()
        assert before.post(order).status == 201
        pair.fail_over()
        again = after.post(order)
        assert (again.status, again.replayed) == (201, False)
    assert effects.all() == ["run 1", "run 1"]


@on_servers
@pytest.mark.fault("replica behind, claims have to be confirmed", row=6, invariants=("I2", "I8"))
def test_a_claim_that_no_replica_confirms_does_not_run(pair: Pair, effects: Effects, interface: str) -> None:
    """O-12: with ``min_replicas=1`` or ``synchronous_standby_names``, no attempt runs that a failover could forget.

    Confirmed claims survive a failover.
    """
    confirmed = f"?{pair.brisk}{pair.demand()}"
    with (
        Worker(interface, pair.primary + confirmed) as before,
        Worker(interface, f"{pair.replica}?{pair.brisk}") as after,
    ):
        done, new = Order(plain(effects)), Order(plain(effects))
        first = before.post(done)
        assert (first.status, first.unrecorded) == (201, False)
        pair.link.swallow()
        refused = before.post(new)
        assert (refused.status, new.runs) == (503, 0)
        pair.fail_over()
        assert after.post(done).body == first.body
        assert after.post(new).status == 201
    assert effects.all() == ["run 1", "run 1"]


@on_postgres
@pytest.mark.fault("the address of a replica", row=6, invariants=("I2", "I8"))
def test_a_replica_serves_nothing(pair: Pair, effects: Effects, interface: str) -> None:
    """O-12, I8: a replica may lack a claim or still have expired records, so it counts as a failed backend."""
    with (
        Worker(interface, f"{pair.primary}?{pair.brisk}") as worker,
        Worker(interface, f"{pair.replica}?{pair.brisk}") as astray,
    ):
        done, new = Order(plain(effects)), Order(plain(effects))
        assert worker.post(done).status == 201
        pair.await_step()
        assert [astray.post(order).status for order in (done, new)] == [503, 503]
        assert new.runs == 0
    assert effects.all() == ["run 1"]
