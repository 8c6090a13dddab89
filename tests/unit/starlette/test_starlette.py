"""The Starlette and FastAPI adapters: callers, exception handlers, background tasks, lifespans and files."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi import __version__ as fastapi_version
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser, UnauthenticatedUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from open_idempotency import AlreadyCompleted, fastapi, idem, rules, starlette
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import MissingExtra, ScopeUnknown
from open_idempotency.starlette import IdempotencyMiddleware

# Starlette leaves the iterator of a body to the garbage collector; trio warns about it, on Python 3.10 at once.
LEFT_BY_STARLETTE = "ignore:Async generator 'starlette.requests.Request.stream' was garbage collected:ResourceWarning"
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(LEFT_BY_STARLETTE)]

ADAPTER = IdempotencyMiddleware(Starlette(), "memory://")


async def post(
    app: Any, path: str = "/charges", *, key: str | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    """One POST, in process; an error that the application raises becomes a response, as on a server."""
    fields = dict(headers or {})
    if key is not None:
        fields["idempotency-key"] = f'"{key}"'
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, headers=fields)


def new_key() -> str:
    return str(uuid4())


# The caller


class Named(BaseUser):
    """A user of an application; Starlette's BaseUser raises NotImplementedError for missing attributes."""

    def __init__(self, identity: Any) -> None:
        self._identity = identity

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def identity(self) -> Any:
        return self._identity


class Nameless(BaseUser):
    """A user who is authenticated, and has no other attribute."""

    @property
    def is_authenticated(self) -> bool:
        return True


class Displayed(Nameless):
    """A user with only a display name, which many users may share."""

    @property
    def display_name(self) -> str:
        return "Maria Garcia"


USER_ID = UUID("8e03978e-40d5-43e8-bc93-6894a57f9324")


@pytest.mark.parametrize(
    ("user", "name"),
    [(Named("ada"), "ada"), (Named(7), "7"), (Named(USER_ID), str(USER_ID)), (SimpleUser("bob"), "bob")],
)
async def test_a_verified_user_is_the_caller(user: BaseUser, name: str) -> None:
    """O-15: its ``identity``; Starlette's SimpleUser has a username instead."""
    assert ADAPTER.identify({"user": user}) == name


@pytest.mark.parametrize("scope", [{}, {"user": None}, {"user": UnauthenticatedUser()}])
async def test_without_a_verified_user_the_caller_is_known_otherwise(scope: dict[str, Any]) -> None:
    """The core identifies the caller by the Authorization header."""
    assert ADAPTER.identify(scope) is None


@pytest.mark.parametrize("user", [Nameless(), Displayed(), Named(""), Named(True), Named(object()), SimpleUser("")])
async def test_a_user_without_a_usable_name_is_nobodys_bucket(user: BaseUser) -> None:
    """The error is ScopeUnknown; callers never share a scope, and no scope changes with each process."""
    with pytest.raises(ScopeUnknown):
        ADAPTER.identify({"user": user})


async def charge(request: Request) -> Response:
    """Responds with a new number each time."""
    return JSONResponse({"charge": uuid4().hex}, 201)


class AuthenticatesAll(AuthenticationBackend):
    """An authentication backend with one user for every request."""

    def __init__(self, user: BaseUser) -> None:
        self._user = user

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        return AuthCredentials(["authenticated"]), self._user


def with_users(user: BaseUser, *, outside: bool, **fields: Any) -> Starlette:
    """An application that authenticates outside or inside of the idempotency middleware."""
    app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    ours: tuple[Any, dict[str, Any]] = (IdempotencyMiddleware, {"backend": "memory://", **fields})
    theirs: tuple[Any, dict[str, Any]] = (AuthenticationMiddleware, {"backend": AuthenticatesAll(user)})
    for kind, options in (ours, theirs) if outside else (theirs, ours):
        app.add_middleware(kind, **options)
    return app


async def test_a_user_without_a_name_is_a_500() -> None:
    """The request does not run."""
    assert (await post(with_users(Nameless(), outside=True), key=new_key())).status_code == 500


