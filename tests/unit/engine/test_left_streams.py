"""Streams whose clients have left, message by message: the rule of ``Grace`` on ASGI and WSGI."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from open_idempotency import IdempotencyPolicy, idem
from open_idempotency._engine import shutdown
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.starlette import IdempotencyMiddleware as StarletteMiddleware
from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware
from tests.unit.builders import Clock
from tests.unit.wsgi.wsgi_server import PLAIN, begin, environ, only_record, serve, streaming

pytestmark = pytest.mark.anyio

PATIENCE = 10
#: the grace of streams that have no end: how long their tests take
GRACE = 0.2
#: the grace of streams that end: they end within it on any machine
ENOUGH = PATIENCE * 2
Message = dict[str, Any]


class Server:
    """The server's side of successive requests with one key. ``left``: set it for the disconnect."""

    def __init__(self, app: Any, spec_version: str = "2.3") -> None:
        self._app = app
        self._key = str(uuid4()).encode()
        self._spec_version = spec_version
        self.left = anyio.Event()
        self.came = anyio.Event()
        self.sent: list[Message] = []

    async def run(self) -> None:
        """Run one request until the application ends."""
        self.sent.clear()
        asked: list[bool] = []

        async def receive() -> Message:
            if not asked:
                asked.append(True)
                return {"type": "http.request", "body": b"{}", "more_body": False}
            if not self.left.is_set():  # after the disconnect a server does not wait
                await self.left.wait()
            return {"type": "http.disconnect"}

        scope = {
            "type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
            "headers": [(b"idempotency-key", self._key)],
            "asgi": {"version": "3.0", "spec_version": self._spec_version},
        }  # fmt: skip
        with anyio.fail_after(PATIENCE):
            await self._app(scope, receive, self._send)

    async def leave_after_first_part(self) -> None:
        """One request whose client leaves when it has received some of the body."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.run)
            await self.came.wait()
            self.left.set()

    async def retry(self) -> tuple[bytes, bool]:
        """Repeat the request with a client that stays; return the body, and whether it is a replay."""
        self.left = anyio.Event()
        await self.run()
        body = b"".join(message.get("body", b"") for message in self.sent)
        return body, (b"idempotent-replayed", b"true") in self.sent[0]["headers"]

    async def _send(self, message: Message) -> None:
        if self.left.is_set() and self._spec_version >= "2.4":
            raise BrokenPipeError
        self.sent.append(message)
        if message.get("body"):
            self.came.set()


class Through(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        return await call_next(request)


class Parts:
    """The parts of a stream: this many, or without an end, in the first attempt."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        self.attempts: list[int] = []

    def __call__(self) -> Iterator[bytes]:
        self.attempts.append(idem.attempt)
        return iter(lambda: b"x", b"") if self._count is None and idem.attempt == 1 else iter([b"x"] * 4)

    async def awaited(self) -> Any:
        for part in self():
            yield part
            await anyio.sleep(0.01)

    def blocking(self) -> Iterator[bytes]:
        for part in self():
            yield part
            threading.Event().wait(0.01)


def starlette_app(respond: Callable[[], Any], between: bool, grace: float) -> Starlette:
    async def endpoint(request: Request) -> Response:
        return StreamingResponse(respond())

    layers = [Middleware(StarletteMiddleware, backend="memory://", stream_grace=grace)]
    layers += [Middleware(Through)] * between
    return Starlette(routes=[Route("/", endpoint, methods=["POST"])], middleware=layers)


