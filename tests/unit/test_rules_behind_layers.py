"""Rules on functions behind other layers: class-based views, decorators and route classes."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from flask import Flask, make_response
from flask.views import MethodView
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from open_idempotency.fastapi import IdempotencyMiddleware, exempt, idempotent
from open_idempotency.flask import Idempotency
from open_idempotency.flask import idempotent as flask_idempotent

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
numbers = count()


class KeptAlone:
    """A decorator that keeps the function as ``__wrapped__``, and copies nothing."""

    def __init__(self, function: Any) -> None:
        self.__wrapped__ = function

    def __call__(self, *args: Any) -> Any:
        return self.__wrapped__(*args)


def kept_alone(function: Any) -> Any:
    """The same as a function."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__wrapped__ = function
    return call


def copying(function: Any) -> Any:
    """A decorator with ``functools.wraps``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def class_based(router: APIRouter) -> Callable[[type], type]:
    """Class-based views as packages for FastAPI make them: ``self`` becomes a dependency on the class."""

    def build(kind: type) -> type:
        for route in router.routes:
            endpoint: Any = getattr(route, "endpoint", None)
            declared: Any = endpoint
            if getattr(kind, getattr(endpoint, "__name__", ""), None) is not endpoint:
                continue
            first, *rest = inspect.signature(declared).parameters.values()
            first = first.replace(default=Depends(kind), kind=inspect.Parameter.KEYWORD_ONLY)
            rest = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in rest]
            declared.__signature__ = inspect.Signature([*rest, first])
            built = APIRoute(route.path, declared, methods=["POST"])
            router.routes[router.routes.index(route)] = built
        return kind

    return build


class OwnRoute(APIRoute):
    """A route class that wraps its request handler, and the endpoint."""

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, copying(endpoint), **options)

    def get_route_handler(self) -> Any:
        inner = super().get_route_handler()

        async def handle(request: Any) -> Any:
            return await inner(request)

        return handle


def included(router: APIRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    return app


def routed(endpoint: Any, **options: Any) -> FastAPI:
    router = APIRouter(**options)
    router.add_api_route("/charges", endpoint, methods=["POST"])
    return included(router)


def number() -> int:
    return next(numbers)


def in_class(mark_method: Any, mark_class: Any) -> FastAPI:
    """A class-based view with its mark on the method or on the class."""
    router = APIRouter()

    @mark_class
    class Charges:
        @router.post("/charges")
        @mark_method
        def pay(self) -> int:
            return number()

    class_based(router)(Charges)
    return included(router)


def bound(mark_method: Any, mark_class: Any) -> FastAPI:
    """A bound method of a controller."""

    @mark_class
    class Controller:
        @mark_method
        def pay(self) -> int:
            return number()

    return routed(Controller().pay)


def of_starlette(mark_method: Any, mark_class: Any) -> FastAPI:
    """A class-based endpoint of Starlette, whose method has a decorator above the mark."""

    async def post(self: Any, request: Request) -> Response:
        return PlainTextResponse(str(number()))

    kind = type("Charges", (HTTPEndpoint,), {"post": copying_async(mark_method(post))})
    app = FastAPI()
    app.router.routes.append(Route("/charges", mark_class(kind)))
    return app


def copying_async(function: Any) -> Any:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return call


def nothing(marked: Any) -> Any:
    return marked


#: by name: takes the mark
LAYERS: dict[str, Callable[[Any], FastAPI]] = {
    "a route class": lambda mark: routed(mark(lambda: number()), route_class=OwnRoute),
    "a method of a class": lambda mark: in_class(mark, nothing),
    "a class": lambda mark: in_class(nothing, mark),
    "a bound method": lambda mark: bound(mark, nothing),
    "the class of a bound method": lambda mark: bound(nothing, mark),
    "a method of Starlette's class": lambda mark: of_starlette(mark, nothing),
    "Starlette's class": lambda mark: of_starlette(nothing, mark),
    "a decorator": lambda mark: routed(copying(mark(lambda: number()))),
    "a decorator that keeps it": lambda mark: routed(kept_alone(mark(lambda: number()))),
    "an object that keeps it": lambda mark: routed(KeptAlone(mark(lambda: number()))),
    "two that keep it": lambda mark: routed(kept_alone(kept_alone(mark(lambda: number())))),
    "a partial": lambda mark: routed(functools.partial(mark(lambda: number()))),
}


def statuses_and_texts(app: Any) -> tuple[int, list[str]]:
    """The status of a request without a key, and the texts of two requests with one key."""

    async def send() -> tuple[int, list[str]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            bare = await client.post("/charges")
            return bare.status_code, [(await client.post("/charges", headers=KEY)).text for _ in range(2)]

    return asyncio.run(send())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_rule_reaches_the_function_behind_a_layer(layer: str) -> None:
    """O-06: a required key, and an exemption."""
    required, free = LAYERS[layer](idempotent(required=True)), LAYERS[layer](exempt)
    for app in (required, free):
        app.add_middleware(IdempotencyMiddleware, backend="memory://")
    status, (first, second) = statuses_and_texts(required)
    assert (status, first == second) == (400, True)
    status, (first, second) = statuses_and_texts(free)
    assert (status, first == second) == (200, False)


# Flask


class Resource(MethodView):
    """A class of an extension, which calls its method through decorators and makes a response of the value."""

    method_decorators = (copying,)

    def dispatch_request(self, **values: Any) -> Any:
        method = getattr(self, "post")  # noqa: B009 (as an extension finds it)
        for decorator in self.method_decorators:
            method = decorator(method)
        return make_response(str(method(**values)))


def as_extension(kind: Any) -> Any:
    """The view function as an extension registers it."""
    return copying(kind.as_view("charges"))


VIEWS: dict[str, Callable[[Any], Any]] = {
    "a method": lambda mark: as_extension(
        type("Charges", (Resource,), {"post": mark(lambda self: number())}),
    ),
    "a method below a decorator": lambda mark: as_extension(
        type("Charges", (Resource,), {"post": copying(mark(lambda self: number()))}),
    ),
    "a method above a decorator": lambda mark: as_extension(
        type("Charges", (Resource,), {"post": mark(copying(lambda self: number()))}),
    ),
    "a class": lambda mark: as_extension(mark(type("Charges", (Resource,), {"post": lambda self: number()}))),
    "a decorator that keeps it": lambda mark: kept_alone(mark(lambda: str(number()))),
}


@pytest.mark.parametrize("layer", VIEWS)
def test_a_rule_reaches_the_view_behind_a_layer_of_flask(layer: str) -> None:
    """O-06: a required key, and an exemption."""

    def sent(mark: Any) -> tuple[int, list[str]]:
        app = Flask("shop")
        Idempotency(app, backend="memory://")
        app.add_url_rule("/charges", "charges", VIEWS[layer](mark), methods=["POST"])
        client = app.test_client()
        return client.post("/charges").status_code, [client.post("/charges", headers=KEY).text for _ in range(2)]

    status, (first, second) = sent(flask_idempotent(required=True))
    assert (status, first == second) == (400, True)
    status, (first, second) = sent(exempt)
    assert (status, first == second) == (200, False)
