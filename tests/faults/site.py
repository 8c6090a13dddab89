"""Workers in the test's process: an application behind the real middleware, sync and async, on a real backend.

Two workers share nothing but the records, as two processes do; each has its own backend, connections and heartbeat. The
behaviours of the HTTP suite define each handler once, for sync and async.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple
from uuid import uuid4

from open_idempotency import open_backend
from open_idempotency.backend import Backend
from open_idempotency.events import Event
from tests.faults import ONE_BY_ONE
from tests.http.apps import plain_asgi, plain_wsgi
from tests.http.behaviours import SCRIPTS, Behaviour, Script

#: seconds; nothing waits longer, so a lost signal is a failure and not a hang
PATIENCE = 20.0
_STEP = 0.02
#: the slowest call, a multiple of the timeout, has to be shorter than the lease
BRISK = "timeout=0.35" + "&coalesce=no" * ONE_BY_ONE
#: PostgreSQL starts a process for each connection, and exchanges some messages
BRISK_POSTGRES = BRISK.replace("0.35", "0.5")
LEASE = 2.5


class Got(NamedTuple):
    """A response as the client gets it, and the seconds that it took."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    seconds: float = 0.0

    def value(self, name: bytes) -> bytes | None:
        """The first value of a field."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def replayed(self) -> bool:
        """Whether it is marked as a replay."""
        return self.value(b"idempotent-replayed") == b"true"

    @property
    def unrecorded(self) -> bool:
        """Whether it is marked as unrecorded."""
        return self.value(b"idempotency-status") == b"unrecorded"


class Order:
    """One request with one key, for a handler with this behaviour. ``key``: the key of an earlier order."""

    def __init__(self, behaviour: Behaviour, key: str | None = None) -> None:
        self.key = key or uuid4().hex
        self.name = uuid4().hex
        self.script = SCRIPTS[self.name] = Script(behaviour)

    def again(self, behaviour: Behaviour) -> Order:
        """The same request, with another behaviour of the handler."""
        return Order(behaviour, self.key)

    @property
    def runs(self) -> int:
        """How often the handler has begun."""
        return len(self.script.runs)

    def until_arrived(self) -> None:
        """Wait until the handler is at its point."""
        assert self.script.arrived.wait(PATIENCE), "the handler did not arrive"


def _run_wsgi(app: Any, order: Order, body: bytes) -> Got:
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/charges",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_IDEMPOTENCY_KEY": order.key,
        "HTTP_X_SCRIPT": order.name,
    }
    head: list[Any] = []
    chunks = app(environ, lambda status, headers, exc_info=None: head.__setitem__(slice(None), [status, headers]))
    try:
        content = b"".join(chunks)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    status, headers = head
    return Got(int(status[:3]), tuple((n.lower().encode(), v.encode("latin-1")) for n, v in headers), content)


async def _run_asgi(app: Any, order: Order, body: bytes) -> Got:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/charges",
        "raw_path": b"/charges",
        "query_string": b"",
        "headers": [(b"idempotency-key", order.key.encode()), (b"x-script", order.name.encode())],
    }
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    said: list[Any] = []

    async def receive() -> Any:
        for message in messages:
            return message
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    await app(scope, receive, send)
    start, *bodies = said
    return Got(start["status"], tuple(start["headers"]), b"".join(part.get("body", b"") for part in bodies))


class Worker:
    """One worker: ``interface`` is "wsgi" or "asgi", ``fields`` are the policy's. Closed at the end of its block."""

    def __init__(self, interface: str, backend: Backend | str, **fields: Any) -> None:
        self.events: list[Event] = []
        self.backend = open_backend(backend)
        make = plain_wsgi.make if interface == "wsgi" else plain_asgi.make
        self._app: Any = make(self.backend, {"lease": LEASE, "on_event": self.events.append, **fields})
        self._interface = interface
        self._pool = ThreadPoolExecutor(80, thread_name_prefix="client")
        self._loop: asyncio.AbstractEventLoop | None = None
        if interface == "asgi":
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="worker", daemon=True)
            self._thread.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self.backend.to_async().close(), self._loop).result(PATIENCE)
            asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result(PATIENCE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)
            self._loop.close()
        self.backend.close()

    def post(self, order: Order, body: bytes = b"{}") -> Got:
        """Send an order and wait for the response; raises what the handler raised."""
        started = time.monotonic()
        if self._loop is None:
            got = _run_wsgi(self._app, order, body)
        else:
            task = asyncio.run_coroutine_threadsafe(_run_asgi(self._app, order, body), self._loop)
            got = task.result(2 * PATIENCE)
        return got._replace(seconds=time.monotonic() - started)

    def start(self, order: Order, body: bytes = b"{}") -> Future[Got]:
        """Send an order without waiting for the response."""
        return self._pool.submit(self.post, order, body)

    def cancel(self, order: Order, when: threading.Event) -> None:
        """Send an order, and cancel its task after this event; return when its clean-up has ended."""
        assert self._loop is not None, "nobody cancels a thread"

        async def sent_and_cancelled() -> None:
            task = asyncio.create_task(_run_asgi(self._app, order, b"{}"))
            assert await asyncio.to_thread(when.wait, PATIENCE)
            # Before Python 3.12 ``asyncio.wait_for`` drops a cancellation that comes when what it waits for has just
            # ended, and redis-py writes commands under it. So that write is over, which takes turns of the loop alone.
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), PATIENCE)
            assert task.cancelled()

        asyncio.run_coroutine_threadsafe(sent_and_cancelled(), self._loop).result(2 * PATIENCE)

    def post_until(self, order: Order, wanted: Callable[[Got], bool], within: float = PATIENCE) -> Got:
        """Send an order again until a response is as wanted."""
        return until(lambda: self.post(order), wanted, within)

    def saw(self, kind: type[Event]) -> bool:
        """Whether it logged such an event."""
        return any(type(event) is kind for event in self.events)

    def await_event(self, kind: type[Event]) -> None:
        """Wait until it has logged such an event."""
        until(lambda: self.saw(kind), bool)


def refused_in_time(worker: Worker, make: Callable[[], Order], tries: int = 3) -> Order:
    """An order that did not run and was refused within the bound of one call, since the backend was not reached.

    A busy machine may delay one request, so the fastest of several counts.
    """
    for left in reversed(range(tries)):
        order = make()
        refused = worker.post(order)
        assert (refused.status, order.runs) == (503, 0)
        if refused.seconds < worker.backend.call_timeout + 1:
            return order
        assert left, f"refused after {refused.seconds} s; a call may take {worker.backend.call_timeout} s"
    raise AssertionError("no tries")


def until(ask: Callable[[], Any], wanted: Callable[[Any], bool], within: float = PATIENCE) -> Any:
    """Ask until the response is as wanted, and return it."""
    deadline = time.monotonic() + within
    while not wanted(response := ask()):
        assert time.monotonic() < deadline, f"after {within} s still {response}"
        time.sleep(_STEP)
    return response


def admitted(got: Got) -> bool:
    """Whether it was neither refused as a duplicate nor by a call that timed out on a busy machine."""
    return got.status not in (409, 503)