@pytest.mark.parametrize("between", [False, True], ids=["alone", "BaseHTTPMiddleware"])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("way", ["awaited", "blocking"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Starlette leaves iterators to the garbage collector
async def test_starlettes_stream_ends_within_its_grace_and_is_replayed(
    way: str, spec_version: str, between: bool
) -> None:
    """L-05a: whether the server reports the disconnect by `receive()` or by `send()`."""
    parts = Parts(4)
    server = Server(starlette_app(getattr(parts, way), between, ENOUGH), spec_version)
    await server.leave_after_first_part()
    assert await server.retry() == (b"xxxx", True)
    assert parts.attempts == [1]


@pytest.mark.parametrize("between", [False, True], ids=["alone", "BaseHTTPMiddleware"])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("way", ["awaited", "blocking"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_starlettes_stream_without_an_end_is_closed_after_its_grace(
    way: str, spec_version: str, between: bool
) -> None:
    """L-05a: its attempt has failed, and the retry runs."""
    parts = Parts(None)
    server = Server(starlette_app(getattr(parts, way), between, GRACE), spec_version)
    await server.leave_after_first_part()
    assert await server.retry() == (b"xxxx", False)
    assert parts.attempts == [1, 2]


async def test_a_stream_whose_client_left_before_it_began_has_its_grace() -> None:
    """L-05a: Starlette checks for the disconnect right before it starts its response."""
    parts = Parts(4)
    server = Server(starlette_app(parts.awaited, False, ENOUGH))
    server.left.set()
    await server.run()
    assert await server.retry() == (b"xxxx", True)
    assert parts.attempts == [1]


async def test_a_process_that_stands_still_before_a_stream_begins_takes_nothing_of_its_grace() -> None:
    """L-05a: the disconnect is withheld from an application that is about to stream for some turns of the loop, not for
    a time.
    """
    attempts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(idem.attempt)
        await receive()
        async with anyio.create_task_group() as group:

            async def listen() -> None:
                await receive()
                group.cancel_scope.cancel()

            group.start_soon(listen)
            await anyio.sleep(0.001)
            time.sleep(0.2)  # the whole process stands still
            for _ in range(10):
                await anyio.sleep(0)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"whole"})

    server = Server(IdempotencyMiddleware(app, "memory://", stream_grace=ENOUGH))
    server.left.set()
    await server.run()
    assert await server.retry() == (b"whole", True)
    assert attempts == [1]


def _streaming_app(attempts: list[int], between: Callable[[Any], Any]) -> Any:
    """Plain ASGI: a stream that ends when ``between`` returns something true, or in its second attempt."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(idem.attempt)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while idem.attempt == 1 and not await between(receive):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await anyio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"end"})

    return app


async def test_an_application_that_does_not_listen_is_stopped_by_its_send() -> None:
    """L-05a: the middleware listens for the disconnect, and the server gets no error."""
    attempts: list[int] = []

    async def never(receive: Any) -> bool:
        return False

    middleware = IdempotencyMiddleware(_streaming_app(attempts, never), "memory://", stream_grace=GRACE)
    server = Server(middleware)
    await server.leave_after_first_part()
    assert await server.retry() == (b"xend", False)
    assert attempts == [1, 2]


async def looks(receive: Any) -> bool:
    """Like Starlette's ``request.is_disconnected()``: a ``receive()`` that would wait is cancelled."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        return bool((await receive())["type"] == "http.disconnect")
    return False


async def test_a_stream_that_its_application_ends_because_its_client_left_is_no_response() -> None:
    """L-05a, R-06: the application gets the disconnect when its grace is over; a stream that it ends then is not
    complete.
    """
    attempts: list[int] = []
    middleware = IdempotencyMiddleware(_streaming_app(attempts, looks), "memory://", stream_grace=GRACE)
    server = Server(middleware)
    await server.leave_after_first_part()
    assert await server.retry() == (b"xend", False)
    assert attempts == [1, 2]


@pytest.mark.parametrize("spool_bytes", [1024, 0], ids=["in memory", "on disk"])
async def test_before_its_response_an_application_hears_at_once(spool_bytes: int) -> None:
    """R-06: an application that only polls gets the disconnect at its second poll at the latest."""
    heard: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        heard.extend([await looks(receive), await looks(receive)])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"stopped"})

    policy = IdempotencyPolicy(stream_grace=ENOUGH, spool_bytes=spool_bytes)
    server = Server(IdempotencyMiddleware(app, "memory://", policy=policy))
    server.left.set()
    await server.run()
    assert heard[1]
    assert await server.retry() == (b"stopped", True)


async def test_the_disconnect_comes_when_the_stream_has_ended() -> None:
    """R-06: a listener beside the stream does not wait for the rest of its grace."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def listen() -> None:
            heard.append((await receive())["type"])

        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await server.left.wait()
            await send({"type": "http.response.body", "body": b"y"})

    server = Server(IdempotencyMiddleware(app, "memory://", stream_grace=ENOUGH))
    await server.leave_after_first_part()
    assert heard == ["http.disconnect"]
    assert await server.retry() == (b"xy", True)


# WSGI


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def test_a_wsgi_stream_without_an_end_is_closed_after_its_grace(backend: MemoryBackend) -> None:
    """L-05a: its thread is free again, and its attempt has failed."""
    closed: list[bool] = []

    def body() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    sent = begin(WsgiMiddleware(streaming(body), backend, stream_grace=GRACE, max_response_bytes=2**40), environ())
    next(sent.chunks)
    sent.close()
    assert closed == [True]
    assert only_record(backend).status is Status.FAILED


def test_a_wsgi_stream_that_ends_late_is_stored(backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """L-05a: its grace ended in the middle of its last part, and then the stream was complete."""
    clock = Clock()
    monkeypatch.setattr(shutdown, "time", SimpleNamespace(monotonic=clock))

    def body() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        clock.now += 2 * GRACE

    middleware = WsgiMiddleware(streaming(body), backend, stream_grace=GRACE)
    sent = begin(middleware, environ())
    next(sent.chunks)
    sent.close()
    assert only_record(backend).status is Status.COMPLETED
    assert serve(middleware).body == b"ab"


def test_without_a_grace_a_wsgi_stream_is_closed_at_once(backend: MemoryBackend) -> None:
    """L-05a: the server would close it at once, too."""
    parts: list[int] = []

    def body() -> Iterator[bytes]:
        for number in range(5):
            parts.append(number)
            yield b"x"

    sent = begin(WsgiMiddleware(streaming(body), backend, stream_grace=0), environ())
    next(sent.chunks)
    before = list(parts)
    sent.close()
    assert parts == before
    assert only_record(backend).status is Status.FAILED


def test_an_application_that_writes_without_an_end_is_stopped(backend: MemoryBackend) -> None:
    """L-05a, R-07: ``write()`` raises an OSError when the grace is over, as the server's own ``write()`` has done."""

    def app(made: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        while True:
            write(b"x")

    def gone(chunk: bytes) -> None:
        raise BrokenPipeError

    middleware = WsgiMiddleware(app, backend, stream_grace=GRACE, max_response_bytes=2**40)
    with pytest.raises(OSError, match="stream_grace"):
        middleware(environ(), lambda status, headers: gone)
    assert only_record(backend).status is Status.FAILED
