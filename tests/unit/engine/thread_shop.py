"""Applications that charge in threads, cancellers of their requests, and the checks that all tests share."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import a2wsgi
import anyio
import anyio.to_thread
import httpx
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from open_idempotency import idem
from open_idempotency.starlette import IdempotencyMiddleware

# Starlette leaves its iterators to the garbage collector, also cancelled ones; trio warns about it.
LEFT_BY_STARLETTE = "ignore:Async generator 'starlette:ResourceWarning"
UNRAISABLE = "ignore:Exception ignored in. <async_generator object BaseHTTP:pytest.PytestUnraisableExceptionWarning"

PATIENCE = 10.0


class Shop:
    """The endpoints of one test: in a thread they arrive, wait for the gate, and charge."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.gate = threading.Event()
        self.attempts: list[int] = []
        self.charges = 0

    def charge(self) -> dict[str, int]:
        self.attempts.append(idem.attempt)
        self.arrived.set()
        assert self.gate.wait(PATIENCE)
        self.charges += 1
        return {"charge": self.charges}


# Applications that charge in a thread


def with_endpoint(shop: Shop) -> Any:
    app = FastAPI()

    @app.post("/", status_code=201)
    def endpoint() -> dict[str, int]:  # FastAPI validates what it returns in another thread call
        return shop.charge()

    return app


def with_generator_dependency(shop: Shop) -> Any:
    app = FastAPI()

    def charged() -> Iterator[dict[str, int]]:
        order: dict[str, int] = {}
        yield order
        if order:  # a replay ends dependencies too, without an order
            shop.charge()

    # Earlier versions always end it before the response is sent.
    ends = {"scope": "function"} if "scope" in inspect.signature(Depends).parameters else {}
    later = Depends(charged, **ends)

    @app.post("/", status_code=201)
    async def endpoint(charged: dict[str, int] = later) -> dict[str, int]:
        charged["charge"] = 1
        return charged

    return app


def with_call_in_coroutine(shop: Shop) -> Any:
    app = FastAPI()

    @app.post("/", status_code=201)
    async def endpoint() -> dict[str, int]:
        return await run_in_threadpool(shop.charge)

    return app


def with_call_of_anyio(shop: Shop) -> Any:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        charged = await anyio.to_thread.run_sync(shop.charge)
        await JSONResponse(charged, 201)(scope, receive, send)

    return endpoint


def with_class(shop: Shop) -> Any:
    class Charges(HTTPEndpoint):
        def post(self, request: Request) -> Response:
            return JSONResponse(shop.charge(), 201)

    return Starlette(routes=[Route("/", Charges)])


def with_wsgi(shop: Shop) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.middleware.wsgi import WSGIMiddleware

    def application(environ: Any, start_response: Any) -> list[bytes]:
        body = str(shop.charge()).encode()
        start_response("201 Created", [("content-type", "text/plain"), ("content-length", str(len(body)))])
        return [body]

    return WSGIMiddleware(application)


def with_a2wsgi(shop: Shop) -> Any:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        charged = shop.charge()
        start_response("201 Created", [("content-type", "text/plain")])
        return [str(charged).encode()]

    return a2wsgi.WSGIMiddleware(application)


APPLICATIONS = [
    with_endpoint, with_generator_dependency, with_call_in_coroutine, with_call_of_anyio, with_class,
    with_wsgi, with_a2wsgi,
]  # fmt: skip


# Cancellers of requests


class Canceller:
    """A layer around an application: ``cancel`` cancels the current request, which gets 504."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.stop: Callable[[], object] = lambda: None

    async def cancel(self) -> None:
        """Cancel the request; after the first call, cancel it again."""
        self.stop()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not await self.ends(scope, receive, send):
            await Response(status_code=504)(scope, receive, send)

    async def ends(self, scope: Any, receive: Any, send: Any) -> bool:
        raise NotImplementedError


class ByServer(Canceller):
    """Cancels the request's task, as servers do."""

    async def ends(self, scope: Any, receive: Any, send: Any) -> bool:
        task = asyncio.ensure_future(self.app(scope, receive, send))
        self.stop = task.cancel
        await asyncio.wait((task,))
        return not task.cancelled()


class ByTimeout(Canceller):
    """Cancels by ``asyncio.timeout``."""

    async def ends(self, scope: Any, receive: Any, send: Any) -> bool:
        try:
            async with asyncio.timeout(None) as limit:
                self.stop = lambda: limit.when() == 0.0 or limit.reschedule(0.0)
                await self.app(scope, receive, send)
        except TimeoutError:
            return False
        return True


class ByWaitFor(Canceller):
    """Cancels by ``asyncio.wait_for``, whose limit cannot be changed: the loop's clock is moved instead."""

    limit = 10 * PATIENCE

    async def cancel(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time
        loop.time = lambda: before() + self.limit

    async def ends(self, scope: Any, receive: Any, send: Any) -> bool:
        try:
            await asyncio.wait_for(self.app(scope, receive, send), self.limit)
        except (TimeoutError, asyncio.TimeoutError):
            return False
        return True


class ByScope(Canceller):
    """Cancels by a cancel scope of anyio or trio."""

    async def ends(self, scope: Any, receive: Any, send: Any) -> bool:
        with anyio.CancelScope() as limit:
            self.stop = limit.cancel
            await self.app(scope, receive, send)
        return not limit.cancelled_caught


NATIVE = [ByServer, ByWaitFor, *([ByTimeout] if sys.version_info >= (3, 11) else [])]


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


def protected(app: Any, layers: str = "", backend: Any = "memory://") -> Any:
    """The application with the library's middleware, and Starlette's own around it or beneath it."""
    if "beneath" in layers:
        app = BaseHTTPMiddleware(app, pass_on)
    app = IdempotencyMiddleware(app, backend)
    return BaseHTTPMiddleware(app, pass_on) if "around" in layers else app


async def post(app: Any, key: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/", headers={"idempotency-key": f'"{key}"'})


@asynccontextmanager
async def begun(app: Any, key: str, shop: Shop) -> AsyncIterator[list[httpx.Response]]:
    """Start a request whose thread waits for the gate; at the end of the block its response is in the list."""
    responses: list[httpx.Response] = []

    async def ask() -> None:
        responses.append(await post(app, key))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        with anyio.fail_after(PATIENCE):
            while not shop.arrived.is_set():
                await anyio.sleep(0.005)
        yield responses


async def cancelled_and_retried(app: Canceller, shop: Shop) -> None:
    """Check that nothing runs beside the thread, and that a later retry gets its response."""
    key = str(uuid4())
    async with begun(app, key, shop) as responses:
        for _ in range(2):
            await app.cancel()
            await anyio.sleep(0.01)
        beside = await post(app.app, key)
        shop.gate.set()
    later = await post(app.app, key)
    assert (beside.status_code, beside.json()["retryable"]) == (409, True)
    assert responses[0].status_code == 504
    assert (later.status_code, later.headers.get("idempotent-replayed")) == (201, "true")
    assert (shop.charges, shop.attempts) == (1, [1])