def _warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The warnings of the package's logger."""
    return [r for r in caplog.records if r.name == "open_idempotency" and r.levelno >= logging.WARNING]


@pytest.mark.parametrize("outside", [True, False])
async def test_the_place_of_authentication_in_the_list_does_not_matter(
    outside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """O-18: the claim is made when the endpoint is called, and the user is known by then."""
    backend, key = MemoryBackend(), new_key()
    apps = [with_users(SimpleUser(name), outside=outside, backend=backend) for name in ("ada", "bob")]
    ada, bob, again = [await post(app, key=key) for app in (*apps, apps[0])]
    assert ada.json() == again.json() != bob.json()
    assert _warnings(caplog) == []


async def test_without_a_start_a_request_without_a_key_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request passes through; it is not inspected in a process without rules."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())
    await post(with_users(SimpleUser("ada"), outside=False))
    assert _warnings(caplog) == []


async def test_a_middleware_inside_authentication_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    await post(with_users(SimpleUser("ada"), outside=True), key=new_key())
    assert _warnings(caplog) == []


async def test_a_scope_of_the_applications_own_needs_no_user(caplog: pytest.LogCaptureFixture) -> None:
    """``scope=`` takes precedence, so the order of the middleware does not matter."""
    app = with_users(SimpleUser("ada"), outside=False, scope=lambda request: "everybody")
    await post(app, key=new_key())
    assert _warnings(caplog) == []


# What Starlette does around it


def counting(notes: list[Any]) -> Any:
    """An endpoint that records a stage and notes its runs."""

    async def endpoint(request: Request) -> Response:
        notes.append(await idem.arun("charge", lambda: len(notes) + 1))
        return JSONResponse({"charge": notes[-1]}, 201)

    return endpoint


async def passing(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers["x-passed"] = "yes"
    return response


@pytest.mark.parametrize("inside", [True, False])
async def test_a_base_http_middleware_on_either_side_does_not_matter(inside: bool) -> None:
    """R-01: it runs the endpoint in a task of its own, and sends every response as a stream."""
    notes: list[Any] = []
    app = Starlette(routes=[Route("/charges", counting(notes), methods=["POST"])])
    ours: tuple[Any, dict[str, Any]] = (IdempotencyMiddleware, {"backend": "memory://"})
    theirs: tuple[Any, dict[str, Any]] = (BaseHTTPMiddleware, {"dispatch": passing})
    for kind, options in (theirs, ours) if inside else (ours, theirs):
        app.add_middleware(kind, **options)
    key = new_key()
    first, second = await post(app, key=key), await post(app, key=key)
    assert (first.content, first.headers["x-passed"]) == (second.content, second.headers["x-passed"])
    assert second.headers["idempotent-replayed"] == "true"
    assert notes == [1]


class Declined(Exception):
    """The error that an endpoint raises."""


async def test_the_response_of_an_exception_handler_is_the_outcome() -> None:
    """A 402 that a handler made of an exception is stored."""
    runs: list[int] = []

    async def endpoint(request: Request) -> Response:
        runs.append(1)
        raise Declined

    async def respond(request: Request, error: Exception) -> Response:
        return PlainTextResponse("declined", 402)

    app = Starlette(routes=[Route("/charges", endpoint, methods=["POST"])], exception_handlers={Declined: respond})
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    key = new_key()
    assert [(await post(app, key=key)).status_code for _ in range(2)] == [402, 402]
    assert runs == [1]


@pytest.mark.parametrize("inside", [True, False])
async def test_an_error_is_sent_and_a_retry_runs_again(inside: bool) -> None:
    """O-08: the middleware is inside of Starlette's own error handling, or around all of it."""
    attempts: list[int] = []

    async def endpoint(request: Request) -> Response:
        attempts.append(idem.attempt)
        if len(attempts) == 1:
            raise Declined
        return PlainTextResponse("done", 201)

    app: Any = Starlette(routes=[Route("/charges", endpoint, methods=["POST"])])
    if inside:
        app.add_middleware(IdempotencyMiddleware, backend="memory://")
    else:
        app = IdempotencyMiddleware(app, "memory://")
    key = new_key()
    assert [(await post(app, key=key)).status_code for _ in range(2)] == [500, 201]
    assert attempts == [1, 2]


async def test_mounted_applications_are_different_paths() -> None:
    """The path in the fingerprint includes the mount."""
    backend = MemoryBackend()

    def part() -> Starlette:
        routes = [Route("/charges", charge, methods=["POST"])]
        return Starlette(routes=routes, middleware=[Middleware(IdempotencyMiddleware, backend=backend)])

    app = Starlette(routes=[Mount("/one", part()), Mount("/two", part())])
    key = new_key()
    assert (await post(app, "/one/charges", key=key)).status_code == 201
    refused = await post(app, "/two/charges", key=key)
    assert (refused.status_code, refused.json()["instance"]) == (422, "/two/charges")


async def test_the_lifespan_reaches_the_application() -> None:
    """R-06: start-up and shutdown run inside of the middleware."""
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        steps.append("up")
        yield
        steps.append("down")

    app = Starlette(lifespan=lifespan)
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    assert (steps, sent) == (["up", "down"], ["lifespan.startup.complete", "lifespan.shutdown.complete"])


async def test_a_file_is_replayed(tmp_path: Path) -> None:
    """R-01, R-06: its bytes pass through the capture, in chunks."""
    path = tmp_path / "receipt"
    path.write_bytes(bytes(range(256)) * 1024)  # exactly four of Starlette's chunks

    async def endpoint(request: Request) -> Response:
        return FileResponse(path)

    app = Starlette(routes=[Route("/charges", endpoint, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    key = new_key()
    first, second = await post(app, key=key), await post(app, key=key)
    assert first.content == second.content == path.read_bytes()
    assert second.headers["idempotent-replayed"] == "true"


async def test_a_background_task_that_raises_changes_nothing() -> None:
    """R-05: the response is recorded by then."""
    runs: list[int] = []

    async def later() -> None:
        raise Declined

    async def endpoint(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse("done", 201, background=BackgroundTask(later))

    app = Starlette(routes=[Route("/charges", endpoint, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    key = new_key()
    assert [(await post(app, key=key)).status_code for _ in range(2)] == [201, 201]
    assert runs == [1]


# FastAPI

FASTAPI = tuple(int(part) for part in fastapi_version.split(".")[:2])


def opened_session(request: Request) -> Iterator[str]:
    """A dependency that tries to record a stage at its end."""
    yield "session"
    try:
        idem.save_stage("late")
    except AlreadyCompleted as error:
        request.app.state.codes.append(error.code)


@pytest.mark.skipif(FASTAPI < (0, 118), reason="FastAPI before 0.118 cleans up before it sends the response")
async def test_dependencies_with_yield_see_the_request_until_it_gets_a_response() -> None:
    """S-03: the clean-up of a dependency runs after the response."""
    app = FastAPI()
    app.state.codes = []
    app.add_middleware(fastapi.IdempotencyMiddleware, backend="memory://")

    @app.post("/charges", status_code=201)
    def create(name: Annotated[str, Depends(opened_session)]) -> dict[str, Any]:
        return {"charge": idem.run("charge", lambda: 1), "stages": [stage.name for stage in idem.stages]}

    response = await post(app, key=new_key())
    assert response.json() == {"charge": 1, "stages": ["charge"]}
    assert app.state.codes == ["ERR_COMPLETED"]


async def test_fastapi_has_the_same_middleware() -> None:
    """FastAPI users find it under their framework's name."""
    assert fastapi.IdempotencyMiddleware is starlette.IdempotencyMiddleware


# Without the framework


@pytest.mark.parametrize("name", ["starlette", "fastapi"])
async def test_a_missing_framework_names_the_pip_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing extra names the install command."""
    ours = sys.modules[f"open_idempotency.{name}"]
    assert ours.__file__ is not None
    monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location(f"open_idempotency._{name}_again", ours.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match=rf"pip install 'open-idempotency\[{name}\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
