"""Errors that Starlette and FastAPI applications report at start: wrong rules, and authentication behind the claim."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router

from open_idempotency._core.keys import record_id
from open_idempotency._core.models import Request as CoreRequest
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.fastapi import IdempotencyRule
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.starlette import IdempotencyMiddleware, exempt, idempotent

PATIENCE = 10


async def start(app: Any) -> list[dict[str, Any]]:
    """Start the application as a server does, and end it; return its lifespan messages."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for kind in ("startup", "shutdown"):
        inbox.put_nowait({"type": f"lifespan.{kind}"})
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    await asyncio.wait_for(app({"type": "lifespan", "state": {}}, inbox.get, send), PATIENCE)
    return said


def refused(app: Any) -> str:
    """The error with which the application does not start."""
    said: list[Any] = []

    async def try_it() -> None:
        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            said.append(message)

        await asyncio.wait_for(app({"type": "lifespan", "state": {}}, receive, send), PATIENCE)

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(try_it())
    # A server ends on this message; without it the exception may look like an application without a lifespan.
    assert said == [{"type": "lifespan.startup.failed", "message": str(caught.value)}]
    return str(caught.value)


def post(app: Any, path: str, key: str | None = None) -> int:
    """The status of the response to one request, with a new key unless another one is given."""

    async def send() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post(path, headers={"idempotency-key": key or str(uuid4())})
            return response.status_code

    return asyncio.run(send())


async def charge(request: Request) -> Response:
    """An endpoint."""
    return PlainTextResponse("done")


def number() -> str:
    """An endpoint of FastAPI."""
    return "done"


@idempotent(ttl=1)
async def hasty(request: Request) -> Response:
    """An endpoint whose records would expire before their lease."""
    return PlainTextResponse("done")


def own(**fields: Any) -> Any:
    """An endpoint with this rule."""

    @idempotent(**fields)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("done")

    return endpoint


class Charges(HTTPEndpoint):
    """A class with one method whose rule contradicts the policy."""

    async def post(self, request: Request) -> Response:
        return PlainTextResponse("done")

    @idempotent(ttl=1)
    async def patch(self, request: Request) -> Response:
        return PlainTextResponse("done")


@idempotent(lease=100)
class Slow(HTTPEndpoint):
    """A class whose rule and whose method's rule are valid alone, and contradict each other."""

    @idempotent(ttl=99)
    async def post(self, request: Request) -> Response:
        return PlainTextResponse("done")


@idempotent(ttl=1)
class HastyBase:
    """A base class whose rule would contradict the policy if it covered anything."""


class HastyReading(HastyBase, HTTPEndpoint):
    """A subclass with the rule of its base, and only GET."""

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("done")


def ours(**fields: Any) -> Middleware:
    return Middleware(IdempotencyMiddleware, **{"backend": "memory://", **fields})


def route(endpoint: Any = hasty, **options: Any) -> Route:
    return Route("/charges", endpoint, methods=["POST"], **options)


def shop(*dependencies: Any) -> FastAPI:
    app = FastAPI(dependencies=[Depends(each) for each in dependencies])
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    return app


def with_router() -> FastAPI:
    """A router whose rule contradicts its endpoint's rule where the router is included."""
    app, router = shop(), APIRouter(prefix="/part", dependencies=[Depends(IdempotencyRule(lease=100))])
    router.add_api_route("/charges", idempotent(ttl=99)(lambda: "done"), methods=["POST"])
    app.include_router(router)
    return app


def with_dependency() -> FastAPI:
    """An application with this rule for all its routes."""
    app = shop(IdempotencyRule(ttl=1))
    app.add_api_route("/charges", number, methods=["POST"])
    return app


