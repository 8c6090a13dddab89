"""Rules without an effect: on routes none of whose methods is covered, and on functions that no route leads to."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import fastapi.routing
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from flask import Blueprint, Flask
from flask.views import MethodView
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from werkzeug.local import LocalProxy

from open_idempotency.exceptions import ConfigurationError
from open_idempotency.fastapi import IdempotencyMiddleware, IdempotencyRule, exempt, idempotent
from open_idempotency.flask import Idempotency
from open_idempotency.flask import idempotent as flask_idempotent
from tests.unit.starlette.test_starlette_start import ours, post, refused, reported, start

RULE = [Depends(IdempotencyRule(required=True))]


async def charge(request: Request) -> Response:
    return PlainTextResponse("done")


def marked(**fields: Any) -> Any:
    """An endpoint of Starlette with a rule of its own."""

    @idempotent(**fields)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("done")

    return endpoint


def of_fastapi() -> str:
    return "done"


class Reading(HTTPEndpoint):
    """A class whose marked method is never covered."""

    @idempotent
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("done")

    async def post(self, request: Request) -> Response:
        return PlainTextResponse("done")


@idempotent(required=True)
class OnlyReading(HTTPEndpoint):
    """A class that is marked as a whole, and only reads."""

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("done")


class Inheriting(OnlyReading):
    """A class with the rule of its base."""


def shop(*dependencies: Any) -> FastAPI:
    app = FastAPI(dependencies=list(dependencies))
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    return app


def fastapi_route(
    method: str, endpoint: Any = of_fastapi, *, depends: Any = None, part: APIRouter | None = None
) -> Any:
    app = shop()
    router = part or app.router
    router.add_api_route("/charges", endpoint, methods=[method], dependencies=depends)
    if part is not None:
        app.include_router(part, prefix="/part")
    return app


def in_signature(rule: None = Depends(IdempotencyRule(ttl=60))) -> str:
    return "done"


def websocket() -> FastAPI:
    app = shop()

    @app.websocket("/charges")
    @idempotent
    async def live(socket: WebSocket) -> None:
        await socket.accept()

    return app


def starlette_route(endpoint: Any, its_methods: list[str] | None = None, **fields: Any) -> Starlette:
    return Starlette(routes=[Route("/charges", endpoint, methods=its_methods)], middleware=[ours(**fields)])


WRONG: dict[str, tuple[Callable[[], Any], str, str]] = {
    "PUT": (lambda: starlette_route(marked(), ["PUT"]), "PUT /charges", "methods=['PUT']"),
    "PUT and DELETE": (
        lambda: starlette_route(marked(), ["PUT", "DELETE"]), "DELETE /charges, PUT /charges", "['DELETE', 'PUT']",
    ),
    "GET": (lambda: starlette_route(marked(), ["GET"]), "GET /charges", "whatever methods= says"),
    "POST where only PUT is covered": (
        lambda: starlette_route(marked(), ["POST"], methods=["PUT"]), "POST /charges", "methods=['POST']"
    ),
    "a rule for other methods": (lambda: starlette_route(marked(methods=["PUT"]), ["POST"]), "POST /c", "['POST']"),
    "a method of a class": (lambda: starlette_route(Reading), "GET /charges", "methods="),
    "a class": (lambda: starlette_route(OnlyReading), "GET /charges", "methods="),
    "in a mount": (
        lambda: Starlette(
            routes=[Mount("/a", routes=[Route("/charges", marked(), methods=["PUT"])])], middleware=[ours()]
        ),
        "PUT /a/charges", "methods=['PUT']",
    ),
    "a decorator in FastAPI": (lambda: fastapi_route("PUT", idempotent(lambda: "")), "PUT /charges", "methods=['PUT']"),
    "a dependency": (lambda: fastapi_route("DELETE", depends=RULE), "DELETE /charges", "methods=['DELETE']"),
    "in the signature": (lambda: fastapi_route("GET", in_signature), "GET /charges", "methods="),
    "in an included router": (
        lambda: fastapi_route("PUT", depends=RULE, part=APIRouter()), "PUT /part/charges", "methods=['PUT']"
    ),
    "a websocket": (websocket, "WEBSOCKET /charges", "methods="),
}  # fmt: skip


#: rules in a list of dependencies; a router may have such a list as well
OF_ROUTERS = ("a dependency", "in an included router")


@pytest.mark.parametrize("form", WRONG)
def test_a_rule_on_a_route_that_is_not_covered_keeps_the_application_from_starting(form: str) -> None:
    """O-24: the error is raised at start."""
    app, place, cure = WRONG[form]
    if form in OF_ROUTERS and not hasattr(fastapi.routing, "iter_route_contexts"):
        # docs/limits.md: such a release does not show that the rule is no router's.
        assert asyncio.run(start(app()))[0]["type"] == "lifespan.startup.complete"
        return
    said = refused(app())
    assert said.startswith(f"{place}: " if not place.endswith("/c") else place)
    assert cure in said


def shared(*methods: str) -> Starlette:
    """One marked function on several routes."""
    endpoint = marked()
    return Starlette(routes=[Route(f"/{m}", endpoint, methods=[m]) for m in methods], middleware=[ours()])


def with_router(**inclusion: Any) -> FastAPI:
    """A router with a rule that only has GET routes."""
    app, router = shop(), APIRouter(dependencies=None if inclusion else RULE)
    router.add_api_route("/charges", of_fastapi, methods=["GET"])
    app.include_router(router, **inclusion)
    return app


def of_application() -> FastAPI:
    app = shop(*RULE)
    app.add_api_route("/charges", of_fastapi, methods=["GET"])
    return app


SOUND: dict[str, Callable[[], Any]] = {
    "one of its methods is covered": lambda: starlette_route(marked(), ["GET", "POST"]),
    "the function has a covered route": lambda: shared("GET", "PUT", "POST"),
    "the rule adds the method": lambda: starlette_route(marked(methods=["PUT"]), ["PUT"]),
    "the application adds the method": lambda: starlette_route(marked(), ["PUT"], methods=["POST", "PUT"]),
    "a rule by path adds the method": lambda: starlette_route(marked(), ["PUT"], rules={"/*": {"methods": ["PUT"]}}),
    "an exemption": lambda: starlette_route(exempt(lambda request: charge(request)), ["GET"]),
    "a class that has the rule from its base": lambda: starlette_route(Inheriting),
    "a router": with_router,
    "where a router is included": lambda: with_router(dependencies=RULE),
    "an application": of_application,
    "a mounted application": lambda: Starlette(
        routes=[Mount("/a", idempotent(Starlette(routes=[Route("/charges", charge)])))], middleware=[ours()]
    ),
}


@pytest.mark.parametrize("form", SOUND)
def test_a_rule_that_has_an_effect_somewhere_is_no_error(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """O-24: nor is a rule of a whole router or application."""
    with reported(caplog, logging.WARNING) as said:
        replies = asyncio.run(start(SOUND[form]()))
    assert replies[0]["type"] == "lifespan.startup.complete"
    assert said == []


def test_without_a_start_each_request_that_is_looked_at_is_refused() -> None:
    """O-24: also a request to another route, as a server that starts the application would serve none."""
    app = Starlette(
        routes=[Route("/charges", marked(), methods=["PUT"]), Route("/sound", charge, methods=["POST"])],
        middleware=[ours()],
    )
    assert [post(app, "/sound"), post(app, "/sound")] == [500, 500]


# Flask


class Listing(MethodView):
    """A class whose marked method is never covered."""

    @flask_idempotent
    def get(self) -> str:
        return "done"

    def post(self) -> str:
        return "done"


@flask_idempotent
class OnlyListing(MethodView):
    """A class that is marked as a whole, and only reads."""

    def get(self) -> str:
        return "done"


def flask_shop(*routes: tuple[str, Any], **fields: Any) -> Flask:
    """An application with these views, each for one method or, if it is empty, for its default methods."""
    app = Flask("shop")
    app.testing = True
    Idempotency(app, backend="memory://", **fields)
    for number, (method, view) in enumerate(routes):
        app.add_url_rule(f"/{number}", f"view{number}", view, methods=[method] if method else None)
    app.add_url_rule("/sound", "sound", lambda: "done", methods=["GET", "POST"])
    return app


def view(**fields: Any) -> Any:
    """A marked view."""

    @flask_idempotent(**fields)
    def charge_here() -> str:
        return "done"

    return charge_here


WRONG_VIEWS: dict[str, tuple[Any, str]] = {
    "PUT": (lambda: ("PUT", view()), "PUT /0: the rule has no effect, .*methods=\\['PUT'\\]"),
    "GET": (lambda: ("GET", view()), "GET /0: the rule has no effect, .*whatever methods= says"),
    "a method of a class": (lambda: ("", Listing.as_view("listing")), "GET /0: the rule"),
    "a class": (lambda: ("", OnlyListing.as_view("listing")), "GET /0: the rule"),
}


@pytest.mark.parametrize("form", WRONG_VIEWS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_rule_on_a_view_that_is_not_covered_is_an_error_at_the_first_request(form: str, method: str) -> None:
    """O-24: Flask has no start, so each request raises, to whichever view."""
    make, complaint = WRONG_VIEWS[form]
    client = flask_shop(make()).test_client()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=complaint):
            client.open("/sound", method=method)


def test_a_view_on_several_routes_needs_one_that_is_covered() -> None:
    """O-24: also a view that a blueprint has under two methods."""
    app, part, both = flask_shop(), Blueprint("part", "part"), view()
    part.get("/both")(part.post("/both")(both))
    app.register_blueprint(part)
    assert app.test_client().get("/sound").status_code == 200


# Marks that no route leads to


def careless(function: Any) -> Any:
    """A decorator without ``functools.wraps``."""

    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


class Keeping:
    """A decorator that is a class, and keeps the function in an attribute of its own."""

    def __init__(self, function: Any) -> None:
        self.wrapped_here = function

    def __call__(self, request: Request) -> Any:
        return self.wrapped_here(request)


@idempotent(required=True)
async def deep(request: Request) -> Response:
    """A function that an endpoint calls."""
    return PlainTextResponse("done")


async def helper(request: Request) -> Response:
    return await deep(request)


async def calling(request: Request) -> Response:
    return await deep(request)


async def calling_a_helper(request: Request) -> Response:
    return await helper(request)


LOST: dict[str, Callable[[], Any]] = {
    "behind a decorator": lambda: careless(marked()),
    "behind two": lambda: careless(careless(marked())),
    "behind an object": lambda: careless(Keeping(marked())),
    "a method that is called": lambda: careless(Reading.get),
    "called": lambda: calling,
    "called by a helper": lambda: calling_a_helper,
    "behind a partial": lambda: functools.partial(careless(marked())),
}


@pytest.mark.parametrize("form", LOST)
def test_a_mark_that_no_route_leads_to_is_warned_about_at_start(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """O-24: with the name of the function, and of the route that calls or wraps it."""
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(starlette_route(LOST[form](), ["POST"])))
    (warning,) = said
    assert "tests.unit.test_rules_without_effect." in warning
    assert "the endpoint of POST /charges calls or wraps it" in warning


def test_a_mark_is_not_lost_where_a_route_leads_to_it(caplog: pytest.LogCaptureFixture) -> None:
    """O-24: an endpoint may call another one, and ``functools.wraps`` copies the mark. Other functions are ignored."""

    @idempotent
    async def unmounted(request: Request) -> Response:
        return PlainTextResponse("done")

    copied = functools.wraps(first := marked())(careless(first))
    routes = [
        Route("/a", calling, methods=["POST"]),
        Route("/b", deep, methods=["POST"]),
        Route("/c", copied, methods=["POST"]),
    ]
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(Starlette(routes=routes, middleware=[ours()])))
    assert said == []
    assert unmounted is not None


def _resolve() -> Any:
    raise AssertionError("resolved")


proxied: Any = LocalProxy(_resolve)


def test_what_an_endpoint_refers_to_is_not_resolved() -> None:
    """O-24: a proxy of the user or of a session is not resolved, since that may call the application."""

    def naming() -> str:
        return str(proxied)

    client = flask_shop(("POST", naming)).test_client()
    assert client.get("/sound").status_code == 200


def test_a_mark_that_no_view_of_flask_leads_to_is_warned_about_by_the_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """O-24."""
    client = flask_shop(("POST", careless(view()))).test_client()
    with reported(caplog, logging.WARNING) as said:
        assert [client.get("/sound").status_code for _ in range(2)] == [200, 200]
    (warning,) = said
    assert "the endpoint of POST /0 calls or wraps it" in warning
