"""The length of one request's path: Python calls inside the package, files that it visits, and changes of file.

``python -m benchmarks.request_calls [--quick]`` prints a line of JSON for each row. The count is that of the event
loop's thread, from the call of the middleware to its return, for a request of 1 kB after others have warmed everything
up. A generator or coroutine that is resumed counts as a call each time, since a reader follows it there each time. A
comprehension does not count: in CPython before 3.12 it is a function, to a reader and in later versions a part of its
function.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import open_idempotency
from benchmarks.heartbeats import row
from benchmarks.interface import BackendName
from benchmarks.servers import Servers
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.starlette import IdempotencyMiddleware as StarletteMiddleware

_PACKAGE = str(Path(open_idempotency.__file__).parent)
_BACKENDS: tuple[BackendName, ...] = ("memory", "redis", "postgres")
_WARM = 20
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>")
#: what one keyed request on Redis may cost
_CALLS_AT_MOST, _FILES_AT_MOST, _CHANGES_AT_MOST = 140, 20, 60


class Way:
    """The calls of one thread, while it is watched."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def watch(self, frame: FrameType, event: str, _: object) -> None:
        """A profile function."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_PACKAGE) and code.co_name not in _COMPREHENSIONS:
            self.files.append(code.co_filename)

    @property
    def changes(self) -> int:
        """How often the next call is in another file."""
        return sum(before != after for before, after in zip(self.files, self.files[1:], strict=False))


async def endpoint(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and respond with a small one."""
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def post(app: Any, key: bytes | None) -> None:
    """One request, as a server makes it."""
    headers = [(b"host", b"a"), *([] if key is None else [(b"idempotency-key", key)])]
    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(1000), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    await app(scope, receive, send)


async def follow(app: Any, key: bytes | None) -> Way:
    """The path of one request."""
    way = Way()
    before = sys.getprofile()
    gc.collect()  # else what is left of other applications might be finalized on the way
    sys.setprofile(way.watch)
    try:
        await post(app, key)
    finally:
        sys.setprofile(before)
    return way


async def ways(app: Any) -> dict[str, Way]:
    """The paths of the kinds of request, on a warm backend."""
    for number in range(_WARM):
        await post(app, b"0123456789abcdef-warm-%d" % number)
    key = b"0123456789abcdef-watched"
    found = {"no key": await follow(app, None), "new key": await follow(app, key), "replay": await follow(app, key)}
    await app.engine.aio.backend.close()
    return found


def measure(what: str, app: Any, *, limited: bool) -> Iterator[dict[str, Any]]:
    """The rows of one application."""
    for kind, way in asyncio.run(ways(app)).items():
        bounded = limited and kind == "new key"
        yield row(f"{what}, {kind}: calls", len(way.files), "calls", _CALLS_AT_MOST if bounded else None)
        yield row(f"{what}, {kind}: files", len(set(way.files)), "files", _FILES_AT_MOST if bounded else None)
        yield row(f"{what}, {kind}: changes of file", way.changes, "", _CHANGES_AT_MOST if bounded else None)


def main() -> None:
    """Count each backend in turn."""
    with Servers() as servers:
        for name in _BACKENDS:
            app = IdempotencyMiddleware(endpoint, servers.url(name))
            app.engine.backend.migrate()
            for one in measure(f"asgi, {name}", app, limited=name == "redis"):
                print(json.dumps(one), flush=True)
        for one in measure("starlette, redis", StarletteMiddleware(endpoint, servers.url("redis")), limited=False):
            print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main()