WRONG: dict[str, tuple[Any, str]] = {
    "function": (Starlette(routes=[route()], middleware=[ours()]), "POST /charges: ttl: 1.0 s"),
    "method": (Starlette(routes=[Route("/charges", Charges)], middleware=[ours()]), "PATCH /charges: ttl: 1.0 s"),
    "class and method": (Starlette(routes=[Route("/charges", Slow)], middleware=[ours()]), "POST /charges: ttl: 99"),
    "mount": (Starlette(routes=[Mount("/a", routes=[route()])], middleware=[ours()]), "POST /a/charges: ttl"),
    "application": (
        Starlette(routes=[Mount("/a", Starlette(routes=[route()]))], middleware=[ours()]),
        "POST /a/charges: ttl",
    ),
    "mounted": (
        Starlette(routes=[Mount("/a", idempotent(ttl=1)(Starlette(routes=[route(charge)])))], middleware=[ours()]),
        "POST /a/charges: ttl",
    ),
    "host": (Starlette(routes=[Host("{name}", Router([route()]))], middleware=[ours()]), "POST /charges: ttl"),
    "policy": (Starlette(routes=[route(own(lease=9))], middleware=[ours(max_run=5, lease=1)]), "max_run"),
    "around": (IdempotencyMiddleware(Starlette(routes=[route()]), "memory://"), "POST /charges: ttl"),
    "path": (Starlette(routes=[route(own(lease=100))], middleware=[ours(rules={"/*": {"ttl": 99}})]), "ttl: 99"),
    "included router": (with_router(), "POST /part/charges: ttl: 99"),
    "application's dependency": (with_dependency(), "POST /charges: ttl: 1.0 s"),
}  # fmt: skip


@pytest.mark.parametrize("form", WRONG)
def test_a_rule_that_contradicts_the_policy_keeps_the_application_from_starting(form: str) -> None:
    """The error is raised at start, with the route's name, wherever the route is."""
    app, complaint = WRONG[form]
    assert complaint in refused(app)


def test_all_contradictions_are_named_at_once() -> None:
    said = refused(Starlette(routes=[route(), Route("/x", Charges)], middleware=[ours()]))
    assert "POST /charges" in said
    assert "PATCH /x" in said


SOUND = {
    "sound rules": Starlette(routes=[route(own(ttl=60))], middleware=[ours()]),
    "a method that is never covered": Starlette(routes=[Route("/charges", HastyReading)], middleware=[ours()]),
    "an exemption within": Starlette(
        routes=[Mount("/a", idempotent(ttl=1)(Starlette(routes=[route(exempt(lambda r: None))])))], middleware=[ours()]
    ),
    "another of ours within": Starlette(
        routes=[Mount("/a", routes=[route()], middleware=[ours(lease=1, max_run=9)])], middleware=[ours()]
    ),
}


@pytest.mark.parametrize("form", SOUND)
def test_a_sound_application_starts(form: str) -> None:
    """Only routes that this middleware covers are validated."""
    said = asyncio.run(start(SOUND[form]))
    assert [each["type"] for each in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@contextmanager
def reported(caplog: pytest.LogCaptureFixture, level: int) -> Iterator[list[str]]:
    """The messages of the package's logger at this level."""
    caplog.clear()
    found: list[str] = []
    yield found
    found += [r.getMessage() for r in caplog.records if r.name == "open_idempotency" and r.levelno == level]


def test_without_a_start_the_first_request_reports_contradictions(caplog: pytest.LogCaptureFixture) -> None:
    """Some servers do not run a lifespan; valid routes are served."""
    app = Starlette(routes=[route(), Route("/sound", charge, methods=["POST"])], middleware=[ours()])
    with reported(caplog, logging.ERROR) as said:
        assert [post(app, "/sound"), post(app, "/charges"), post(app, "/sound")] == [200, 500, 200]
    assert len(said) == 1
    assert "POST /charges: ttl" in said[0]


# Authentication


class Everybody(AuthenticationBackend):
    """Authenticates every request as Ada."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        return AuthCredentials(["authenticated"]), SimpleUser("ada")


class BearerAuthMiddleware:
    """A custom authentication middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "user": SimpleUser("ada")}, receive, send)


class Hiding:
    """A middleware that does not expose the application that it wraps."""

    def __init__(self, app: Any) -> None:
        self._hidden = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._hidden(scope, receive, send)


