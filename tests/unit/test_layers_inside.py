"""CORS and compression inside of the middleware: what is reported at start, and what clients get (R-11, R-12)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flask
import httpx
import pytest
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from fastapi import FastAPI
from flask_compress import Compress
from flask_cors import CORS, cross_origin
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from open_idempotency import asgi, rules, wsgi
from open_idempotency._routes.survey import layers_inside
from open_idempotency.fastapi import IdempotencyMiddleware as FastApiMiddleware
from open_idempotency.flask import Idempotency
from open_idempotency.starlette import IdempotencyMiddleware
from tests.django_project.calls import OURS, project
from tests.unit.flask.flask_shop import HEADERS, post, replayed, view
from tests.unit.starlette.test_starlette_start import start

PAGE, OTHER = "https://app.example", "https://other.example"
ALLOWING = {"problem_headers": {"access-control-allow-origin": PAGE}}
OURS_IN_STARLETTE = Middleware(IdempotencyMiddleware, backend="memory://")
CORS_IN_STARLETTE = Middleware(CORSMiddleware, allow_origins=[PAGE])
GZIP = Middleware(GZipMiddleware)


class OwnCors(CORSMiddleware):
    """A subclass of Starlette's CORS middleware, under another name."""


class Corsair:
    """A middleware whose name contains "cors", and that is no CORS middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class DecompressMiddleware(Corsair):
    """A middleware that decompresses requests."""


async def charge(request: Request) -> PlainTextResponse:
    """Charge."""
    return PlainTextResponse("charged", 201)


def charging(**options: Any) -> Route:
    return Route("/charges", charge, methods=["POST"], **options)


@pytest.fixture(autouse=True)
def _at_warning(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        yield


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The reported layers, in order."""
    lines = [record.getMessage() for record in caplog.records if record.name == "open_idempotency"]
    return [line.partition(" is inside ")[0] for line in lines]


# Starlette, FastAPI and plain ASGI

INSIDE: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "cors": (
        lambda: Starlette(routes=[charging()], middleware=[OURS_IN_STARLETTE, CORS_IN_STARLETTE]),
        ["CORSMiddleware"],
    ),
    "compression": (lambda: Starlette(routes=[charging()], middleware=[OURS_IN_STARLETTE, GZIP]), ["GZipMiddleware"]),
    "both": (
        lambda: Starlette(routes=[charging()], middleware=[OURS_IN_STARLETTE, GZIP, CORS_IN_STARLETTE]),
        ["CORSMiddleware", "GZipMiddleware"],
    ),
    "derived": (
        lambda: Starlette(routes=[charging()], middleware=[OURS_IN_STARLETTE, Middleware(OwnCors)]),
        ["OwnCors"],
    ),
    "around a mount": (
        lambda: Starlette(
            routes=[Mount("/a", routes=[charging()], middleware=[CORS_IN_STARLETTE])], middleware=[OURS_IN_STARLETTE]
        ),
        ["CORSMiddleware"],
    ),
    "around a mounted application": (
        lambda: Starlette(
            routes=[Mount("/a", Starlette(routes=[charging()], middleware=[CORS_IN_STARLETTE]))],
            middleware=[OURS_IN_STARLETTE],
        ),
        ["CORSMiddleware"],
    ),
    "around a route": (
        lambda: Starlette(routes=[charging(middleware=[GZIP])], middleware=[OURS_IN_STARLETTE]),
        ["GZipMiddleware"],
    ),
    "in an application that is wrapped": (
        lambda: IdempotencyMiddleware(Starlette(routes=[charging()], middleware=[CORS_IN_STARLETTE]), "memory://"),
        ["CORSMiddleware"],
    ),
    "in an application that plain ASGI wraps": (
        lambda: asgi.IdempotencyMiddleware(Starlette(routes=[charging()], middleware=[GZIP]), "memory://"),
        ["GZipMiddleware"],
    ),
}
OUTSIDE: dict[str, Callable[[], Any]] = {
    "around": lambda: Starlette(routes=[charging()], middleware=[CORS_IN_STARLETTE, GZIP, OURS_IN_STARLETTE]),
    "around the whole": lambda: CORSMiddleware(Starlette(routes=[charging()], middleware=[OURS_IN_STARLETTE])),
    "other layers": lambda: Starlette(
        routes=[charging()], middleware=[OURS_IN_STARLETTE, Middleware(Corsair), Middleware(DecompressMiddleware)]
    ),
    "around a nearer one": lambda: Starlette(
        routes=[
            Mount("/a", Starlette(routes=[charging()], middleware=[CORS_IN_STARLETTE, OURS_IN_STARLETTE])),
        ],
        middleware=[OURS_IN_STARLETTE],
    ),
    "with headers for problems": lambda: Starlette(
        routes=[charging()],
        middleware=[Middleware(IdempotencyMiddleware, backend="memory://", **ALLOWING), CORS_IN_STARLETTE],
    ),
}


