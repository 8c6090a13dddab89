"""Starlette: the claim is made when the endpoint is called (O-18): endpoints, mounts, ``requires``."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Mount, NoMatchFound, Route

from open_idempotency import idem
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.starlette import IdempotencyMiddleware

pytestmark = pytest.mark.anyio
MAY: set[str] = set()


class ByHeader(AuthenticationBackend):
    """Authenticates the user in the header, with the permissions in ``MAY``."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["authenticated", *MAY]), SimpleUser(name)) if name else None


class Shop:
    """Endpoints that count their runs."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.runs = 0

    def run(self) -> Response:
        """Count a run."""
        self.runs += 1
        return PlainTextResponse(f"run {self.runs}", 201)

    def app(self, *routes: BaseRoute) -> Starlette:
        """An application that authenticates inside of the middleware."""
        middleware = [
            Middleware(IdempotencyMiddleware, backend=self.backend),
            Middleware(AuthenticationMiddleware, backend=ByHeader()),
        ]
        return Starlette(routes=routes, middleware=middleware)


async def post(app: Any, path: str = "/charges", *, key: str | None = None, user: str = "ada") -> httpx.Response:
    """One POST, in process."""
    headers = {"x-user": user, "idempotency-key": key or str(uuid4())}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, headers=headers, content=b"x" * 100)


def protected(form: str, shop: Shop) -> Starlette:
    """An application with an endpoint that requires the permission to charge."""

    @requires("charge")
    async def on_loop(request: Request) -> Response:
        return shop.run()

    @requires("charge", status_code=404)
    def in_thread(request: Request) -> Response:
        return shop.run()

    @requires("authenticated")
    @requires(["charge"])
    async def twice(request: Request) -> Response:
        return shop.run()

    class Charges(HTTPEndpoint):
        @requires("charge")
        async def post(self, request: Request) -> Response:
            return shop.run()

    if form == "fastapi":
        app = FastAPI()
        app.add_middleware(AuthenticationMiddleware, backend=ByHeader())
        app.add_middleware(IdempotencyMiddleware, backend=shop.backend)
        app.add_api_route("/charges", on_loop, methods=["POST"])
        return app
    if form == "class":
        return shop.app(Route("/charges", Charges))
    endpoint = {"loop": on_loop, "thread": in_thread, "twice": twice}[form]
    return shop.app(Route("/charges", endpoint, methods=["POST"]))


@pytest.mark.parametrize("form", ["loop", "thread", "twice", "class", "fastapi"])
async def test_who_may_no_longer_do_it_gets_no_replay(form: str) -> None:
    """O-18c: ``requires`` itself refuses; nothing is claimed or recorded for the refusal."""
    shop, key = Shop(), str(uuid4())
    app = protected(form, shop)
    refusal = 404 if form == "thread" else 403
    MAY.add("charge")
    try:
        assert [(await post(app, key=key)).text for _ in range(2)] == ["run 1", "run 1"]
        MAY.clear()
        assert (await post(app, key=key)).status_code == refusal
        assert (await post(app)).status_code == refusal
        assert len(list(shop.backend.scan())) == 1
        MAY.add("charge")
        assert (await post(app, key=key)).text == "run 1"
    finally:
        MAY.clear()


class Charges(HTTPEndpoint):
    """A class-based endpoint with one method."""

    async def post(self, request: Request) -> Response:
        return await run(request)


async def run(request: Request) -> Response:
    """An endpoint that reads its body, and uses a stage."""
    shop: Shop = request.app.state.shop
    assert await request.body() == b"x" * 100
    return await idem.arun("stage", _number, shop) and shop.run()


def _number(shop: Shop) -> int:
    return shop.runs + 1


def run_in_thread(request: Request) -> Response:
    """A sync endpoint, which runs in the thread pool."""
    shop: Shop = request.app.state.shop
    return idem.run("stage", _number, shop) and shop.run()


class Application:
    """An endpoint that is an ASGI application."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await run(Request(scope, receive))
        await response(scope, receive, send)


class OwnRoute(BaseRoute):
    """A custom route class."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        return (Match.FULL, {}) if scope["type"] == "http" and scope["path"] == "/charges" else (Match.NONE, {})

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await Application()(scope, receive, send)


FORMS: dict[str, BaseRoute] = {
    "function": Route("/charges", run, methods=["POST"]),
    "function in a thread": Route("/charges", run_in_thread, methods=["POST"]),
    "class": Route("/charges", Charges),
    "application": Route("/charges", Application()),
    "mount": Mount("/", Application()),
    "mounted routes": Mount("/", routes=[Route("/charges", run, methods=["POST"])]),
    "a route of its own kind": OwnRoute(),
}


@pytest.mark.parametrize("form", FORMS)
async def test_each_kind_of_endpoint_is_claimed_where_it_is_called(form: str) -> None:
    """O-18: for the user whom an inner middleware has verified."""
    shop, key = Shop(), str(uuid4())
    app = shop.app(FORMS[form])
    app.state.shop = shop
    texts = [(await post(app, key=key, user=user)).text for user in ("ada", "ada", "bob", "bob")]
    assert texts == ["run 1", "run 1", "run 2", "run 2"]
    assert len(list(shop.backend.scan())) == 2


@pytest.mark.parametrize("path", ["/charges", "/nowhere", "/put"])
async def test_what_starlette_refuses_itself_makes_no_claim(path: str) -> None:
    """O-18: a method that a class or a route lacks, and a path without a route."""

    class Puts(HTTPEndpoint):
        async def put(self, request: Request) -> Response:
            raise AssertionError

    shop = Shop()
    app = shop.app(Route("/charges", Puts), Route("/put", run, methods=["PUT"]))
    assert (await post(app, path)).status_code in (404, 405)
    assert list(shop.backend.scan()) == []
