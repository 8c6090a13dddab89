"""The pure ASGI middleware between a server's ``receive`` and ``send``, message by message."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import anyio
import pytest

from open_idempotency import BackendUnavailable, IdempotencyPolicy, NotStarted, idem
from open_idempotency._engine import shutdown
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import AsyncBackend, Complete, Completed, Fail
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.starlette import IdempotencyMiddleware as WithSessions

pytestmark = pytest.mark.anyio

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]


class Exchange:
    """The server's side of one request: the messages that it delivers, and the messages that it is sent."""

    def __init__(self, *, key: str | None, body: tuple[bytes, ...] = (b"{}",), **scope: Any) -> None:
        headers = [] if key is None else [(b"idempotency-key", b'"%s"' % key.encode())]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/charges",
            "query_string": b"",
            "headers": headers,
            **scope,
        }
        self.sent: list[Message] = []
        self._incoming: Iterator[Message] = iter(
            {"type": "http.request", "body": part, "more_body": n < len(body)} for n, part in enumerate(body, 1)
        )

    async def receive(self) -> Message:
        return next(self._incoming, {"type": "http.disconnect"})

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def through(self, app: App) -> Exchange:
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent if message["type"] == "http.response.body")

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def replayed(self) -> bool:
        return b"idempotent-replayed" in self.headers


def start(status: int = 201, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def sending(*messages: Message) -> App:
    """An application that sends these messages."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


def new_key() -> str:
    return str(uuid4())


async def test_a_websocket_is_untouched() -> None:
    """R-06: the application gets the server's own scope, ``receive`` and ``send``."""
    got: list[Any] = []

    async def app(*arguments: Any) -> None:
        got.extend(arguments)

    exchange = Exchange(key=new_key(), type="websocket")
    await IdempotencyMiddleware(app, "memory://")(exchange.scope, exchange.receive, exchange.send)
    assert got == [exchange.scope, exchange.receive, exchange.send]


async def test_a_lifespan_passes_through() -> None:
    """R-06: the application sees the same scope, and every message arrives in order."""
    messages = [{"type": f"lifespan.{step}.complete"} for step in ("startup", "shutdown")]
    exchange = Exchange(key=new_key(), type="lifespan")
    await IdempotencyMiddleware(sending(*messages), "memory://")(exchange.scope, exchange.receive, exchange.send)
    assert exchange.sent == messages


async def test_a_shutdown_is_complete_when_what_was_cancelled_is_recorded() -> None:
    """L-06: the server ends its process after ``lifespan.shutdown.complete``, so the end of a cancelled request is
    recorded first.
    """
    reported: list[str] = []

    class Slow(AsyncMemoryBackend):
        """A backend that needs a few turns of the event loop to record a failure."""

        async def fail(self, c: Fail, /) -> None:
            for _ in range(20):
                await anyio.sleep(0)
            await super().fail(c)
            reported.append("failed")

    arrived = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await send({"type": "lifespan.shutdown.complete"})
            return
        arrived.set()
        await anyio.sleep_forever()

    async def noted_last(message: Message) -> None:
        reported.append(message["type"])

    middleware = IdempotencyMiddleware(app, Slow())
    request, lifespan = Exchange(key=new_key()), Exchange(key=None, type="lifespan")
    cancelled = anyio.CancelScope()

    async def serve() -> None:
        with cancelled:
            await request.through(middleware)

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await arrived.wait()
        cancelled.cancel()
        await middleware(lifespan.scope, lifespan.receive, noted_last)
    assert reported == ["failed", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(("method", "key"), [("POST", None), ("GET", "a-key-that-is-long-enough")])
async def test_a_body_without_protection_is_not_buffered(method: str, key: str | None) -> None:
    """Without protection the application reads the body from the server itself."""
    got: list[Any] = []

    async def app(*arguments: Any) -> None:
        got.extend(arguments)

    exchange = Exchange(key=key, method=method)
    await IdempotencyMiddleware(app, "memory://")(exchange.scope, exchange.receive, exchange.send)
    assert got == [exchange.scope, exchange.receive, exchange.send]


async def test_the_body_is_handed_on_whole() -> None:
    """R-06: the application gets the whole body, however the server split it into messages."""
    got: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append(await receive())
        await sending(start(), body())(scope, receive, send)

    await Exchange(key=new_key(), body=(b"one, ", b"", b"two")).through(IdempotencyMiddleware(app, "memory://"))
    assert got == [{"type": "http.request", "body": b"one, two", "more_body": False}]


async def test_a_large_body_is_handed_on_in_pieces() -> None:
    """R-09: a large body is read from disk and passed on in pieces."""
    content = bytes(range(256)) * 1024
    got: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not got or got[-1]["more_body"]:
            got.append(await receive())
        await sending(start(), body())(scope, receive, send)

    middleware = IdempotencyMiddleware(app, "memory://", spool_bytes=1000)
    await Exchange(key=new_key(), body=(content[:999], content[999:])).through(middleware)
    assert b"".join(message["body"] for message in got) == content
    assert len(got) > 1


async def test_after_the_body_receive_waits_for_the_real_disconnect() -> None:
    """R-06: the first ``receive()`` after the body reaches the server."""
    got: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend([(await receive())["type"], (await receive())["type"]])
        await sending(start(), body())(scope, receive, send)

    await Exchange(key=new_key()).through(IdempotencyMiddleware(app, "memory://"))
    assert got == ["http.request", "http.disconnect"]


async def test_a_client_that_leaves_during_its_upload_starts_nothing() -> None:
    """The claim is made only when the body is complete."""
    ran: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(True)

    backend = MemoryBackend()
    exchange = Exchange(key=new_key(), body=())
    await exchange.through(IdempotencyMiddleware(app, backend))
    assert (ran, exchange.sent, list(backend.scan())) == ([], [], [])


async def test_the_start_of_a_response_waits_for_its_end() -> None:
    """R-03: no byte of a response in one message leaves before the response is durable."""
    exchange = Exchange(key=new_key())
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        seen.append(len(exchange.sent))
        await send(body(b"done"))
        seen.append(len(exchange.sent))

    await exchange.through(IdempotencyMiddleware(app, "memory://"))
    assert seen == [0, 2]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([start(200, (b"Content-Length", b"4")), body(b"do", more=True), body(b"ne", more=True)], id="200"),
        pytest.param([start(204), body(more=True)], id="204"),
        pytest.param([start(200, (b"content-length", b"0")), body(more=True)], id="empty"),
    ],
)
async def test_the_bytes_that_complete_a_response_leave_after_it_is_durable(messages: list[Message]) -> None:
    """R-03: a client that counts bytes is done before the last, empty message (which an inner BaseHTTPMiddleware
    sends).
    """
    key = new_key()
    exchange = Exchange(key=key)
    backend = MemoryBackend()
    durable: list[bool] = []

    async def send(message: Message) -> None:
        record = next(iter(backend.scan()))
        durable.append(record.response is not None)
        exchange.sent.append(message)

    middleware = IdempotencyMiddleware(sending(*messages, body()), backend)
    await middleware(exchange.scope, exchange.receive, send)
    # the last two messages: the one that completes the response, and the empty end
    assert durable[-2:] == [True, True]
    assert exchange.sent == [*messages, body()]