THEIRS = Middleware(AuthenticationMiddleware, backend=Everybody())
PLACES: dict[str, Callable[..., Any]] = {
    "in one list": lambda **f: Starlette(routes=[route(charge)], middleware=[ours(**f), THEIRS]),
    "behind others": lambda **f: Starlette(
        routes=[route(charge)], middleware=[ours(**f), Middleware(BearerAuthMiddleware), Middleware(Hiding)]
    ),
    "around an application": lambda **f: IdempotencyMiddleware(
        Starlette(routes=[route(charge)], middleware=[THEIRS]), f.pop("backend", "memory://"), **f
    ),
    "on a mount": lambda **f: Starlette(
        routes=[Mount("/", routes=[route(charge)], middleware=[THEIRS])], middleware=[ours(**f)]
    ),
    "in a mounted application": lambda **f: Starlette(
        routes=[Mount("/", Starlette(routes=[route(charge)], middleware=[THEIRS]))], middleware=[ours(**f)]
    ),
    "behind one that hides it": lambda **f: Starlette(
        routes=[route(charge)], middleware=[ours(**f), Middleware(Hiding), THEIRS]
    ),
}


async def charge_as_application(scope: Any, receive: Any, send: Any) -> None:
    """An application that routes by itself."""
    if scope["type"] == "http":
        await PlainTextResponse("done")(scope, receive, send)
    else:
        await Router()(scope, receive, send)


#: positions inside of the claim
BEHIND: dict[str, Callable[..., Any]] = {
    "on a route": lambda **f: Starlette(routes=[route(charge, middleware=[THEIRS])], middleware=[ours(**f)]),
    "behind others": lambda **f: Starlette(
        routes=[route(charge, middleware=[Middleware(BearerAuthMiddleware), Middleware(Hiding)])],
        middleware=[ours(**f)],
    ),
    "around another application": lambda **f: IdempotencyMiddleware(
        AuthenticationMiddleware(charge_as_application, Everybody()), "memory://", **f
    ),
    "in a mounted application of another kind": lambda **f: Starlette(
        routes=[Mount("/", AuthenticationMiddleware(charge_as_application, Everybody()))], middleware=[ours(**f)]
    ),
}
REQUEST = CoreRequest("POST", b"/charges", b"", [], None)


@pytest.mark.parametrize("place", PLACES)
def test_the_user_is_known_wherever_authentication_stands(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """O-18: the claim is made after it, so no order is wrong."""
    app, backend = PLACES[place], MemoryBackend()
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(app(backend=backend)))
        key = str(uuid4())
        assert [post(app(backend=backend), "/charges", key) for _ in range(2)] == [200, 200]
    assert said == []
    (record,) = [each.record_id for each in backend.scan()]
    assert record == record_id("user:ada", key, REQUEST, IdempotencyPolicy())


@pytest.mark.parametrize("place", BEHIND)
def test_authentication_behind_the_claim_is_warned_of_at_start(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """The warning comes at start-up, once, before any request."""
    app = BEHIND[place]()
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(app))
        early = len(caplog.records)
        assert [post(app, "/charges") for _ in range(2)] == [200, 200]
    assert len(said) == early == 1
    assert "before authentication" in said[0]
    assert ("BearerAuthMiddleware" if place == "behind others" else "AuthenticationMiddleware") in said[0]


@pytest.mark.parametrize("place", BEHIND)
def test_with_a_scope_of_its_own_nothing_is_warned_of(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """``scope=`` takes precedence, so the order does not matter."""
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(BEHIND[place](scope=lambda request: "everybody")))
    assert said == []


RIGHT = {
    "outside": Starlette(routes=[route(charge)], middleware=[THEIRS, ours()]),
    "none": Starlette(routes=[route(charge)], middleware=[ours()]),
    "outside of an inner one of ours": Starlette(
        routes=[Mount("/a", routes=[route(charge)], middleware=[ours()])], middleware=[ours()]
    ),
}


@pytest.mark.parametrize("form", RIGHT)
def test_authentication_outside_is_no_reason_to_warn(form: str, caplog: pytest.LogCaptureFixture) -> None:
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(RIGHT[form]))
        post(RIGHT[form], "/charges")
    assert said == []


def test_authentication_that_cannot_be_seen_is_warned_of_by_its_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A user who appears inside of the claim was not known when the claim was made."""
    app = Starlette(routes=[route(charge, middleware=[Middleware(Hiding), THEIRS])], middleware=[ours()])
    with reported(caplog, logging.WARNING) as said:
        asyncio.run(start(app))
    assert said == []
    with reported(caplog, logging.WARNING) as said:
        assert [post(app, "/charges") for _ in range(2)] == [200, 200]
    assert len(said) == 1
