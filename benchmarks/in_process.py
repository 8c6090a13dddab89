"""What the ASGI middleware adds to a request, in process: without a key, with a new key, and for a replay.

Each way is timed in turn, round after round, so that the ratios hold when the machine's speed drifts. No server and no
socket are in it, which makes the shares look larger than they are in use. Needs Starlette; run it as
``python benchmarks/in_process.py [backend URL]``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from open_idempotency.asgi import IdempotencyMiddleware

ROUNDS, REQUESTS = 15, 800
BODY = b'{"sku": "mug", "quantity": 2, "card": "tok_anna"}'
HEADERS = [
    (b"host", b"localhost"),
    (b"user-agent", b"benchmark"),
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
    (b"authorization", b"Bearer something"),
]
App = Callable[[Any, Any, Any], Awaitable[None]]
Way = Callable[[], Awaitable[None]]


async def charge(request: Request) -> JSONResponse:
    """Read the order, answer with it."""
    return JSONResponse({"charged": await request.json()}, status_code=201)


class Layer:
    """The least that a pure ASGI middleware can do."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def send_one(app: App, key: bytes | None = None) -> None:
    """One POST through the application."""
    headers = HEADERS if key is None else [*HEADERS, (b"idempotency-key", key)]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/charges",
        "raw_path": b"/charges",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        pass

    await app(scope, receive, send)


async def time_one(way: Way) -> float:
    """Microseconds a request."""
    start = time.perf_counter()
    for _ in range(REQUESTS):
        await way()
    return (time.perf_counter() - start) / REQUESTS * 1e6


async def main(backend: str) -> None:
    """Print the median of each way, and its ratio to the do-nothing layer."""
    app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    layer, protected = Layer(app), IdempotencyMiddleware(app, backend)
    used = uuid4().hex.encode()
    ways: dict[str, Way] = {
        "bare application": lambda: send_one(app),
        "do-nothing layer": lambda: send_one(layer),
        "without a key": lambda: send_one(protected),
        "new key": lambda: send_one(protected, uuid4().hex.encode()),
        "replay": lambda: send_one(protected, used),
    }
    await send_one(protected, used)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(await time_one(way))
    floor = times["do-nothing layer"]
    for name, taken in times.items():
        ratio = statistics.median(one / other for one, other in zip(taken, floor, strict=True))
        print(f"{name:18} {statistics.median(taken):8.1f} us   {ratio:6.2f} x the do-nothing layer")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://"))
