"""What a request costs whose body was made to be expensive: the longest hold of the event loop, and memory.

``python -m benchmarks.expensive_bodies [--quick]`` prints a line of JSON for each row. Each body has the 10 MiB that
the default policy lets in, or, where JSON is parsed, is the worst within its bounds. It arrives in pieces of 64 KiB,
and its handler reads it. Another task of the loop notes how much processor time passes between two of its turns: that
of the loop's thread, so that a busy machine changes little. Memory is what Python allocates at most, in multiples of
the body.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

from open_idempotency._core.fingerprint import JSON_BYTES, JSON_MARKS, MULTIPART_PARTS
from open_idempotency.asgi import IdempotencyMiddleware

SIZE = 10 * 1024 * 1024 - 64
PIECE = 64 * 1024
ROUNDS, ROUNDS_QUICK = 5, 1
LONGEST_HOLD_MS, MOST_MEMORY = 20, 3

_JSON, _FORM, _BYTES = b"application/json", b"multipart/form-data; boundary=", b"application/octet-stream"
#: how each body is made, and its media type
BODIES: Mapping[str, tuple[Callable[[], bytes], bytes]] = {
    "JSON, 10 MiB of numbers": (lambda: b'[{"a": 1},' + b"1," * (SIZE // 2 - 10) + b"1]", _JSON),
    "JSON, 10 MiB of brackets": (lambda: b"[" * SIZE, _JSON),
    "JSON, the most objects that are parsed": (lambda: b"[ " + b'{"a":1},' * (JSON_MARKS // 3 - 1) + b"1]", _JSON),
    "JSON, the longest text that is parsed": (lambda: b'[ "' + b"x" * (JSON_BYTES - 5) + b'"]', _JSON),
    "multipart, 2 million parts": (lambda: b"\r\n--b" * (SIZE // 5), _FORM + b"b"),
    "multipart, the most parts that are distinguished": (
        lambda: b"\r\n--b".join([b"x" * (SIZE // MULTIPART_PARTS - 5)] * (MULTIPART_PARTS - 1)),
        _FORM + b"b",
    ),
    "multipart, one file of 10 MiB": (lambda: b"--b\r\n\r\n" + b"x" * (SIZE - 20) + b"\r\n--b--", _FORM + b"b"),
    "10 MiB of bytes": (lambda: b"x" * SIZE, _BYTES),
}


async def handler(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and respond."""
    more = True
    while more:
        more = (await receive())["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


async def post(app: Any, body: bytes, media_type: bytes) -> None:
    """One request with a key of its own."""
    pieces = iter(range(0, len(body), PIECE))

    async def receive() -> dict[str, Any]:
        start = next(pieces)
        return {"type": "http.request", "body": body[start : start + PIECE], "more_body": start + PIECE < len(body)}

    async def send(message: Any) -> None:
        pass

    headers = [(b"idempotency-key", os.urandom(16).hex().encode()), (b"content-type", media_type)]
    scope = {"type": "http", "method": "POST", "path": "/charges", "query_string": b"", "headers": headers}
    await app(scope, receive, send)


async def longest_hold(app: Any, body: bytes, media_type: bytes) -> float:
    """Milliseconds of processor time during which the loop's other tasks had to wait."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0)
    await post(app, body, media_type)
    await asyncio.sleep(0)
    watching.cancel()
    return longest * 1000


async def most_memory(app: Any, body: bytes, media_type: bytes) -> float:
    """The peak of allocated memory, in multiples of the body."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await post(app, body, media_type)
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return most / len(body)


async def measure(rounds: int) -> None:
    """Print each row when it is known; the longest hold is the longest of all rounds."""
    app = IdempotencyMiddleware(handler, "memory://", fingerprint="json")
    await post(app, b"{}", _JSON)
    gc.freeze()  # a collection of what a process has imported is nothing that a request does
    for name, (make, media_type) in BODIES.items():
        body = make()
        hold = max([await longest_hold(app, body, media_type) for _ in range(rounds)])
        _print(f"longest hold: {name}", hold, "ms", LONGEST_HOLD_MS)
        if len(body) > SIZE // 2:
            _print(f"memory: {name}", await most_memory(app, body, media_type), "bodies", MOST_MEMORY)


def _print(what: str, value: float, unit: str, target: float) -> None:
    print(json.dumps({"row": what, "value": round(value, 2), "unit": unit, "target": target}), flush=True)


def main() -> None:
    """Measure everything."""
    asyncio.run(measure(ROUNDS_QUICK if "--quick" in sys.argv[1:] else ROUNDS))


if __name__ == "__main__":
    main()
