"""How many bytes a live record takes in each backend, and how many a request takes while it runs.

``python -m benchmarks.memory [--quick]`` prints a line of JSON for each row. Records are completed ones, with a
response of 1 kB; the memory backend is weighed by what Python allocated, SQLite by its files, Redis by ``used_memory``.
A request in flight has a body of 1 kB and is in its handler: the row is what it holds with the middleware around it
(exchange, attempt, lease, its record in the memory backend, the heartbeat's entry), less what it holds without.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.interface import body_of
from benchmarks.servers import Servers
from open_idempotency import open_backend
from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import encode_response
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Backend, Claim, Complete, Leased

RECORDS, RECORDS_QUICK = 20_000, 2_000
IN_FLIGHT, IN_FLIGHT_QUICK = 5_000, 500
BODY = b"b" * 1024
_RESPONSE = Response(201, [(b"content-type", b"application/json"), (b"location", b"/charges/1")], body_of(1024))
App = Callable[[Any, Any, Any], Awaitable[None]]


def fill(backend: Backend, count: int) -> None:
    """Complete this many records, no two of which share a byte."""
    for _ in range(count):
        leased = backend.claim(Claim(os.urandom(32), b"\x01" + os.urandom(32), os.urandom(16), 30.0, 86_400.0))
        assert isinstance(leased, Leased)
        backend.complete(Complete(leased.lease, encode_response(_RESPONSE)))


def grown(backend: Backend, count: int, weigh: Callable[[], int]) -> float:
    """Bytes for each record, without the fixed part."""
    fill(backend, count // 10)
    before = weigh()
    fill(backend, count)
    return (weigh() - before) / count


def allocated() -> int:
    """Bytes that Python holds."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def file_size(url: str) -> int:
    """Bytes of a SQLite database, what is not yet in its main file included."""
    path = Path(urlsplit(url).path)
    return sum(each.stat().st_size for each in path.parent.glob(path.name + "*"))


def records(servers: Servers, count: int) -> Iterator[dict[str, Any]]:
    """A row for each backend whose weight can be measured."""
    tracemalloc.start()
    yield row("a completed record of 1 kB: memory", grown(open_backend("memory://"), count, allocated))
    tracemalloc.stop()
    url = servers.url("sqlite-full")
    yield row("a completed record of 1 kB: sqlite", grown(open_backend(url), count, lambda: file_size(url)))
    backend = open_backend(servers.url("redis"))
    with servers.redis.connect() as client:
        yield row("a completed record of 1 kB: redis", grown(backend, count, lambda: client.info()["used_memory"]))


def in_flight(count: int) -> dict[str, Any]:
    """The memory that a running request takes because it is protected."""
    with_it = asyncio.run(_held(lambda app: IdempotencyMiddleware(app, "memory://"), count))
    return row("a request in flight with a body of 1 kB", with_it - asyncio.run(_held(lambda app: app, count)))


async def _held(wrap: Callable[[App], App], count: int) -> float:
    """Bytes for each of this many requests that are in their handler, which has read the body and kept nothing."""
    standing, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        standing.release()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    app = wrap(handler)
    first = await _some(app, 1, standing)  # connects, and starts what there is one of
    tracemalloc.start()
    before = allocated()
    requests = await _some(app, count, standing)
    held = (allocated() - before) / count
    tracemalloc.stop()
    go_on.set()
    await asyncio.gather(*first, *requests)
    return held


async def _some(app: App, count: int, standing: asyncio.Semaphore) -> list[asyncio.Task[None]]:
    """This many requests that have reached their handler."""
    requests = [asyncio.ensure_future(_request(app)) for _ in range(count)]
    for _ in requests:
        await standing.acquire()
    return requests


async def _request(app: App) -> None:
    headers = [(b"idempotency-key", os.urandom(16).hex().encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/charges",
        "raw_path": b"/charges",
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(bytearray(BODY)), "more_body": False}

    async def send(message: Any) -> None:
        pass

    await app(scope, receive, send)


def row(what: str, value: float) -> dict[str, Any]:
    """One line of the results."""
    return {"row": what, "value": round(value), "unit": "bytes", "target": None}


def main() -> None:
    """Measure everything."""
    logging.getLogger("open_idempotency").addHandler(logging.NullHandler())
    quick = "--quick" in sys.argv[1:]
    with Servers() as servers:
        for one in records(servers, RECORDS_QUICK if quick else RECORDS):
            print(json.dumps(one), flush=True)
    print(json.dumps(in_flight(IN_FLIGHT_QUICK if quick else IN_FLIGHT)), flush=True)


if __name__ == "__main__":
    main()
