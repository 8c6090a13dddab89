"""Clients that record what they see, servers that are killed meanwhile, and the histories of both."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from uuid import uuid4

from examples.workers import Worker
from tests.history.checker import NEVER, Operation, Result

LEASE = 2.0
#: seconds for which a client waits for its response, and for which the whole load may take
RESPONSE_WITHIN, LOAD_WITHIN = 5.0, 60.0
BODIES = ("mug", "mug", "mug", "mug", "mug", "mug", "mug", "cup")


class Servers:
    """Processes that share one backend; each is killed and restarted on the same folder."""

    def __init__(self, folder: Path, backend: str, count: int) -> None:
        self._folder = folder
        self._environment = {
            "HISTORY_BACKEND": backend,
            "HISTORY_LEASE": str(LEASE),
            "HISTORY_EFFECTS": str(folder / "effects"),
        }
        self.kills = 0
        self._count = count
        self._running: list[Worker] = []

    def start(self) -> None:
        """Start all of them."""
        self._running += [self._start() for _ in range(self._count)]
        for worker in self._running:
            worker.wait_until_it_serves()

    def _start(self) -> Worker:
        command = ["uvicorn", "tests.history.app:app", "--port", "0", "--log-level", "info", "--no-access-log"]
        return Worker(command, self._folder, **self._environment)

    @property
    def ports(self) -> list[int]:
        """The current ports."""
        return [worker.port for worker in self._running if worker.port]

    async def kill_one(self, random: Random) -> None:
        """Kill one server with SIGKILL, and start another one in its place."""
        place = random.randrange(len(self._running))
        self._running[place].stop()
        self.kills += 1
        self._running[place] = self._start()
        await asyncio.to_thread(self._running[place].wait_until_it_serves)

    def stop(self) -> None:
        """End all of them."""
        for worker in self._running:
            worker.stop()

    def effects(self) -> list[dict[str, object]]:
        """The lines of the effect file."""
        path = self._folder / "effects"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def serving(folder: Path, backend: str, count: int = 2) -> Iterator[Servers]:
    """Run servers within a block."""
    servers = Servers(folder, backend, count)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@dataclass(frozen=True)
class Seen:
    """One request as its client saw it."""

    key: str
    operation: Operation


class Load:
    """All clients of one run.

    ``keys``: the number of keys; ``clients``: the number of concurrent clients of each key.
    """

    def __init__(self, servers: Servers, random: Random, keys: int, clients: int, rounds: int) -> None:
        self.seen: list[Seen] = []
        self._servers = servers
        self._random = random
        self._keys = [f"key-{number}-{uuid4()}" for number in range(keys)]
        self._clients = clients
        self._rounds = rounds
        self._count = 0
        self._run = uuid4().hex[:8]

    async def run(self, kills: int) -> None:
        """Run the clients while servers are killed."""
        clients = [self._client(key) for key in self._keys for _ in range(self._clients)]
        await asyncio.wait_for(asyncio.gather(self._kill(kills), *clients), LOAD_WITHIN)

    async def _kill(self, kills: int) -> None:
        for _ in range(kills):
            await asyncio.sleep(self._random.uniform(0.1, 0.6))
            await self._servers.kill_one(self._random)

    async def _client(self, key: str) -> None:
        await asyncio.sleep(self._random.choice([0.0, 0.0, self._random.uniform(0.0, 2.0)]))
        for _ in range(self._rounds):
            await self._ask(key, self._random.choice(BODIES))
            await asyncio.sleep(self._random.choice([0.0, 0.05, 0.5, LEASE / 2]))

    async def _ask(self, key: str, body: str) -> None:
        self._count += 1
        name = f"{self._run}-{self._count}"
        # Some clients do not wait for their response.
        patience = self._random.uniform(0.005, 0.1) if self._random.random() < 0.15 else RESPONSE_WITHIN
        called = time.monotonic()
        try:
            reply = await asyncio.wait_for(self._send(key, body, name), patience)
        except (OSError, EOFError, asyncio.TimeoutError, ValueError):
            reply = None
        returned = time.monotonic()
        result, response = Result.UNKNOWN, 0
        if reply is not None:
            result, response = _read(*reply)
        end = NEVER if result is Result.UNKNOWN else returned
        self.seen.append(Seen(key, Operation(name, body, called, end, result, response)))

    async def _send(self, key: str, body: str, name: str) -> tuple[int, bytes, bytes]:
        port = self._random.choice(self._servers.ports)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = (
                f"POST /orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
                f'Content-Type: text/plain\r\nIdempotency-Key: "{key}"\r\nX-Operation: {name}\r\n\r\n'
            )
            writer.write(head.encode() + body.encode())
            whole = await reader.read()
        finally:
            writer.close()
        header, _, content = whole.partition(b"\r\n\r\n")
        status = int(header.split(b" ", 2)[1]) if header.startswith(b"HTTP/1.1 ") else 0
        length = next(
            (int(line[15:]) for line in header.split(b"\r\n") if line.lower().startswith(b"content-length:")), None
        )
        if not status or (length is not None and len(content) < length):
            raise EOFError("the connection broke in the middle of the response")
        return status, header.lower(), content


def _read(status: int, header: bytes, body: bytes) -> tuple[Result, int]:
    if status == 201:
        if b"idempotency-status: unrecorded" in header:
            return Result.UNKNOWN, 0
        return (Result.REPLAYED if b"idempotent-replayed: true" in header else Result.RAN), int(body)
    if status == 500 and b"x-token" in header:
        return Result.FAILED, 0
    if status == 422:
        return Result.MISMATCH, 0
    if status == 409 and b"in-progress" in body:
        return Result.BUSY, 0
    return Result.UNKNOWN, 0


def histories(seen: Sequence[Seen], effects: Sequence[dict[str, object]]) -> dict[str, list[Operation]]:
    """The operations of each key: what clients saw, and what the effect file says of each operation's run."""
    runs = {str(line["operation"]): line for line in effects if "token" in line}
    found: dict[str, list[Operation]] = defaultdict(list)
    for one in seen:
        operation, line = one.operation, runs.get(one.operation.name)
        if line is not None:
            operation = replace(operation, run=int(str(line["token"])), ran_at=float(str(line["at"])))
            if operation.result is Result.BUSY:
                # It ran, so this 409 is that of a superseded owner, which says nothing about the record.
                operation = replace(operation, result=Result.UNKNOWN, returned=NEVER)
        found[one.key].append(operation)
    return found
