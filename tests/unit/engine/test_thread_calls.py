"""A cancelled task does not stop a thread: endpoints and dependencies in a thread pool, under every cancellation.

The threads wait for a gate, so that each test sees what a retry gets while one runs.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import a2wsgi
import anyio
import anyio.to_thread
import httpx
import pytest
from anyio._backends import _asyncio
from asgiref.sync import SyncToAsync
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from open_idempotency import asgi, idem
from open_idempotency._engine import thread_calls
from open_idempotency.backend import Complete, Completed
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from tests.unit.engine.thread_shop import (
    APPLICATIONS,
    LEFT_BY_STARLETTE,
    NATIVE,
    PATIENCE,
    UNRAISABLE,
    ByScope,
    ByServer,
    Canceller,
    Shop,
    begun,
    cancelled_and_retried,
    post,
    protected,
    with_a2wsgi,
    with_call_of_anyio,
    with_endpoint,
)

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(LEFT_BY_STARLETTE, UNRAISABLE)]


@pytest.mark.parametrize("layers", ["alone", "beneath", "around", "around and beneath"])
@pytest.mark.parametrize("canceller", [*NATIVE, ByScope], ids=lambda kind: kind.__name__)
async def test_an_endpoint_in_a_thread_runs_to_its_end_and_its_response_is_stored(
    canceller: type[Canceller], layers: str, anyio_backend_name: str
) -> None:
    """L-09: whatever cancels the request, and whatever middleware is around it, the cancellation arrives after the
    thread has ended.
    """
    if anyio_backend_name == "trio" and canceller is not ByScope:
        pytest.skip("asyncio cancels in this way, and trio does not")
    shop = Shop()
    await cancelled_and_retried(canceller(protected(with_endpoint(shop), layers)), shop)


@pytest.mark.parametrize("layers", ["alone", "beneath"])
@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda make: make.__name__)
async def test_whatever_runs_in_a_thread_is_waited_for(
    application: Callable[[Shop], Any], layers: str, anyio_backend_name: str
) -> None:
    """L-09: endpoints, exits of dependencies, calls of a coroutine, classes, WSGI applications, plain ASGI."""
    if anyio_backend_name == "trio" and application is with_a2wsgi:
        pytest.skip("a2wsgi runs on asyncio only")
    shop = Shop()
    canceller = ByServer if anyio_backend_name == "asyncio" else ByScope
    await cancelled_and_retried(canceller(protected(application(shop), layers)), shop)


class SlowBackend(MemoryBackend):
    """A backend that delays completions until a test lets them go on."""

    def __init__(self) -> None:
        super().__init__()
        self.completing = threading.Event()
        self.may_complete = threading.Event()

    def to_async(self) -> AsyncMemoryBackend:
        return _SlowAsyncBackend(self)


class _SlowAsyncBackend(AsyncMemoryBackend):
    def __init__(self, over: SlowBackend) -> None:
        super().__init__(over=over)
        self._over = over

    async def complete(self, c: Complete, /) -> Completed:
        self._over.completing.set()
        while not self._over.may_complete.is_set():
            await anyio.sleep(0.01)
        return await super().complete(c)


async def test_a_response_is_recorded_however_long_that_takes(anyio_backend_name: str) -> None:
    """L-09: the completion may take longer than the grace in which the response has to be made."""
    shop, backend = Shop(), SlowBackend()
    app = (ByServer if anyio_backend_name == "asyncio" else ByScope)(protected(with_endpoint(shop), backend=backend))
    key = str(uuid4())
    async with begun(app, key, shop) as responses:
        await app.cancel()
        shop.gate.set()
        with anyio.fail_after(PATIENCE):
            while not backend.completing.is_set():
                await anyio.sleep(0.01)
        await anyio.sleep(1.5 * thread_calls.GRACE)
        assert responses == []
        backend.may_complete.set()
    assert (responses[0].status_code, (await post(app.app, key)).headers["idempotent-replayed"]) == (504, "true")


# Requests that are cancelled at once


async def test_a_coroutine_is_cancelled_at_once(anyio_backend_name: str) -> None:
    """L-09, L-04: without a running thread nothing is waited for, and the retry is the second attempt."""
    shop = Shop()

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        shop.attempts.append(idem.attempt)
        shop.arrived.set()
        if idem.attempt == 1:
            await anyio.sleep_forever()
        await Response(status_code=201)(scope, receive, send)

    app = (ByServer if anyio_backend_name == "asyncio" else ByScope)(protected(endpoint))
    key = str(uuid4())
    async with begun(app, key, shop) as responses:
        await app.cancel()
    assert (responses[0].status_code, (await post(app.app, key)).status_code) == (504, 201)
    assert shop.attempts == [1, 2]


@pytest.mark.parametrize("layers", ["alone", "beneath"])
async def test_a_coroutine_that_goes_on_after_its_thread_is_cancelled_then(
    layers: str, anyio_backend_name: str
) -> None:
    """L-09, L-04: its attempt fails after the thread has ended."""
    shop = Shop()
    ended: list[str] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await anyio.to_thread.run_sync(shop.charge)
        if idem.attempt == 1:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(f"after {shop.charges}")
        await Response(status_code=201)(scope, receive, send)

    app = (ByServer if anyio_backend_name == "asyncio" else ByScope)(protected(endpoint, layers))
    key = str(uuid4())
    async with begun(app, key, shop) as responses:
        await app.cancel()
        beside = await post(app.app, key)
        shop.gate.set()
    later = await post(app.app, key)
    assert (beside.status_code, responses[0].status_code, later.status_code) == (409, 504, 201)
    assert (ended, shop.attempts) == (["after 1"], [1, 2])


async def test_a_call_that_waits_for_a_free_thread_is_cancelled_at_once(anyio_backend_name: str) -> None:
    """L-09: the function has not begun, and never begins."""
    shop = Shop()
    limiter = anyio.CapacityLimiter(1)

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        shop.arrived.set()
        await anyio.to_thread.run_sync(shop.charge, limiter=limiter)

    app = (ByServer if anyio_backend_name == "asyncio" else ByScope)(protected(endpoint))
    await limiter.acquire_on_behalf_of(shop)
    async with begun(app, str(uuid4()), shop) as responses:
        await app.cancel()
    limiter.release_on_behalf_of(shop)
    assert (responses[0].status_code, shop.attempts) == (504, [])


async def test_a_request_without_a_key_is_cancelled_as_its_framework_does(anyio_backend_name: str) -> None:
    """L-09: there is nothing to store."""
    if anyio_backend_name == "trio":
        pytest.skip("trio waits for threads itself")
    shop = Shop()
    app = ByServer(protected(with_call_of_anyio(shop)))
    response = asyncio.ensure_future(_post_without_key(app))
    while not shop.arrived.is_set():
        await asyncio.sleep(0.005)
    await app.cancel()
    assert (await response).status_code == 504
    shop.gate.set()


async def _post_without_key(app: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post("/")


# Cancellations by the application itself


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("outcome", [503, 429, "raises"])
async def test_nothing_is_given_up_beside_a_thread_that_the_application_has_left(
    outcome: int | str, anyio_backend: str
) -> None:
    """L-09: the failure or release of such an attempt is recorded when its thread has ended."""
    shop = Shop()
    left = asyncio.Event()

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.ensure_future(anyio.to_thread.run_sync(shop.charge))
        while not shop.arrived.is_set():
            await asyncio.sleep(0.005)
        if not left.is_set():
            task.cancel()
            await asyncio.wait((task,))
            left.set()
            if isinstance(outcome, str):
                raise TimeoutError
            return await Response(status_code=outcome)(scope, receive, send)
        return await JSONResponse(await task, 201)(scope, receive, send)

    app, key = protected(endpoint), str(uuid4())
    async with begun(app, key, shop) as responses:
        await left.wait()
        for _ in range(3):
            assert (await post(app, key)).status_code == 409
        assert responses == []
        shop.gate.set()
    assert responses[0].status_code == (500 if isinstance(outcome, str) else outcome)
    assert (await post(app, key)).json() == {"charge": 2}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("left", [True, False])
async def test_a_response_that_is_kept_does_not_wait_for_a_thread(left: bool, anyio_backend: str) -> None:
    """L-09: no retry runs after it. A failure does not wait either for a thread that a task of its own still awaits."""
    shop = Shop()
    tasks: list[Any] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.ensure_future(anyio.to_thread.run_sync(shop.charge)))
        while not shop.arrived.is_set():
            await asyncio.sleep(0.005)
        if left:
            tasks[0].cancel()
        await Response(status_code=202 if left else 503)(scope, receive, send)

    response = await post(protected(endpoint), str(uuid4()))
    assert response.status_code == (202 if left else 503)
    shop.gate.set()
    await asyncio.wait(tasks)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_time_limit_within_the_endpoint_that_is_over_cancels_nobody(anyio_backend: str) -> None:
    """L-09: its block has ended with the thread, so nothing is left to cancel."""
    shop = Shop()

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.timeout(0.01):
            charged = await run_in_threadpool(shop.charge)
        await asyncio.sleep(0)
        await JSONResponse(charged, 201)(scope, receive, send)

    app = protected(endpoint)
    async with begun(app, str(uuid4()), shop) as responses:
        await asyncio.sleep(0.05)
        shop.gate.set()
    assert responses[0].status_code == 201


# Streams


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stream_that_is_made_in_threads_is_not_held_for_ever(anyio_backend: str) -> None:
    """L-09: once a response has begun to leave, it and its thread are waited for at most a second."""
    shop = Shop()
    running = threading.Lock()

    def pieces() -> Iterator[bytes]:
        while True:
            with running:
                shop.arrived.set()
            yield b"piece"

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(pieces(), 201)(scope, receive, send)

    app = ByServer(protected(endpoint))
    async with begun(app, str(uuid4()), shop):
        with anyio.fail_after(PATIENCE):
            await app.cancel()
    assert not running.locked()


# How threads are noticed, and what that costs


def test_others_have_the_shape_that_is_relied_on() -> None:
    """L-09: a canary for private parts of other libraries; the tests below use another shape."""
    assert {"func", "run_in_executor"} <= set(thread_calls._names_in(inspect.unwrap(SyncToAsync.__call__)))
    assert {thread_calls._INNER, thread_calls._VERB} <= set(anyio.to_thread.run_sync.__code__.co_names)
    assert hasattr(_asyncio, "_task_states")
    assert callable(a2wsgi.wsgi.WSGIResponder.wsgi)


@pytest.fixture
def unhooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The state of a process before its first request; restored afterwards."""
    monkeypatch.setattr(thread_calls, "pending", {"anyio.to_thread": thread_calls._hook_anyio})
    for name in (thread_calls._PUBLIC, thread_calls._INNER):
        monkeypatch.setattr(anyio.to_thread, name, getattr(anyio.to_thread, name))
    yield
    monkeypatch.undo()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_where_anyio_has_another_shape_its_public_function_is_wrapped(
    unhooked: None, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    """L-09: the result is the same for callers that look the function up in the module."""
    monkeypatch.setattr(thread_calls, "_VERB", "another name")
    shop = Shop()
    await cancelled_and_retried(ByServer(protected(with_endpoint(shop))), shop)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_where_nothing_of_it_is_found_one_warning_says_so(
    unhooked: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, anyio_backend: str
) -> None:
    """L-09: requests are still served."""
    monkeypatch.setattr(thread_calls, "_PUBLIC", "another name")
    shop = Shop()
    shop.gate.set()
    app = protected(with_endpoint(shop))
    for _ in range(2):
        assert (await post(app, str(uuid4()))).status_code == 201
    assert [record.getMessage() for record in caplog.records if record.name == "open_idempotency"] == [
        "anyio.to_thread: this release is not known, so a request that is cancelled does not wait for its threads, and "
        "its retry may run beside them; install an older release"
    ]


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts its tasks, timers and callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        self.asked.append("call_soon")
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        self.asked.append("call_at")
        return super().call_at(when, callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> Any:
        self.asked.append("create_task")
        return super().create_task(coro, **options)


def test_a_coroutine_costs_no_task_no_timer_and_no_turn_of_the_loop() -> None:
    """L-09: a keyed request costs the loop only what the coroutine itself awaits."""

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(3):
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_result, None)
            await future
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"idempotency-key", b'"0123456789abcdef"')]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    app = asgi.IdempotencyMiddleware(endpoint, "memory://")
    loop = CountingLoop()
    try:
        loop.run_until_complete(app(scope, receive, send))
        # One callback starts the task and one ends it. Each of three futures costs one to set it and one to wake the
        # task.
        assert sorted(loop.asked) == ["call_soon"] * (2 + 3 * 2) + ["create_task"]
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("release", "is_too_old"), [("3.7.1", True), ("4.6.2", True), ("4.7.0", False), ("4.10.0", False), ("main", False)]
)
def test_a_release_of_anyio_that_goes_on_cancelling_is_known(release: str, is_too_old: bool) -> None:
    """L-09: its retry would run again, so a warning names the release that is needed."""
    assert thread_calls._is_too_old(release) is is_too_old
