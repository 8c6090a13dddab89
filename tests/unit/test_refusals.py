"""A ``scope=`` that finds no caller, or a caller without permission: the client gets 401 or 403."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
import werkzeug.exceptions
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.test import AsyncClient, Client
from fastapi import FastAPI
from fastapi import HTTPException as FastAPIException
from flask import Flask, abort, jsonify, make_response
from hypothesis import given
from hypothesis import strategies as st
from rest_framework import exceptions as rest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.test import Client as WsgiClient

from open_idempotency import ConfigurationError, IdempotencyPolicy, NotAuthenticated, wsgi
from open_idempotency._core.identity import ScopeRefused, refused_status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import CHALLENGE, ScopeUnknown
from open_idempotency.flask import Idempotency
from open_idempotency.starlette import IdempotencyMiddleware as StarletteMiddleware
from tests.django_project.calls import post, project
from tests.unit.every_adapter import ADAPTERS, Reply, post_flask
from tests.unit.wsgi.wsgi_server import hello

TYPE = "urn:problem-type:open-idempotency:"


def raising(error: BaseException) -> Callable[[Any], str]:
    """A ``scope=`` that refuses every request."""

    def scope(_: Any) -> str:
        raise error

    return scope


def send_by(adapter: str, backend: Any, **policy: Any) -> Reply:
    """One request to an application on this adapter."""
    return ADAPTERS[adapter](backend, (), **policy)()


by_every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


class Watched(MemoryBackend):
    """The memory backend, which fails the test if a claim is made."""

    def claim(self, c: Any, /) -> Any:
        raise AssertionError("a refused request has reached the backend")


@pytest.fixture
def untouched() -> MemoryBackend:
    """A backend that must not be called."""
    return Watched()


@by_every_adapter
def test_a_scope_that_knows_no_caller_is_a_401(adapter: str, untouched: MemoryBackend) -> None:
    """O-20: a problem with the challenge that a 401 must have; nothing is claimed, and the view does not run."""
    reply = send_by(adapter, untouched, scope=raising(NotAuthenticated()))
    assert (reply.status, reply.headers["www-authenticate"]) == (401, CHALLENGE)
    assert reply.problem["type"] == f"{TYPE}not-authenticated"
    assert (reply.problem["retryable"], reply.problem["status"]) == (False, 401)
    assert list(untouched.scan()) == []


@by_every_adapter
def test_the_exception_says_what_the_client_reads(adapter: str, untouched: MemoryBackend) -> None:
    """O-20: its detail and its challenge are in the problem."""
    reply = send_by(adapter, untouched, scope=raising(NotAuthenticated("send your API key", 'ApiKey realm="shop"')))
    assert (reply.status, reply.headers["www-authenticate"]) == (401, 'ApiKey realm="shop"')
    assert reply.problem["detail"] == "send your API key"


#: exceptions of frameworks, their status, and the text that reaches a client in a problem of the library
OF_FRAMEWORKS: dict[str, tuple[Exception, int, str, str]] = {
    "starlette": (HTTPException(401, "who are you", {"WWW-Authenticate": "Digest r"}), 401, "who are you", "Digest r"),
    "fastapi": (FastAPIException(403, "not you"), 403, "not you", ""),
    "werkzeug": (
        werkzeug.exceptions.Unauthorized("log in", www_authenticate=WWWAuthenticate("basic", {"realm": "a shop"})),
        401,
        "log in",
        'Basic realm="a shop"',
    ),
    "werkzeug's other": (werkzeug.exceptions.Forbidden("not you"), 403, "not you", ""),
    "rest framework": (rest.NotAuthenticated("who are you"), 401, "who are you", CHALLENGE),
    "rest framework's other": (rest.AuthenticationFailed("no such token"), 401, "no such token", CHALLENGE),
    "rest framework's third": (rest.PermissionDenied("not you"), 403, "not you", ""),
}
of_every_framework = pytest.mark.parametrize(
    ("error", "status", "detail", "challenge"), OF_FRAMEWORKS.values(), ids=OF_FRAMEWORKS
)


@by_every_adapter
@of_every_framework
def test_what_a_framework_raises_for_401_and_403_is_that(
    adapter: str, error: Exception, status: int, detail: str, challenge: str, untouched: MemoryBackend
) -> None:
    """O-20: the framework's own handler renders it if it is around the claim; else a problem has its status."""
    reply = send_by(adapter, untouched, scope=raising(error))
    assert reply.status == status
    assert detail.encode() in reply.body
    if challenge:
        assert reply.headers["www-authenticate"] == challenge


