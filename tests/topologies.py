"""Several real servers that belong together: a Cluster, a primary with replicas, Sentinels; and TLS for a server.

Everything is on the loopback, on free ports, and ended by its own pid. Nothing here knows the library.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import redis

from tests.servers import Server, free_port

_WITHIN = 30.0
_SLOTS = 16384
# Milliseconds: short, so that a failover does not take long.
_NODE_TIMEOUT = 1000
SERVICE = "records"


def until(condition: Callable[[], Any], what: str, within: float = _WITHIN) -> Any:
    """Poll until the condition holds; its value. Errors of a server that has not started count as false."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with suppress(redis.RedisError, OSError):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


class Cluster:
    """Primaries that share the slots, each with ``replicas``. In ``nodes`` the primaries come first."""

    def __init__(self, kind: str = "valkey", primaries: int = 3, replicas: int = 0, *options: str) -> None:
        self._primaries = primaries
        self.nodes = [_cluster_node(kind, options) for _ in range(primaries * (1 + replicas))]

    @property
    def url(self) -> str:
        """Where clients find it: by two of its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def start(self) -> Cluster:
        """Start all nodes and wait until each knows that all slots are served."""
        for node in self.nodes:
            node.start()
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            with node.connect() as plain:
                plain.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < self._primaries:
                    plain.execute_command("CLUSTER ADDSLOTS", *self._slots(number))
                if number:
                    plain.execute_command("CLUSTER MEET", "127.0.0.1", first.port, *first.bus)
        self._await_members()
        ids = {number: self.ask(number, "CLUSTER MYID") for number in range(self._primaries)}
        for number in range(self._primaries, len(self.nodes)):
            until(partial(self.ask, number, "CLUSTER REPLICATE", ids[number % self._primaries]), "a replica")
        until(self._complete, "the cluster is up")
        return self

    def _slots(self, number: int) -> range:
        return range(_SLOTS * number // self._primaries, _SLOTS * (number + 1) // self._primaries)

    def _await_members(self) -> None:
        for number in range(len(self.nodes)):
            until(partial(self._knows_all, number), "all nodes have met")

    def _knows_all(self, number: int) -> bool:
        return self._info(number)["cluster_known_nodes"] == str(len(self.nodes))

    def _info(self, number: int) -> dict[str, str]:
        found: dict[str, str] = self.ask(number, "CLUSTER INFO")
        return found

    def _complete(self) -> bool:
        up = all(self._info(number)["cluster_state"] == "ok" for number in range(len(self.nodes)))
        return up and all(self._linked(number) for number in range(self._primaries, len(self.nodes)))

    def _linked(self, number: int) -> bool:
        with self.nodes[number].connect() as plain:
            return bool(plain.info("replication").get("master_link_status") == "up")

    def ask(self, number: int, *words: Any) -> Any:
        """The reply of one node to one command."""
        with self.nodes[number].connect() as plain:
            return plain.execute_command(*words)

    def owner_of(self, slot: int) -> int:
        """The number of the primary that had the slot at the start."""
        return next(number for number in range(self._primaries) if slot in self._slots(number))

    def begin_to_move(self, slot: int, number: int) -> None:
        """Begin to move a slot: its new keys belong to another primary, to which clients are redirected."""
        owner = self.owner_of(slot)
        self.ask(number, "CLUSTER SETSLOT", slot, "IMPORTING", self.ask(owner, "CLUSTER MYID"))
        self.ask(owner, "CLUSTER SETSLOT", slot, "MIGRATING", self.ask(number, "CLUSTER MYID"))

    def move(self, slot: int, number: int) -> None:
        """Give a slot and its keys to another primary, and inform all primaries."""
        target = self.ask(number, "CLUSTER MYID")
        for each in range(self._primaries):
            self.ask(each, "CLUSTER SETSLOT", slot, "NODE", target)

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.stop()


class _Node(Server):
    """``bus``: the options for the port on which the nodes talk to each other."""

    def __init__(self, kind: str, *options: str) -> None:
        super().__init__(kind, *options)
        self.bus: tuple[int, ...] = ()
        # The old server's nodes talk on a port that is 10000 higher, which has to be a port.
        self._chooses_bus = kind == "valkey"
        self._words = self._options
        self._launched_on = 0

    def _free_ports(self) -> list[int]:
        return super()._free_ports() if self._chooses_bus else [_low_port() for _ in range(5)]

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        # Another program may have taken this port as well: each try has a new one. A node that restarts keeps its own.
        if self._chooses_bus and self._launched_on != port:
            self.bus = (free_port(),)
            self._options = (*self._words, "--cluster-port", str(self.bus[0]))
        self._launched_on = port
        return super()._launch(port)


def _cluster_node(kind: str, options: tuple[str, ...]) -> _Node:
    quick = ("--cluster-node-timeout", str(_NODE_TIMEOUT), "--repl-diskless-sync-delay", "0")
    last = ("--cluster-replica-validity-factor", "0")
    return _Node(kind, "--cluster-enabled", "yes", *quick, *options, *last)


def _low_port() -> int:
    while True:
        port = random.randrange(20000, 30000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
            return port


@contextmanager
def replicated(replicas: int = 1, *options: str, kind: str = "valkey") -> Iterator[tuple[Server, list[Server]]]:
    """A primary and replicas that have caught up."""
    primary = Server(kind, "--repl-diskless-sync-delay", "0", *options).start()
    followers: list[Server] = []
    try:
        for _ in range(replicas):
            words = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0", *options)
            followers.append(Server(kind, *words).start())
        until(lambda: all(map(_follows, followers)), "the replicas follow")
        yield primary, followers
    finally:
        for server in (*followers, primary):
            server.stop()


def _follows(server: Server) -> bool:
    with server.connect() as plain:
        return bool(plain.info("replication").get("master_link_status") == "up")


class Sentinel(Server):
    """One Sentinel, which decides alone that the primary is down, and only after ``hurry``.

    ``quorum``: how many Sentinels have to agree. ``lines``: of its settings; the last one of a kind counts.
    """

    def __init__(self, primary: int, *lines: str, kind: str = "valkey", quorum: int = 1) -> None:
        super().__init__(kind)
        self.password = next((line.split()[1] for line in lines if line.startswith("requirepass")), None)
        self._lines = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} 600000",
            f"sentinel failover-timeout {SERVICE} 2000",
            *lines,
        )

    @property
    def sentinel_url(self) -> str:
        """Where clients find it."""
        return f"redis+sentinel://127.0.0.1:{self.port}/{SERVICE}/0"

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        settings = folder / "sentinel.conf"
        general = (f"port {port}", "bind 127.0.0.1", f"dir {folder}", "protected-mode no")
        settings.write_text("\n".join((*general, *self._lines)) + "\n")
        with self._log().open("ab") as log:
            command = [str(self._binary), str(settings), "--sentinel"]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def knows_replicas(self, number: int) -> bool:
        """Whether it knows a replica to promote."""
        with self.connect() as plain:
            return len(plain.sentinel_slaves(SERVICE)) == number

    def hurry(self) -> None:
        """From now on a primary that is silent for half a second counts as down. Call it after killing the primary."""
        with self.connect() as plain:
            plain.execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 500)

    def primary(self) -> int:
        """The port of the primary, according to this Sentinel."""
        with self.connect() as plain:
            return int(plain.sentinel_masters()[SERVICE]["port"])


class TlsFront:
    """TLS for a server that is built without it, as all servers from pip are: a proxy that decrypts.

    ``context``: the certificate, and what it requires of clients.
    """

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._server = server
        self._context = context
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), name="tls-front", daemon=True)
        self.port = 0

    def __enter__(self) -> TlsFront:
        self._thread.start()
        assert self._ready.wait(_WITHIN)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(_WITHIN)

    async def _listen(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        await self._leave.wait()
        listening.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            for end in (back, writer):
                end.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()
