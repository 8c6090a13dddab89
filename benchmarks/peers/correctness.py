"""Checks that a peer works before it is timed: of one key sent twice, one request runs, and both get the same JSON.

    python -m benchmarks.peers.correctness [names]

checks each installed peer, on each of its backends. The time of a peer that runs twice means nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple
from uuid import uuid4

from benchmarks import peers
from benchmarks.calls import Lifespan, Receive
from benchmarks.interface import HELD, HOLD, PATH, App, BackendName, Peer, body_of, peer
from benchmarks.servers import Servers

_BODY = body_of(1000)
_SECONDS = 20.0
_FIELDS = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(_BODY))}


class Got(NamedTuple):
    """What a client sees of a response."""

    status: int
    body: bytes


def fault(one: Peer, backend: BackendName, url: str, loop: asyncio.AbstractEventLoop) -> str | None:
    """What is wrong with a peer on a backend, or None."""
    HELD.close()
    app = one.make(backend, url)
    if one.STYLE == "wsgi":
        HELD.open()  # a second run is counted, and ends
        key = str(uuid4())
        return _judge(_call(app, key), _call(app, key, hold=True))
    return loop.run_until_complete(asyncio.wait_for(_fault(app), _SECONDS))


async def _fault(app: App) -> str | None:
    key, state = str(uuid4()), dict[str, Any]()
    lifespan = Lifespan(app, state)
    await lifespan.start()
    first = await _acall(app, key, state)
    second = asyncio.ensure_future(_acall(app, key, state, hold=True))
    while not second.done():
        if HELD.arrived:
            HELD.open()
        await asyncio.wait([second], timeout=0.01)
    await lifespan.stop()
    return _judge(first, second.result())


def _judge(first: Got, second: Got) -> str | None:
    if not 200 <= first.status < 300:
        return f"the first request gets {first.status}: {first.body[:80]!r}"
    if HELD.arrived:
        return "wrong: ran twice"
    if first.status == second.status and json.loads(first.body) == json.loads(second.body):
        return None
    return f"wrong: {first.status} is replayed as {second.status} {second.body[:80]!r}"


def _fields(key: str, hold: bool) -> dict[str, str]:
    return {**_FIELDS, "Idempotency-Key": key, **({HOLD: "1"} if hold else {})}


async def _acall(app: App, key: str, state: dict[str, Any], hold: bool = False) -> Got:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in _fields(key, hold).items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": state.copy(),
    }
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, Receive(_BODY), send)
    return Got(messages[0]["status"], b"".join(message.get("body", b"") for message in messages[1:]))


def _call(app: App, key: str, hold: bool = False) -> Got:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": PATH,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": _FIELDS["Content-Type"],
        "CONTENT_LENGTH": _FIELDS["Content-Length"],
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in _fields(key, hold).items()},
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(_BODY),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    statuses: list[int] = []

    def start_response(line: str, headers: object, exc_info: object = None) -> None:
        statuses.append(int(line[:3]))

    iterable = app(environ, start_response)
    try:
        body = b"".join(iterable)
    finally:
        if hasattr(iterable, "close"):
            iterable.close()
    return Got(statuses[-1], body)


def modules() -> Iterator[tuple[str, Peer]]:
    """The peers, by the names of their modules."""
    for found in sorted(pkgutil.iter_modules(peers.__path__), key=lambda found: found.name):
        module = importlib.import_module(f"{peers.__name__}.{found.name}")
        if hasattr(module, "make"):
            yield found.name, peer(module)


def main(names: list[str], write: Callable[[str], object] = print) -> None:
    """Check all peers, or those that are named."""
    logging.disable(logging.CRITICAL)
    with Servers() as servers, closing(asyncio.new_event_loop()) as loop:
        for name, one in modules():
            if names and name not in names:
                continue
            if not one.available():
                write(f"{name:40} not installed")
                continue
            for backend in one.BACKENDS:
                found = _try(one, backend, servers, loop)
                write(f"{name:40} {backend:14} {found or 'right'}")


def _try(one: Peer, backend: BackendName, servers: Servers, loop: asyncio.AbstractEventLoop) -> str | None:
    try:
        return fault(one, backend, servers.url(backend), loop)
    except Exception as error:
        return f"does not run: {type(error).__name__}: {error}"


if __name__ == "__main__":
    main(sys.argv[1:])