@pytest.mark.parametrize(("make", "layers"), INSIDE.values(), ids=INSIDE.keys())
def test_layers_inside_are_reported_when_the_application_starts(
    make: Callable[[], Any], layers: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """R-12: once each, with their names and the cure."""
    asyncio.run(start(make()))
    assert warned(caplog) == layers
    assert all("Put it around IdempotencyMiddleware" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("make", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_layers_that_do_no_harm_are_not_reported(make: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    """R-12: outside of the middleware that protects, or where problems have headers of their own."""
    asyncio.run(start(make()))
    assert warned(caplog) == []


def test_fastapi_applies_the_last_layer_outermost(caplog: pytest.LogCaptureFixture) -> None:
    """R-12: ``add_middleware`` does so."""
    for names in (["CORSMiddleware"], []):
        caplog.clear()
        app = FastAPI()
        layers: list[tuple[Any, dict[str, Any]]] = [
            (CORSMiddleware, {"allow_origins": [PAGE]}),
            (FastApiMiddleware, {"backend": "memory://"}),
        ]
        for layer, options in layers if names else reversed(layers):
            app.add_middleware(layer, **options)
        asyncio.run(start(app))
        assert warned(caplog) == names


def test_an_application_that_no_server_starts_is_looked_at_with_its_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R-12: servers may omit the lifespan."""
    app = Starlette(routes=[charging()], middleware=[OURS_IN_STARLETTE, CORS_IN_STARLETTE])

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            for _ in range(2):
                await client.post("/charges", headers=HEADERS)

    asyncio.run(ask())
    assert warned(caplog) == ["CORSMiddleware"]


# Flask


def flask_app() -> flask.Flask:
    app = flask.Flask("shop")
    app.config["COMPRESS_MIN_SIZE"] = 1
    return app


def big() -> Any:
    return flask.Response("charged " * 1000, 201, mimetype="text/html")


@pytest.mark.parametrize("ours_first", [True, False])
def test_flask_compress_is_reported_when_it_is_added(ours_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    """R-12: in either order, once, before any request."""
    app = flask_app()
    for extension in (Idempotency, Compress) if ours_first else (Compress, Idempotency):
        extension(app, **({"backend": "memory://"} if extension is Idempotency else {}))
    assert warned(caplog) == ["Compress"]
    view(app, big)
    post(app)
    assert warned(caplog) == ["Compress"]


def test_flask_cors_for_the_whole_application_is_right_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """R-12: it runs for problems and replays too, so nothing is reported, and every page gets its headers."""
    app = flask_app()
    Idempotency(app, backend="memory://")
    CORS(app, origins=[PAGE, OTHER])
    view(app, lambda: ("charged", 201))
    post(app, headers={**HEADERS, "Origin": PAGE})
    for origin in (PAGE, OTHER):
        again = post(app, headers={**HEADERS, "Origin": origin})
        reused = post(app, headers={**HEADERS, "Origin": origin}, data=b"other")
        assert (replayed(again), reused.status_code) == (True, 422)
        for response in (again, reused):
            assert response.headers.getlist("Access-Control-Allow-Origin") == [origin]
    assert warned(caplog) == []


def test_flask_cors_of_one_view_is_replayed_to_its_page(caplog: pytest.LogCaptureFixture) -> None:
    """R-11, R-12: a warning names the view, whose problems no page can read."""
    app = flask_app()
    Idempotency(app, backend="memory://")
    view(app, cross_origin(origins=[PAGE])(lambda: ("charged", 201)))
    post(app, headers={**HEADERS, "Origin": PAGE})
    again, other = (post(app, headers={**HEADERS, "Origin": origin}) for origin in (PAGE, OTHER))
    assert (replayed(again), replayed(other)) == (True, True)
    assert again.headers.getlist("Access-Control-Allow-Origin") == [PAGE]
    assert "Access-Control-Allow-Origin" not in other.headers
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("@cross_origin on charges: problems")


@pytest.mark.parametrize("cure", ["problem_headers", "CORS", "methods"])
def test_flask_cors_of_one_view_is_not_reported_where_it_does_no_harm(
    cure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R-12: problems have the headers, or the view is not covered."""
    app = flask_app()
    options: dict[str, Any] = {"problem_headers": ALLOWING, "methods": {"methods": ["PUT"]}}
    fields = ALLOWING if cure == "problem_headers" else options.get(cure, {})
    Idempotency(app, backend="memory://", **fields)
    if cure == "CORS":
        CORS(app, origins=[PAGE])
    marked = rules.exempt if cure == "methods" else lambda function: function
    view(app, marked(cross_origin(origins=[PAGE])(lambda: ("charged", 201))))
    post(app)
    assert warned(caplog) == []


@pytest.mark.parametrize("inner", [True, False])
def test_extensions_in_a_flask_application_that_wsgi_wraps_are_reported(
    inner: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """R-12: problems and replays do not pass through them there."""
    app = flask_app()
    CORS(app)
    Compress(app)
    wsgi.IdempotencyMiddleware(app.wsgi_app if inner else app, "memory://")
    assert warned(caplog) == ["FlaskCORS", "Compress"]


# Django


def charged(request: HttpRequest) -> HttpResponse:
    """Charge."""
    return HttpResponse("charged", status=201)


CORS_IN_DJANGO = "corsheaders.middleware.CorsMiddleware"
GZIP_IN_DJANGO = "django.middleware.gzip.GZipMiddleware"


@pytest.mark.parametrize(
    ("middleware", "ids"),
    [
        ([OURS, CORS_IN_DJANGO], ["open_idempotency.W013"]),
        ([OURS, GZIP_IN_DJANGO], ["open_idempotency.W003"]),
        ([CORS_IN_DJANGO, GZIP_IN_DJANGO, OURS], []),
    ],
)
def test_django_checks_name_layers_behind_the_middleware(middleware: list[str], ids: list[str]) -> None:
    """R-12: CORS and compression must be listed before it."""
    with project(charged, MIDDLEWARE=middleware):
        found = [message for message in run_checks() if (message.id or "").startswith("open_idempotency.")]
    assert [message.id for message in found] == ids
    for message in found:
        assert f'list "{middleware[1]}" before' in (message.hint or "")


@pytest.mark.parametrize("order", [[OURS, CORS_IN_DJANGO], [CORS_IN_DJANGO, OURS]], ids=["inside", "outside"])
def test_django_cors_headers_gives_each_page_its_own(order: list[str]) -> None:
    """R-11: on replays and problems, once, listed on either side."""
    with (
        project(charged, MIDDLEWARE=order),
        override_settings(CORS_ALLOWED_ORIGINS=[PAGE, OTHER]),
    ):
        client = Client()

        def send(origin: str, body: str = "{}") -> Any:
            headers = {"idempotency-key": HEADERS["Idempotency-Key"], "origin": origin}
            return client.post("/0", body, content_type="application/json", headers=headers)

        send(PAGE)
        for origin in (PAGE, OTHER):
            again, reused = send(origin), send(origin, "[]")
            assert (again.headers["Idempotent-Replayed"], reused.status_code) == ("true", 422)
            for response in (again, reused):
                assert response.headers["Access-Control-Allow-Origin"] == origin


# Applications of unknown frameworks


def test_an_application_with_attributes_of_other_kinds_is_looked_at_without_harm() -> None:
    """R-12: attributes with the names that frameworks use may have other types elsewhere."""

    class Odd:
        user_middleware = routes = after_request_funcs = app = "no such thing"

    assert list(layers_inside(Odd(), asgi.IdempotencyMiddleware)) == [Odd, str]


def test_an_application_that_leads_back_to_itself_is_looked_at_once() -> None:
    """R-12: the search ends."""

    class Loop:
        @property
        def app(self) -> Any:
            return self

    assert list(layers_inside(Loop(), asgi.IdempotencyMiddleware)) == [Loop]
