"""Requests that match no route until an inner layer rewrites their path or dispatches them elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from open_idempotency.asgi import App, Receive, Scope, Send
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.starlette import IdempotencyMiddleware

# Starlette leaves the iterator of a body, and in its oldest release a stream, to the garbage collector, with a warning.
LEFT_BY_STARLETTE = "ignore:Async generator 'starlette.requests.Request.stream' was garbage collected:ResourceWarning"
LEFT_OPEN_BY_STARLETTE = "ignore:Unclosed <MemoryObjectReceiveStream:ResourceWarning"
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(LEFT_BY_STARLETTE, LEFT_OPEN_BY_STARLETTE)]
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


class Runs:
    """An endpoint that counts its runs."""

    def __init__(self) -> None:
        self.count = 0

    async def pay(self, request: Request) -> Response:
        """Response."""
        self.count += 1
        return PlainTextResponse(f"run {self.count}", 201)

    @property
    def route(self) -> Route:
        """A route to the endpoint."""
        return Route("/pay", self.pay, methods=["POST"])


class Strip:
    """Middleware that removes a prefix of the path."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix("/v2")}
        await self.app(scope, receive, send)


def _behind_middleware(runs: Runs) -> App:
    app = Starlette(routes=[runs.route])
    app.add_middleware(Strip)
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    return app


def _behind_a_function(runs: Runs) -> App:
    app = FastAPI()
    app.router.routes.append(runs.route)

    @app.middleware("http")
    async def strip(request: Request, call_next: Callable[[Request], Any]) -> Any:
        request.scope["path"] = request.scope["path"].removeprefix("/v2")
        return await call_next(request)

    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    return app


def _with_a_root_path(runs: Runs) -> App:
    app = FastAPI()
    app.root_path = "/v2"  # the argument is deprecated in later versions
    app.router.routes.append(runs.route)
    return IdempotencyMiddleware(app, "memory://")


class Lenient(Router):
    """A router with another way of matching paths."""

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Match the path in this router's own way."""
        await super().app({**scope, "path": scope["path"].removeprefix("/v2")}, receive, send)


def _with_a_router_of_its_own(runs: Runs) -> App:
    return IdempotencyMiddleware(Lenient(routes=[runs.route]), "memory://")


class Dispatcher:
    """Middleware that chooses the next application for each request."""

    def __init__(self, *apps: App) -> None:
        self._apps = [*apps]

    @property
    def app(self) -> App:
        """The application that responds next."""
        return self._apps[0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if len(self._apps) > 1:
            self._apps.pop(0)
        await app(scope, receive, send)


def _changing(runs: Runs) -> App:
    first, second = Starlette(routes=[Route("/other", runs.pay, methods=["POST"])]), Starlette(routes=[runs.route])
    second.add_middleware(Strip)
    return IdempotencyMiddleware(Dispatcher(first, second), "memory://")


@pytest.mark.parametrize(
    "make",
    [_behind_middleware, _behind_a_function, _with_a_root_path, _with_a_router_of_its_own, _changing],
    ids=lambda make: make.__name__.strip("_"),
)
async def test_a_request_that_is_led_to_a_route_after_all_runs_once(make: Callable[[Runs], App]) -> None:
    """no request with a key runs unprotected."""
    runs = Runs()
    app = make(runs)
    async with _client(app) as client:
        if make is _changing:
            await client.post("/nowhere")
        first, second = [await client.post("/v2/pay", headers={"Idempotency-Key": KEY}) for _ in range(2)]
    assert (first.status_code, first.text) == (second.status_code, second.text) == (201, "run 1")
    assert second.headers["idempotent-replayed"] == "true"
    gc.collect()  # so that warnings come in this test and not in another one


async def test_a_routers_own_response_behind_such_middleware_takes_no_key() -> None:
    """O-05: a redirect that took the key would make the redirected request a mismatch."""
    runs, backend = Runs(), MemoryBackend()
    app = Starlette(routes=[runs.route])
    app.add_middleware(Strip)
    app.add_middleware(IdempotencyMiddleware, backend=backend)
    async with _client(app, follow_redirects=True) as client:
        nowhere = await client.post("/v2/nowhere", headers={"Idempotency-Key": KEY})
        assert (nowhere.status_code, list(backend.scan())) == (404, [])
        response = await client.post("/v2/pay/", headers={"Idempotency-Key": KEY})
    assert (response.status_code, response.history[0].status_code, response.text) == (201, 307, "run 1")


async def test_store_decides_about_other_responses_there_too() -> None:
    """``store=`` overrules the default."""
    runs = Runs()
    app = Starlette(routes=[runs.route])
    app.add_middleware(Strip)
    app.add_middleware(IdempotencyMiddleware, backend="memory://", store=lambda response: False)
    async with _client(app) as client:
        texts = [(await client.post("/v2/pay", headers={"Idempotency-Key": KEY})).text for _ in range(2)]
    assert texts == ["run 1", "run 2"]


def _client(app: App, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop", **options)
