"""Row 6: a replica that had not received the last writes becomes the primary.

Replication goes through a fault proxy, which goes silent, as a network does; then the primary is killed, and the
replica promoted by hand, as an operator or a Sentinel would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.faults.effects import Effects
from tests.faults.handlers import plain
from tests.faults.proxy import FaultProxy
from tests.faults.records import on_servers
from tests.faults.site import BRISK, Order, Worker, until
from tests.servers import Server

pytestmark = on_servers


class Pair(NamedTuple):
    """A primary, and a replica whose link to it is a proxy."""

    primary: Server
    replica: Server
    link: FaultProxy

    def fail_over(self) -> None:
        """Lose the primary, and promote the replica with what it has."""
        self.primary.kill()
        with self.replica.connect() as operator:
            operator.execute_command("REPLICAOF", "NO", "ONE")


@pytest.fixture
def pair(backend_kind: str) -> Iterator[Pair]:
    """Both are up, and the replica is in step."""
    primary = Server(backend_kind, "--repl-diskless-sync-delay", "0").start()
    replica = Server(backend_kind).start()
    try:
        with FaultProxy(primary.port) as link:
            with replica.connect() as operator:
                operator.execute_command("REPLICAOF", "127.0.0.1", link.port)
                until(lambda: operator.info("replication"), lambda said: said["master_link_status"] == "up")
            yield Pair(primary, replica, link)
    finally:
        primary.stop()
        replica.stop()


@pytest.mark.fault("failover to a replica that was behind", row=6, invariants=("I2",), kind="documented")
def test_a_failover_forgets_what_the_replica_had_not_received(pair: Pair, effects: Effects) -> None:
    """Section 10: an answer was given and is not known any more, so its retry runs again."""
    with (
        Worker("wsgi", f"{pair.primary.url}?{BRISK}") as before,
        Worker("wsgi", f"{pair.replica.url}?{BRISK}") as after,
    ):
        order = Order(plain(effects))
        pair.link.swallow()
        assert before.post(order).status == 201
        pair.fail_over()
        again = after.post(order)
        assert (again.status, again.replayed) == (201, False)
    assert effects.all() == ["run 1", "run 1"]


@pytest.mark.fault("replica behind, claims have to be confirmed", row=6, invariants=("I2", "I8"))
def test_a_claim_that_no_replica_confirms_does_not_run(pair: Pair, effects: Effects, colour: str) -> None:
    """O-12: with ``min_replicas=1`` nothing runs that a failover could forget; what was confirmed survives it."""
    confirmed = f"?{BRISK}&min_replicas=1"
    with Worker(colour, pair.primary.url + confirmed) as before, Worker(colour, f"{pair.replica.url}?{BRISK}") as after:
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