async def test_headers_may_come_from_any_iterable() -> None:
    """R-01: the iterable is read once, and the headers are both sent and stored."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = ((name, b"x") for name in (b"x-one", b"x-two"))
        await sending({**start(), "headers": headers}, body())(scope, receive, send)

    middleware, key = IdempotencyMiddleware(app, "memory://"), new_key()
    first = await Exchange(key=key).through(middleware)
    second = await Exchange(key=key).through(middleware)
    assert [first.sent[0]["headers"], second.sent[0]["headers"][:2]] == [[(b"x-one", b"x"), (b"x-two", b"x")]] * 2


async def test_trailers_pass_and_are_not_stored() -> None:
    """R-06: trailers reach the client and are not in the record."""
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    app = sending({**start(), "trailers": True}, body(b"done"), trailers)
    middleware, key = IdempotencyMiddleware(app, "memory://"), new_key()
    first = await Exchange(key=key).through(middleware)
    second = await Exchange(key=key).through(middleware)
    assert first.sent[-1] == trailers
    assert [message["type"] for message in second.sent] == ["http.response.start", "http.response.body"]
    assert "trailers" not in second.sent[0]


async def test_ways_past_the_capture_are_hidden_while_it_is_needed() -> None:
    """R-06: extensions that bypass ``send`` are hidden; the server's scope is restored afterwards."""
    seen: list[set[str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(set(scope["extensions"]))
        await sending(start(), body())(scope, receive, send)

    extensions = {"http.response.pathsend": {}, "http.response.trailers": {}}
    exchange = Exchange(key=new_key(), extensions=extensions)
    await exchange.through(IdempotencyMiddleware(app, "memory://"))
    assert seen == [{"http.response.trailers"}]
    assert exchange.scope["extensions"] is extensions


async def test_a_client_that_left_does_not_stop_the_handler() -> None:
    """L-05: the response is stored, and the retry replays it."""
    steps: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"one", more=True))
        await send(body(b"two"))
        steps.append("to the end")

    async def gone(message: Message) -> None:
        raise OSError("connection reset")

    middleware, key = IdempotencyMiddleware(app, "memory://"), new_key()
    exchange = Exchange(key=key)
    await middleware(exchange.scope, exchange.receive, gone)
    retry = await Exchange(key=key).through(middleware)
    assert (steps, retry.body, retry.replayed) == (["to the end"], b"onetwo", True)


