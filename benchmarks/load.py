"""A cheap HTTP client as a separate process: ``python -m benchmarks.load PORT CONNECTIONS SECONDS SIZE KIND``.

Each connection sends its next request when it has the last one's response. The first moments do not count. Prints the
rate and the latencies as JSON. It parses only the part of HTTP/1.1 that the suite's responses need.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from collections import Counter
from typing import Any
from uuid import uuid4

from benchmarks.interface import PATH, STATUS, Kind, body_of

_HEAD = "POST {} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
WARM = 0.3  # seconds that are not counted
LEAST = 100  # responses, however long they take


class Load:
    """The state that all connections share."""

    def __init__(self, port: int, kind: Kind, size: int, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._port = port
        self._connecting: set[asyncio.Task[Any]] = set()
        self.body = body_of(size)
        self._kind = kind
        self._replayed = str(uuid4())
        self._from = time.perf_counter() + WARM
        self._until = self._from + seconds
        self.done = False
        self.seconds = 0.0
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        #: set by the first response
        self.responded = asyncio.Event()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connect(self) -> None:
        """Begin a connection."""
        connecting = self._loop.create_task(self._loop.create_connection(lambda: Client(self), "127.0.0.1", self._port))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connected)

    def _connected(self, connecting: asyncio.Task[Any]) -> None:
        self._connecting.discard(connecting)
        if connecting.exception() is not None:
            self.fail(f"cannot connect: {connecting.exception()}")

    def request(self) -> bytes:
        """The next one to send."""
        key = self._replayed if self._kind == "replay" else str(uuid4())
        field = "" if self._kind == "no-key" else f"idempotency-key: {key}\r\n"
        return _HEAD.format(PATH, len(self.body), field).encode() + self.body

    def count(self, sent: float, now: float, status: str) -> bool:
        """Count a response; whether to go on."""
        self.responded.set()
        if now >= self._from and not self.done:
            self.statuses[status] += 1
            if status == str(STATUS):
                self.latencies.append(now - sent)
            self.seconds = now - self._from
            self.done = now >= self._until and sum(self.statuses.values()) >= LEAST
        return not self.done

    def fail(self, why: str) -> None:
        """End everything."""
        self.responded.set()
        if not self.ended.done():
            self.ended.set_exception(RuntimeError(why))


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._received = b""
        self._sent = time.perf_counter()
        self._transport.write(self._load.request())

    def data_received(self, data: bytes) -> None:
        """Go on when the response is whole."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _LENGTH.search(head + b"\r\n")
        if length is None:
            self._load.fail(f"no length: {head!r}")
        elif len(body) == int(length[1]):
            if self._load.count(self._sent, time.perf_counter(), head[9:12].decode()):
                self._send()
            else:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """The last thing that happens: at the end, or early, as servers do after an error."""
        if not self._load.done:
            self._load.connect()
        elif not self._load.ended.done():
            self._load.ended.set_result(None)


async def run(port: int, connections: int, seconds: float, size: int, kind: Kind) -> dict[str, Any]:
    """Load the server for so long; its rate and latencies."""
    load = Load(port, kind, size, seconds)
    for _ in range(connections):
        load.connect()
        await load.responded.wait()  # which is what is replayed
    await asyncio.wait_for(load.ended, seconds + 60)
    if len(load.latencies) < 2:
        raise RuntimeError(f"hardly a response was {STATUS}: {load.statuses}")
    percentiles = statistics.quantiles(load.latencies, n=100)
    return {
        "requests_a_second": len(load.latencies) / load.seconds,
        "statuses": load.statuses,
        "p50_ms": percentiles[49] * 1e3,
        "p99_ms": percentiles[98] * 1e3,
    }


def main() -> None:
    """See above."""
    port, connections, seconds, size, kind = sys.argv[1:]
    work = run(int(port), int(connections), float(seconds), int(size), kind)  # type: ignore[arg-type]  # one of them
    print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main()
