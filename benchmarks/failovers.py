"""What Redis forgets when its primary is replaced: ``python -m benchmarks.failovers [--only sentinel] [--query ...]``.

Real servers, real Sentinels, real faults. Two workers claim each key, one after the other: one with the connections
that it had before the fault, one that was just started. For each fault the table says how many keys both of them got
(the handler ran twice), how many responses were acknowledged and are gone at the end, and for how many seconds the
first worker's calls were refused. Nothing here is asserted; the tests of the same faults are in ``tests/backends``.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import redis

from open_idempotency import open_backend
from open_idempotency.backend import Claim, Complete, Get, Leased
from open_idempotency.exceptions import IdempotencyError
from tests.faults.proxy import FaultProxy
from tests.servers import Server
from tests.topologies import SERVICE, Cluster, Sentinel, until

#: seconds: watched after the fault; a hung or cut off primary comes back after ``_BACK``; between two keys
_WATCHED, _BACK, _PAUSE = 20.0, 10.0, 0.05
#: the address of those who are on the other side of a partition
_OTHER_SIDE = "127.0.0.2"
_QUICK = ("--repl-diskless-sync-delay", "0")


class Scene(NamedTuple):
    """Servers before a fault. ``fail`` causes it and ``mend`` ends it; ``reached`` says when there is a new primary."""

    url: str
    fail: Callable[[], None]
    mend: Callable[[], None]
    reached: Callable[[], bool]
    #: where workers connect that are started after the fault
    url_of_new: str | None = None


class Figures(NamedTuple):
    """The results of one fault."""

    keys: int
    twice: int
    acknowledged: int
    forgotten: int
    refused: float


class Partition(FaultProxy):
    """A proxy that can cut off clients on the other side, and no others."""

    cut_off = False

    def swallow(self) -> None:
        """Let nothing pass to or from the other side; connections stay open."""
        self.cut_off = True
        with self._lock:
            for link in self._links:
                link.mute = self._is_beyond(link.client)

    def heal(self) -> None:
        """Serve the other side again, on new connections."""
        self.cut_off = False
        with self._lock:
            beyond = [link for link in self._links if link.mute]
        for link in beyond:
            link.cut()

    def _matching(self, data: bytes) -> list[Any]:
        if self.cut_off:  # connections that were made meanwhile
            with self._lock:
                for link in self._links:
                    link.mute = link.mute or self._is_beyond(link.client)
        return super()._matching(data)

    @staticmethod
    def _is_beyond(client: socket.socket) -> bool:
        try:
            return bool(client.getpeername()[0] == _OTHER_SIDE)
        except OSError:
            return False


def _claim(backend: Any, key: bytes) -> Any:
    return backend.claim(Claim(key, b"\x01" * 33, os.urandom(16), 30.0, 86400.0))


def measure(scene: Scene) -> Figures:
    """Run two workers during the fault."""
    old = open_backend(scene.url)
    assert isinstance(_claim(old, os.urandom(32)), Leased)
    keys = twice = 0
    acknowledged: list[bytes] = []
    refused, refused_since = 0.0, None
    scene.fail()
    began, mended, reached = time.monotonic(), False, False
    while time.monotonic() - began < _WATCHED:
        if not mended and time.monotonic() - began > _BACK:
            mended = True
            scene.mend()
        key, keys, first = os.urandom(32), keys + 1, None
        asked = time.monotonic()
        try:
            first = _claim(old, key)
            if isinstance(first, Leased):
                old.complete(Complete(first.lease, b"response"))
                acknowledged.append(key)
        except IdempotencyError:
            refused_since = refused_since or asked
        else:
            refused += 0.0 if refused_since is None else time.monotonic() - refused_since
            refused_since = None
        reached = reached or scene.reached()
        if reached and isinstance(first, Leased):
            twice += isinstance(_by_another(scene, key), Leased)
        time.sleep(_PAUSE)
    if refused_since is not None:
        refused += time.monotonic() - refused_since
    old.close()
    return Figures(keys, twice, len(acknowledged), _forgotten(scene, acknowledged), refused)


def _by_another(scene: Scene, key: bytes) -> Any:
    """The results of a worker that has just started."""
    new = open_backend(scene.url_of_new or scene.url)
    try:
        return _claim(new, key)
    except IdempotencyError:
        return None
    finally:
        new.close()


def _forgotten(scene: Scene, acknowledged: list[bytes]) -> int:
    """How many of these responses are not on record at the end."""
    last = open_backend(scene.url_of_new or scene.url)
    try:
        return sum(getattr(last.get(Get(key)), "response", None) is None for key in acknowledged)
    finally:
        last.close()


# Sentinel: a primary, two replicas and three Sentinels, of which two have to agree


def _all_name_another(watchers: list[Sentinel], port: int) -> bool:
    with suppress(redis.RedisError, OSError):
        return not any(watcher.primary() == port for watcher in watchers)
    return False


@contextmanager
def _sentinels(fault: str, query: str) -> Iterator[Scene]:
    beyond = ("--bind-source-addr", _OTHER_SIDE, "--replica-announce-ip", "127.0.0.1")
    with ExitStack() as ends:
        primary = Server("valkey", *_QUICK).start()
        ends.callback(primary.stop)
        door = ends.enter_context(Partition(primary.port))
        entrance = door.port if fault == "partitioned" else primary.port
        replicas = [
            Server("valkey", "--replicaof", "127.0.0.1", str(entrance), *_QUICK, *beyond).start() for _ in range(2)
        ]
        for replica in replicas:
            ends.callback(replica.stop)
        lines = (
            f"sentinel down-after-milliseconds {SERVICE} 2000",
            "sentinel announce-ip 127.0.0.1",
            f"bind-source-addr {_OTHER_SIDE}",
        )
        watchers = [Sentinel(entrance, *lines, quorum=2) for _ in range(3)]
        for watcher in watchers:
            watcher.start()
            ends.callback(watcher.stop)
        until(lambda: all(watcher.knows_replicas(2) and _knows_others(watcher) for watcher in watchers), "they agree")
        named = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
        actions = {
            "planned": (lambda: _fail_over(watchers[0]), lambda: None),
            "coordinated": (lambda: _fail_over(watchers[0], "COORDINATED"), lambda: None),
            "killed": (primary.kill, lambda: None),
            "hung": (primary.freeze, primary.thaw),
            "partitioned": (door.swallow, door.heal),
        }
        fail, mend = actions[fault]
        yield Scene(
            f"redis+sentinel://{named}/{SERVICE}/0{query}", fail, mend, partial(_all_name_another, watchers, entrance)
        )


def _knows_others(watcher: Sentinel) -> bool:
    with watcher.connect() as plain:
        return bool(plain.sentinel_masters()[SERVICE]["num-other-sentinels"] == 2)


def _fail_over(watcher: Sentinel, *words: str) -> None:
    with watcher.connect() as plain:
        until(lambda: plain.execute_command("SENTINEL", "FAILOVER", SERVICE, *words), "the failover begins")


# Cluster: three primaries with a replica each


@contextmanager
def _cluster(fault: str, query: str) -> Iterator[Scene]:
    cluster = Cluster("valkey", 3, 1, "--enable-debug-command", "yes")
    try:
        cluster.start()
        primary, replica = cluster.nodes[0], cluster.nodes[3]
        actions = {
            "planned": (lambda: _ask(replica, "CLUSTER", "FAILOVER"), lambda: None),
            "killed": (primary.kill, lambda: None),
            "hung": (primary.freeze, primary.thaw),
            "partitioned": (lambda: _drop_all(primary, -2), lambda: _drop_all(primary, -1)),
        }
        fail, mend = actions[fault]
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[1:3])
        yield Scene(url + query, fail, mend, lambda: _is_primary(replica))
    finally:
        cluster.stop()


def _ask(server: Server, *words: Any) -> Any:
    with server.connect() as plain:
        return plain.execute_command(*words)


def _drop_all(server: Server, packets: int) -> None:
    """Let a node hear nothing of what the others say of the Cluster (-2), or hear it again (-1)."""
    _ask(server, "DEBUG", "DROP-CLUSTER-PACKET-FILTER", packets)


def _is_primary(server: Server) -> bool:
    with server.connect() as plain:
        return bool(plain.info("replication")["role"] == "master")


# One address, which is moved to the promoted replica


@contextmanager
def _address(fault: str, query: str) -> Iterator[Scene]:
    with ExitStack() as ends:
        primary = Server("valkey", *_QUICK).start()
        ends.callback(primary.stop)
        replica, second = (Server("valkey", *_QUICK).start() for _ in range(2))
        for server, of in ((replica, primary), (second, replica)):
            ends.callback(server.stop)
            _ask(server, "REPLICAOF", "127.0.0.1", of.port)
            until(partial(_is_linked, server), "the replica follows")
        endpoint = ends.enter_context(FaultProxy(primary.port))

        def move() -> None:
            _ask(replica, "REPLICAOF", "NO", "ONE")
            endpoint.lead_to(replica.port)

        def plan() -> None:
            move()
            _ask(primary, "REPLICAOF", "127.0.0.1", replica.port)

        def die() -> None:
            primary.kill()
            move()

        def hang() -> None:
            primary.freeze()
            move()

        actions = {
            "planned": (plan, lambda: None),
            "killed": (die, lambda: None),
            "hung": (hang, primary.thaw),
            "partitioned": (move, lambda: _ask(primary, "REPLICAOF", "127.0.0.1", replica.port)),
        }
        fail, mend = actions[fault]
        yield Scene(f"redis://127.0.0.1:{endpoint.port}/0{query}", fail, mend, lambda: True)


def _is_linked(server: Server) -> bool:
    with server.connect() as plain:
        return bool(plain.info("replication").get("master_link_status") == "up")


FAULTS = ("planned", "killed", "hung", "partitioned")
SCENES: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "sentinel": (_sentinels, (*FAULTS[:1], "coordinated", *FAULTS[1:])),
    "cluster": (_cluster, FAULTS),
    "address": (_address, FAULTS),
}


def main() -> None:
    """Measure what was asked for, and print a row for each fault as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failovers", description=__doc__)
    parser.add_argument("--only", choices=SCENES, help="only this arrangement of servers")
    parser.add_argument("--fault", help="only this fault")
    parser.add_argument("--query", default="", help="options of the URL, such as ?min_replicas=2")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print("| Servers | Primary | Keys | Leased twice | Responses forgotten | Seconds refused |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (make, faults) in SCENES.items():
        for fault in faults:
            if options.only not in (None, name) or options.fault not in (None, fault):
                continue
            with make(fault, options.query) as scene:
                found = measure(scene)
            lost = f"{found.forgotten} of {found.acknowledged}"
            print(f"| {name} | {fault} | {found.keys} | {found.twice} | {lost} | {found.refused:.1f} |", flush=True)


if __name__ == "__main__":
    main()