@by_every_adapter
def test_a_permission_that_django_denies_is_a_403(adapter: str, untouched: MemoryBackend) -> None:
    """O-20: PermissionDenied has no status attribute. Its text is not meant for clients."""
    reply = send_by(adapter, untouched, scope=raising(PermissionDenied("the row of user 7")))
    assert reply.status == 403
    assert b"user 7" not in reply.body


@pytest.mark.parametrize("client", [Client(), AsyncClient()], ids=["wsgi", "asgi"])
def test_djangos_own_exception_goes_to_djangos_own_handler(client: Any, untouched: MemoryBackend) -> None:
    """O-20: the project's ``handler403`` renders the page."""
    urls = type("Urls", (), {"handler403": staticmethod(lambda request, exception: HttpResponse("ours", status=403))})
    with project(lambda request: HttpResponse("ran"), IDEMPOTENCY_SCOPE=raising(PermissionDenied())):
        from django.conf import settings

        settings.ROOT_URLCONF.handler403 = urls.handler403
        if isinstance(client, AsyncClient):

            async def send() -> Any:
                return await post(client)

            response = asyncio.run(send())
        else:
            response = post(client)
    assert (response.status_code, response.content) == (403, b"ours")


def test_flasks_error_handlers_see_what_scope_raises(untouched: MemoryBackend) -> None:
    """O-20: handlers for a status, and handlers for a class of errors, including the library's."""
    for handled in (401, NotAuthenticated, werkzeug.exceptions.HTTPException):
        app = Flask("shop")
        app.post("/0")(lambda: "ran")
        app.register_error_handler(handled, lambda error: (jsonify(by=type(error).__name__), 401))
        error = NotAuthenticated() if handled is NotAuthenticated else werkzeug.exceptions.Unauthorized()
        Idempotency(app, untouched, scope=raising(error))
        reply = post_flask(app)
        assert (reply.status, reply.problem) == (401, {"by": type(error).__name__})


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_starlettes_exception_handlers_see_what_scope_raises(kind: Any, untouched: MemoryBackend) -> None:
    """O-20: the claim is made when the endpoint is called, inside of the handlers."""

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ran")

    def handle(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(f"by {type(error).__name__}", status_code=401)

    app = kind()
    app.add_route("/0", endpoint, methods=["POST"])
    app.add_exception_handler(HTTPException, handle)
    app.add_middleware(StarletteMiddleware, backend=untouched, scope=raising(HTTPException(401)))

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            return await client.post("/0", headers={"Idempotency-Key": str(uuid4())})

    reply = asyncio.run(send())
    assert (reply.status_code, reply.text) == (401, "by HTTPException")


def test_a_handler_for_every_exception_is_none_for_a_refusal(untouched: MemoryBackend) -> None:
    """O-20: such a handler would make a 500 of it."""
    app = Flask("shop")
    app.post("/0")(lambda: "ran")
    app.register_error_handler(Exception, lambda error: ("something broke", 500))
    Idempotency(app, untouched, scope=raising(NotAuthenticated()))
    assert post_flask(app).status == 401


def test_flasks_abort_with_a_response_is_that_response(untouched: MemoryBackend) -> None:
    """O-20: an exception of werkzeug that has a response and no code."""
    app = Flask("shop")
    app.post("/0")(lambda: "ran")
    Idempotency(app, untouched, scope=lambda request: abort(make_response("own page", 401)))
    reply = post_flask(app)
    assert (reply.status, reply.body) == (401, b"own page")


class Upstream(Exception):
    """The refusal of another service, as urllib raises it."""

    code = 401
    status = 401


class UpstreamOfAnotherKind(Exception):
    """The refusal of another service, as the client libraries of many services raise it."""

    status_code = 401


class UpstreamWithResponse(Exception):
    """The refusal of another service, as httpx and requests raise it."""

    def __init__(self) -> None:
        self.response = PlainTextResponse("who are you", status_code=403)

    def get_response(self) -> object:
        """A method that werkzeug's exceptions have too."""
        return self.response


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        IndexError(),
        Upstream(),
        UpstreamOfAnotherKind(),
        UpstreamWithResponse(),
        HTTPException(400),
        HTTPException(500),
        werkzeug.exceptions.NotFound(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_exception_is_a_mistake(error: Exception) -> None:
    """O-20, O-20a: only 401 and 403 are refusals; the response of another service is not."""
    assert refused_status(error) is None
    with pytest.raises(ScopeUnknown, match="NotAuthenticated") as caught:
        send_by("wsgi", MemoryBackend(), scope=raising(error))
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)


@pytest.mark.parametrize(("status", "found"), [(401, 401), (403, 403), (404, None)])
def test_what_django_ninja_raises_is_a_refusal(status: int, found: int | None) -> None:
    """O-20: its ``HttpError`` has an attribute of its own for the status."""
    with project():
        from ninja.errors import HttpError  # it reads Django's settings when it is imported

        assert refused_status(HttpError(status, "who are you")) == found


@pytest.mark.parametrize(("value", "said"), [("", "an empty string"), (None, "NoneType"), (b"ann", "bytes")])
def test_a_scope_that_names_nobody_says_what_to_do(value: Any, said: str) -> None:
    """O-20a: raise NotAuthenticated, return a name, or share a scope on purpose."""
    with pytest.raises(ScopeUnknown) as caught:
        send_by("wsgi", MemoryBackend(), scope=lambda request: value)
    for words in (f"returned {said};", "non-empty string", "open_idempotency.NotAuthenticated", '"anonymous"'):
        assert words in str(caught.value)


async def coroutine(_: Any) -> str:
    return "ann"


@pytest.mark.parametrize("field", ["scope", "validate", "fingerprint", "store", "redact", "render_problem", "on_event"])
def test_a_hook_that_nobody_awaits_is_refused_at_start(field: str) -> None:
    """O-20a: its coroutine would count as its result, and be true."""
    with pytest.raises(ConfigurationError, match=f"^{field}: .*coroutine"):
        IdempotencyPolicy(**{field: coroutine})


@pytest.mark.parametrize("challenge", ["", " Bearer", "Bearer\r\nX: 1", "Bearer realm=\u00fc", 7, None])
def test_a_challenge_that_no_header_can_carry_is_refused(challenge: Any) -> None:
    """O-20a: its constructor raises, and says what to pass instead."""
    with pytest.raises(ConfigurationError, match="WWW-Authenticate"):
        NotAuthenticated(challenge=challenge)


@given(st.text(max_size=30))
def test_a_challenge_of_a_framework_never_breaks_the_response(value: str) -> None:
    """O-20: a challenge that cannot be sent is replaced."""
    problem = ScopeRefused(HTTPException(401, headers={"WWW-Authenticate": value}), 401).problem()
    assert problem.challenge is not None
    assert problem.challenge.isascii()
    assert not set(problem.challenge) & set("\r\n\0")


def test_stripes_clients_do_not_send_it_again() -> None:
    """O-20: a retry would have the same credentials; the problem has the form of Stripe's errors."""
    reply = send_by("wsgi", MemoryBackend(), scope=raising(NotAuthenticated("no key")), compat="stripe")
    assert (reply.status, reply.headers["stripe-should-retry"]) == (401, "false")
    error = {"type": "invalid_request_error", "code": "not_authenticated", "message": "no key"}
    assert reply.problem == {"error": {**error, "reference": reply.problem["error"]["reference"]}}
    assert reply.headers["www-authenticate"] == CHALLENGE


def test_a_renderer_has_the_challenge() -> None:
    """O-20: an application that renders its own problems can send it."""
    seen: list[Any] = []

    def render(problem: Any) -> Any:
        from open_idempotency.redaction import Response

        seen.append(problem.challenge)
        return Response(401, [(b"content-length", b"0")], b"")

    assert send_by("wsgi", MemoryBackend(), scope=raising(NotAuthenticated()), render_problem=render).status == 401
    assert seen == [CHALLENGE]


def test_a_request_without_a_key_is_not_asked_for_its_caller() -> None:
    """O-20: ``scope=`` is not called."""
    app = Flask("shop")
    app.post("/0")(lambda: "ran")
    Idempotency(app, "memory://", scope=raising(NotAuthenticated()))
    assert app.test_client().post("/0").data == b"ran"


def test_the_key_may_be_used_once_the_caller_is_known() -> None:
    """O-20: the refused request has left no record."""
    key = str(uuid4())

    def scope(request: Any) -> str:
        credentials = request.header(b"authorization")
        if not credentials:
            raise NotAuthenticated()
        return str(credentials)

    client = WsgiClient(wsgi.IdempotencyMiddleware(hello, "memory://", scope=scope))
    fields = {"idempotency-key": key}
    assert client.post("/", headers=fields).status_code == 401
    assert client.post("/", headers={**fields, "authorization": "Bearer a"}).status_code == 201
