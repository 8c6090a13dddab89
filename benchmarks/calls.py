"""Callers in process: they call an application as a server does, without a socket, in sequence or concurrently.

Requests are made before the clock starts. Each call returns the seconds that the requests took and their statuses.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from benchmarks.interface import HELD, HOLD, PATH, App

Key = bytes | None
_AT_MOST = 120.0  # seconds for what is to end by itself


class Sent(NamedTuple):
    """The result of a batch."""

    seconds: float
    statuses: list[int]


class Caller(Protocol):
    """Sends one body, with different keys, to one application."""

    def send(self, keys: Sequence[Key], in_flight: int = 1) -> Sent:
        """A request for each key, ``in_flight`` of them at the same moment."""

    def hold(self, key: bytes) -> None:
        """Start a request that stays in flight until ``HELD`` opens; returns when it has reached the endpoint."""

    def close(self) -> None:
        """Let held requests end, and shut the application down."""


def _arrived(before: int, seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while HELD.arrived == before:
        if time.monotonic() > until:
            raise TimeoutError("the request that is to be held does not come to the endpoint")
        yield


class AsgiCaller:
    """For an ASGI application, on a loop that runs only while it is called. Runs its lifespan."""

    def __init__(self, app: App, body: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._body = body
        self._loop = loop
        self._held: list[asyncio.Task[None]] = []
        self._state: dict[str, Any] = {}
        self._lifespan = Lifespan(app, self._state)
        loop.run_until_complete(self._lifespan.start())

    def send(self, keys: Sequence[Key], in_flight: int = 1) -> Sent:
        """See ``Caller.send``."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(keys, in_flight), _AT_MOST))

    async def _send(self, keys: Sequence[Key], in_flight: int) -> Sent:
        exchanges = [(self._scope(key), Receive(self._body)) for key in keys]
        waiting, statuses = iter(exchanges), list[int]()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def work() -> None:
            for scope, receive in waiting:
                await self._app(scope, receive, send)

        start = time.perf_counter()
        if in_flight == 1:
            await work()
        else:
            await asyncio.gather(*(work() for _ in range(in_flight)))
        return Sent(time.perf_counter() - start, statuses)

    def hold(self, key: bytes) -> None:
        """See ``Caller.hold``."""
        before = HELD.arrived
        self._held.append(self._loop.create_task(self._hold(key)))
        for _ in _arrived(before, 10):
            self._loop.run_until_complete(asyncio.sleep(0.001))

    async def _hold(self, key: bytes) -> None:
        async def send(message: Any) -> None:
            pass

        await self._app(self._scope(key, hold=True), Receive(self._body), send)

    def close(self) -> None:
        """See ``Caller.close``."""
        HELD.open()
        self._loop.run_until_complete(asyncio.wait_for(self._close(), _AT_MOST))

    async def _close(self) -> None:
        await asyncio.gather(*self._held)
        await self._lifespan.stop()

    def _scope(self, key: Key, hold: bool = False) -> dict[str, Any]:
        headers = [
            (b"host", b"127.0.0.1:8000"),
            (b"user-agent", b"benchmark"),
            (b"accept", b"*/*"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
        ]
        headers += [(b"idempotency-key", key)] if key is not None else []
        headers += [(HOLD.encode(), b"1")] if hold else []
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": self._state.copy(),
        }


class Receive:
    """The server's side of a request with a complete body and a client that stays."""

    __slots__ = ("_body", "_read")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._read = False

    async def __call__(self) -> Any:
        if self._read:
            await asyncio.get_running_loop().create_future()
        self._read = True
        return {"type": "http.request", "body": self._body, "more_body": False}


class Lifespan:
    """Start and stop of an application, as a server runs them; skipped for an application without a lifespan."""

    def __init__(self, app: App, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._to: asyncio.Queue[Any] = asyncio.Queue()
        self._from: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises ``RuntimeError`` if the application refuses to start."""
        self._task = asyncio.create_task(self._run())
        await self._ask("startup")

    async def stop(self) -> None:
        """Raises ``RuntimeError`` if the application reports a failure."""
        assert self._task is not None
        if not self._task.done():
            await self._ask("shutdown")
            await self._task

    async def _ask(self, what: str) -> None:
        await self._to.put({"type": f"lifespan.{what}"})
        reply = await self._from.get()
        if reply is not None and reply["type"].endswith("failed"):
            raise RuntimeError(reply.get("message"))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        known = False

        async def send(message: Any) -> None:
            nonlocal known
            known = True
            await self._from.put(message)

        try:
            await self._app(scope, self._to.get, send)
        except Exception:
            if known:
                raise
        await self._from.put(None)


class WsgiCaller:
    """For a WSGI application; requests in flight have a thread each."""

    def __init__(self, app: App, body: bytes) -> None:
        self._app = app
        self._body = body
        self._threads = ThreadPoolExecutor(65)
        self._held: list[Future[int]] = []

    def send(self, keys: Sequence[Key], in_flight: int = 1) -> Sent:
        """See ``Caller.send``."""
        waiting, statuses = Shared([self._environ(key) for key in keys]), list[int]()

        def work() -> None:
            for environ in waiting:
                statuses.append(self._one(environ))

        start = time.perf_counter()
        if in_flight == 1:
            work()
        else:
            for thread in [self._threads.submit(work) for _ in range(in_flight)]:
                thread.result(_AT_MOST)
        return Sent(time.perf_counter() - start, statuses)

    def _one(self, environ: dict[str, Any]) -> int:
        status = 0

        def start_response(line: str, headers: object, exc_info: object = None) -> None:
            nonlocal status
            status = int(line[:3])

        iterable = self._app(environ, start_response)
        try:
            for _ in iterable:
                pass
        finally:
            if hasattr(iterable, "close"):
                iterable.close()
        return status

    def hold(self, key: bytes) -> None:
        """See ``Caller.hold``."""
        before = HELD.arrived
        self._held.append(self._threads.submit(self._one, self._environ(key, hold=True)))
        for _ in _arrived(before, 10):
            time.sleep(0.001)

    def close(self) -> None:
        """See ``Caller.close``."""
        HELD.open()
        for request in self._held:
            request.result(_AT_MOST)
        self._threads.shutdown()

    def _environ(self, key: Key, hold: bool = False) -> dict[str, Any]:
        keyed = {} if key is None else {"HTTP_IDEMPOTENCY_KEY": key.decode()}
        held = {f"HTTP_{HOLD.upper().replace('-', '_')}": "1"} if hold else {}
        return {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": PATH,
            "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(self._body)),
            "HTTP_HOST": "127.0.0.1:8000",
            "HTTP_USER_AGENT": "benchmark",
            "HTTP_ACCEPT": "*/*",
            **keyed,
            **held,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(self._body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }


class Shared:
    """Hands each item out once, to any thread."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            return next(self._items)