async def test_an_application_that_stops_because_its_client_left_is_no_error() -> None:
    """R-06, L-04: a framework may end a stream after a disconnect; the retry runs again."""
    attempts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(idem.attempt)
        await send(start())
        await send(body(b"one", more=True))
        await receive()
        if len(attempts) == 1:
            assert (await receive())["type"] == "http.disconnect"
            return
        await send(body(b"two"))

    middleware, key = IdempotencyMiddleware(app, "memory://", stream_grace=0.01), new_key()
    await Exchange(key=key).through(middleware)
    assert (await Exchange(key=key).through(middleware)).body == b"onetwo"
    assert attempts == [1, 2]


async def test_an_application_that_forgets_its_response_is_an_error() -> None:
    """L-04: the attempt failed, so a retry runs."""
    attempts: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(idem.attempt)

    middleware, key = IdempotencyMiddleware(app, "memory://"), new_key()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="before its response was complete"):
            await Exchange(key=key).through(middleware)
    assert attempts == [1, 2]


async def test_a_cancelled_handler_leaves_the_key_free() -> None:
    """L-04: its stages stay, and the retry runs at once."""
    attempts: list[tuple[int, list[str]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempts.append((idem.attempt, [stage.name for stage in idem.stages]))
        if len(attempts) == 1:
            await idem.asave_stage("reserved")
            cancel.cancel()
            await anyio.sleep(60)
        await sending(start(), body())(scope, receive, send)

    middleware, key = IdempotencyMiddleware(app, "memory://"), new_key()
    with anyio.CancelScope() as cancel:
        await Exchange(key=key).through(middleware)
    assert cancel.cancelled_caught
    assert (await Exchange(key=key).through(middleware)).status == 201
    assert attempts == [(1, []), (2, ["reserved"])]


_SHORT_OF_MEMORY = """
import asyncio, resource
from open_idempotency import open_backend
from open_idempotency.asgi import IdempotencyMiddleware
from tests.unit.asgi.test_asgi import Exchange, body, sending, start

async def main():
    backend = open_backend("memory://")
    limits = {"spool_bytes": 1 << 30, "max_request_bytes": 1 << 30, "fingerprint": "none"}
    app = IdempotencyMiddleware(sending(start(), body(b"done")), backend, **limits)
    await Exchange(key="other-0123456789abcdef").through(app)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
    large = Exchange(key="large-0123456789abcdef", body=(bytes(1 << 20),) * 2)
    parts = iter([True] * 160 + [False])

    async def receive():
        return {"type": "http.request", "body": bytes(bytearray(1 << 20)), "more_body": next(parts)}

    try:
        await app(large.scope, receive, large.send)
    except MemoryError:
        print("no memory")
    print((await Exchange(key="large-0123456789abcdef").through(app)).status)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is read from /proc")
def test_a_body_that_finds_no_memory_behind_the_claim_leaves_the_key_free() -> None:
    """L-04: the lease of a request that has ended is not renewed."""
    ended = subprocess.run([sys.executable, "-c", _SHORT_OF_MEMORY], capture_output=True, text=True, timeout=60)
    assert ended.stdout.split("\n")[:2] == ["no memory", "201"], ended.stderr


async def test_a_session_that_cannot_be_read_leaves_no_request_to_wait_for() -> None:
    """L-06: a shutdown waits only for requests that are still in progress."""

    class Unreadable(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise RuntimeError("the session is not loaded")

        def __iter__(self) -> Iterator[str]:
            raise RuntimeError("the session is not loaded")

        def __len__(self) -> int:
            return 1

    app = WithSessions(sending(start(), body()), "memory://")
    known = set(shutdown.requests.get())
    with pytest.raises(RuntimeError, match="not loaded"):
        await Exchange(key=new_key(), session=Unreadable()).through(app)
    assert shutdown.requests.get() == known


@pytest.mark.parametrize("key", [None, "a-key-that-is-long-enough"])
async def test_the_request_is_known_inside_and_forgotten_outside(key: str | None) -> None:
    """The current request is set inside the application and reset outside it, also when the application raises."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert idem.attempt == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Exchange(key=key).through(IdempotencyMiddleware(app, "memory://"))
    with pytest.raises(NotStarted):
        _ = idem.attempt


async def test_a_middleware_within_a_middleware_does_not_claim_again() -> None:
    """With one middleware on an application and one on a part of it, the outer one protects."""
    backend = MemoryBackend()
    app = IdempotencyMiddleware(IdempotencyMiddleware(sending(start(), body(b"done")), backend), backend)
    key = new_key()
    assert (await Exchange(key=key).through(app)).status == 201
    assert (await Exchange(key=key).through(app)).replayed


@pytest.mark.parametrize("raw", [{"raw_path": b"/a%20b"}, {"raw_path": b"/a%20b?x=1"}, {}])
async def test_the_path_is_the_raw_one(raw: dict[str, bytes]) -> None:
    """The path is the one that the client sent, however the server reports it; without ``raw_path`` it is rebuilt."""
    paths: list[bytes] = []

    def scope_of(request: Any) -> str:
        paths.append(request.path)
        return "everybody"

    middleware = IdempotencyMiddleware(sending(start(), body()), "memory://", scope=scope_of)
    await Exchange(key=new_key(), path="/a b", **raw).through(middleware)
    assert paths == [b"/a%20b"]


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_superseded_attempt_sends_its_successors_response() -> None:
    """L-03: neither its own response nor the headers of that response leave."""
    clock = Clock()
    key = new_key()
    runs: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        attempt = idem.attempt
        runs.append(attempt)
        if attempt == 1:
            clock.now += 31
            await Exchange(key=key).through(middleware)
        await send({**start(), "trailers": True})
        await send(body(b"attempt %d" % attempt))
        await send({"type": "http.response.trailers", "headers": []})

    middleware = IdempotencyMiddleware(app, MemoryBackend(clock=clock))
    first = await Exchange(key=key).through(middleware)
    assert runs == [1, 2]
    assert (first.body, first.replayed) == (b"attempt 2", True)
    assert [message["type"] for message in first.sent] == ["http.response.start", "http.response.body"]


class Forgetful(AsyncMemoryBackend):
    """A real backend that is down whenever a response is recorded."""

    async def complete(self, c: Complete, /) -> Completed:
        raise BackendUnavailable("down")


async def test_a_response_that_cannot_be_recorded_goes_out_marked() -> None:
    """L-08: the record stays in progress, so no retry runs meanwhile."""
    backend = _asynchronously(Forgetful)
    middleware = IdempotencyMiddleware(
        sending(start(), body(b"done")), backend, policy=IdempotencyPolicy(record_within=0)
    )
    key = new_key()
    first = await Exchange(key=key).through(middleware)
    assert (first.status, first.body, first.headers[b"idempotency-status"]) == (201, b"done", b"unrecorded")
    second = await Exchange(key=key).through(middleware)
    assert (second.status, json.loads(second.body)["type"]) == (409, "urn:problem-type:open-idempotency:in-progress")


def _asynchronously(kind: type[AsyncMemoryBackend]) -> AsyncBackend:
    sync = MemoryBackend()
    backend = kind(over=sync)
    sync._async = backend
    return backend


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_request_in_a_task_stays_cancelled() -> None:
    """L-04: the cancellation is delayed until the cleanup is done, and not lost."""
    waiting = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(Exchange(key=new_key()).through(IdempotencyMiddleware(app, "memory://")))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("first", ["POST", "post", "Post"])
@pytest.mark.parametrize("rules", [None, {"/charges": {"required": True}}])
async def test_a_method_in_other_letters_is_the_same_method(first: str, rules: Any) -> None:
    """O-17: some servers pass the method on as it was sent, and frameworks read it in upper case."""
    runs: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope["method"])
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    middleware, key = IdempotencyMiddleware(app, "memory://", rules=rules), str(uuid4())
    for method in (first, "POST", "post"):
        assert (await Exchange(key=key, method=method).through(middleware)).status == 201
    assert runs == [first]
