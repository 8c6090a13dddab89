"""FastAPI: the claim is made when the endpoint is called, after its dependencies (O-18)."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Request,
    Response,
    UploadFile,
)
from fastapi import __version__ as fastapi_version
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

from open_idempotency import NotStarted, idem
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import ConfigurationError, ScopeUnknown
from open_idempotency.fastapi import IdempotencyMiddleware, IdempotencyRule, exempt

FASTAPI = tuple(int(part) for part in fastapi_version.split(".")[:2])
STREAMS_GENERATORS = importlib.util.find_spec("fastapi.sse") is not None
LEFT_BY_STARLETTE = "ignore:Async generator 'starlette.requests.Request.stream' was garbage collected:ResourceWarning"
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(LEFT_BY_STARLETTE)]

TOKENS = {"first": "ada", "refreshed": "ada", "others": "bob"}
bearer = OAuth2PasswordBearer("token")


class User(BaseModel):
    """The result of ``current_user``."""

    id: int
    name: str


async def current_user(token: Annotated[str, Depends(bearer)]) -> User:
    """The user of a token that expires."""
    if token not in TOKENS:
        raise HTTPException(401, "the token has expired", {"WWW-Authenticate": "Bearer"})
    name = TOKENS[token]
    return User(id=sum(name.encode()), name=name)


CurrentUser = Annotated[User, Depends(current_user)]


def shop(backend: Any = "memory://", **fields: Any) -> FastAPI:
    """An application with the middleware; its endpoints count their runs in ``app.state.runs``."""
    app = FastAPI()
    app.state.runs = []
    app.add_middleware(IdempotencyMiddleware, backend=backend, **fields)
    return app


def charging(app: FastAPI) -> FastAPI:
    """The application with an endpoint for logged-in users."""

    @app.post("/charges", status_code=201)
    async def create(user: CurrentUser) -> dict[str, Any]:
        app.state.runs.append(user.name)
        return {"run": len(app.state.runs)}

    return app


def new_key() -> str:
    return f'"{uuid4()}"'


async def post(
    app: Any, path: str = "/charges", *, token: str | None = None, key: str | None = None, **options: Any
) -> httpx.Response:
    """One POST, in process; an error that the application raises becomes a response, as on a server."""
    headers: dict[str, str] = dict(options.pop("headers", {}))
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    if key is not None:
        headers["idempotency-key"] = key
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, headers=headers, **options)


def is_replay(response: httpx.Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


# The caller


async def test_a_refreshed_token_gets_the_replay() -> None:
    """O-18a: ``user=`` identifies the caller, whatever the token."""
    app, key = charging(shop(user=current_user)), new_key()
    first, second = await post(app, token="first", key=key), await post(app, token="refreshed", key=key)
    assert (first.status_code, second.status_code, is_replay(second)) == (201, 201, True)
    assert (second.json(), app.state.runs) == (first.json(), ["ada"])


async def test_another_user_with_the_same_key_has_another_record() -> None:
    """O-18a."""
    app, key = charging(shop(user=current_user)), new_key()
    for token in ("first", "others"):
        assert not is_replay(await post(app, token=token, key=key))
    assert app.state.runs == ["ada", "bob"]


async def test_an_expired_token_is_the_dependencys_401_and_no_replay() -> None:
    """O-18: with and without ``user=``; nothing is claimed or recorded for the 401."""
    for fields in ({"user": current_user}, {}):
        backend = MemoryBackend()
        app, key = charging(shop(backend, **fields)), new_key()
        await post(app, token="first", key=key)
        before = len(list(backend.scan()))
        TOKENS.pop("first")
        try:
            refused = await post(app, token="first", key=key)
        finally:
            TOKENS["first"] = "ada"
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (len(list(backend.scan())), before) == (1, 1)
        assert is_replay(await post(app, token="first", key=key))


async def test_the_dependency_is_solved_once_with_its_overrides() -> None:
    """O-18a: FastAPI solves it."""
    app, key, asked = charging(shop(user=current_user)), new_key(), []

    def nobody_else() -> User:
        asked.append(1)
        return User(id=7, name="test")

    app.dependency_overrides[current_user] = nobody_else
    assert [is_replay(await post(app, key=key)) for _ in range(2)] == [False, True]
    assert (len(asked), app.state.runs) == (2, ["test"])


async def test_the_user_is_found_at_any_depth_of_the_dependencies() -> None:
    """O-18a: below a dependency of a router, synchronous and with ``yield``."""
    app, key = shop(user=nested_user), new_key()

    def session(user: Annotated[str, Depends(nested_user)]) -> Iterator[str]:
        yield f"session of {user}"

    router = APIRouter(prefix="/v1", dependencies=[Depends(session)])

    @router.post("/charges")
    def create() -> int:
        app.state.runs.append(1)
        return len(app.state.runs)

    app.include_router(router)
    for name in ("ada", "ada", "bob"):
        await post(app, "/v1/charges", key=key, headers={"x-user": name})
    assert len(app.state.runs) == 2


def nested_user(x_user: Annotated[str, Header()]) -> str:
    """A dependency in the thread pool."""
    return x_user


IDENTITIES: dict[str, tuple[Any, Any]] = {
    "text": ("ada", "bob"),
    "integer": (1, 2),
    "UUID": (UUID(int=1), UUID(int=2)),
    "claims of a token": ({"sub": "ada"}, {"sub": "bob"}),
    "claims of two issuers": ({"sub": "ada", "iss": "https://a"}, {"sub": "ada", "iss": "https://b"}),
    "object": (User(id=1, name="x"), User(id=2, name="x")),
}


@pytest.mark.parametrize("form", IDENTITIES)
async def test_what_names_a_user(form: str) -> None:
    """O-18a: text, an integer or a UUID, or an object that has one as its ``identity``, ``id`` or ``sub``."""
    who: list[Any] = []

    def user() -> Any:
        return who[-1]

    app, key, one_and_other = shop(user=user), new_key(), IDENTITIES[form]

    @app.post("/charges")
    def create(found: Any = Depends(user)) -> int:  # noqa: B008 (FastAPI's way)
        app.state.runs.append(1)
        return 1

    for each in (*one_and_other, *one_and_other):
        who.append(each)
        await post(app, key=key)
    assert len(app.state.runs) == 2


@pytest.mark.parametrize("value", [None, "", True, 1.5, object(), {}, {"sub": ""}, {"sub": None}, []])
async def test_a_user_dependency_that_names_nobody_is_an_error(value: Any) -> None:
    """O-18a: the error says what to do; callers never share a scope."""

    def user() -> Any:
        return value

    app = shop(user=user)

    @app.post("/charges")
    def create(found: Any = Depends(user)) -> int:  # noqa: B008 (FastAPI's way)
        app.state.runs.append(1)
        return 1

    assert (await post(app, key=new_key())).status_code == 500
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(ScopeUnknown, match=r"user|value|sub"):
            await client.post("/charges", headers={"idempotency-key": new_key()})
    assert app.state.runs == []
    assert (await post(app)).status_code == 200  # without a key the caller is not identified


async def test_a_route_without_the_dependency_has_its_usual_caller() -> None:
    """O-18a: the caller of the credentials in the headers."""
    app, key = charging(shop(user=current_user)), new_key()

    @app.post("/open")
    def create() -> int:
        app.state.runs.append("open")
        return 1

    for token in ("first", "first", "refreshed"):
        await post(app, "/open", token=token, key=key)
    assert app.state.runs == ["open", "open"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"user": "current_user"}, "user: expected the dependency"),
        ({"user": current_user, "scope": lambda request: "all"}, "user: scope="),
    ],
)
def test_a_wrong_user_is_an_error_at_start(fields: dict[str, Any], complaint: str) -> None:
    """O-18a."""
    with pytest.raises(ConfigurationError, match=complaint):
        IdempotencyMiddleware(FastAPI(), "memory://", **fields)


def test_only_this_middleware_takes_a_user() -> None:
    """O-18a: ``user`` is no field of a policy."""
    from open_idempotency import IdempotencyPolicy
    from open_idempotency.asgi import IdempotencyMiddleware as Plain
    from open_idempotency.wsgi import IdempotencyMiddleware as Wsgi

    for make in (
        lambda: Plain(FastAPI(), "memory://", user=current_user),
        lambda: Wsgi(lambda environ, start: [], "memory://", user=current_user),
        lambda: IdempotencyRule(user=current_user),
    ):
        with pytest.raises(ConfigurationError, match="user"):
            make()
    with pytest.raises(TypeError, match="user"):
        IdempotencyPolicy(user=current_user)


def test_a_user_that_no_route_depends_on_keeps_the_application_from_starting() -> None:
    """O-18a: such as a copy of the dependency, or its result."""
    from tests.unit.starlette.test_starlette_start import refused

    assert "no covered route depends on nested_user" in refused(charging(shop(user=nested_user)))


async def test_a_user_of_an_application_that_cannot_be_seen_into_is_an_error() -> None:
    """O-18a: the first request raises, and so do all others."""

    async def hidden(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nothing runs")

    app = IdempotencyMiddleware(hidden, "memory://", user=current_user)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no FastAPI routes"):
            await post_raising(app)


async def post_raising(app: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/charges", headers={"idempotency-key": new_key()})


async def test_a_missing_key_of_a_stream_and_what_stands_around_it() -> None:
    """O-18b, O-06: the problem replaces the placeholder response, whose mark never leaves."""
    app = shop(required=True)
    app.add_api_route("/function", lambda: 1, methods=["POST"])

    async def stream() -> AsyncIterator[str]:
        app.state.runs.append(1)
        yield "one"

    options: Any = {"response_class": StreamingResponse} if STREAMS_GENERATORS else {"response_model": None}
    app.add_api_route("/stream", stream, methods=["POST"], **options)
    for path in ("/function", "/stream"):
        response = await post(app, path)
        assert (response.status_code, response.json()["type"].rpartition(":")[2]) == (400, "key-missing")
        assert "open-idempotency-stand-in" not in response.headers
    assert app.state.runs == []


# Requests without a claim


class Order(BaseModel):
    """The body of an order."""

    sku: str


async def test_validation_errors_never_claim() -> None:
    """O-18: the corrected request may use the same key."""
    backend = MemoryBackend()
    app, key = shop(backend), new_key()

    @app.post("/charges", status_code=201)
    async def create(order: Order) -> str:
        return order.sku

    wrong = await post(app, key=key, json={"sku": 1.5})
    assert (wrong.status_code, list(backend.scan())) == (422, [])
    assert "detail" in wrong.json()
    assert (await post(app, key=key, json={"sku": "hat"})).status_code == 201
    assert is_replay(await post(app, key=key, json={"sku": "hat"}))


async def test_a_missing_key_is_asked_for_behind_the_dependencies() -> None:
    """O-18, O-06: a caller without access gets that refusal first."""
    app = charging(shop(required=True))
    assert [(await post(app, token=token)).status_code for token in ("unknown", "first")] == [401, 400]
    assert [(await post(app, token=token, key='"')).status_code for token in ("unknown", "first")] == [400, 400]
    assert app.state.runs == []


async def test_what_stands_before_the_endpoint_makes_no_claim() -> None:
    """O-18: an inner middleware responds, or no route accepts the path or the method."""
    backend = MemoryBackend()
    app = FastAPI()

    @app.middleware("http")
    async def closed(request: Request, call_next: Callable[[Request], Any]) -> Any:
        return JSONResponse({}, 429) if "closed" in request.headers else await call_next(request)

    app.add_middleware(IdempotencyMiddleware, backend=backend)
    app.add_api_route("/charges", lambda: 1, methods=["PUT"])
    app.add_api_route("/orders/", lambda: 1, methods=["POST"])
    statuses = [(await post(app, path, key=new_key())).status_code for path in ("/nowhere", "/charges", "/orders")]
    assert statuses == [404, 405, 307]
    assert (await post(app, "/orders/", key=new_key(), headers={"closed": "1"})).status_code == 429
    assert list(backend.scan()) == []


@pytest.mark.parametrize("required", [False, True])
async def test_a_success_without_a_claim_is_warned_of_once(required: bool, caplog: pytest.LogCaptureFixture) -> None:
    """O-18: a response that no endpoint made is not protected, and needs no key."""
    app = FastAPI()

    @app.middleware("http")
    async def own(request: Request, call_next: Callable[[Request], Any]) -> Any:
        return JSONResponse({"own": True})

    app.add_middleware(IdempotencyMiddleware, backend="memory://", required=required)
    app.add_api_route("/charges", lambda: 1, methods=["POST"])
    for _ in range(2):
        assert (await post(app, key=None if required else new_key())).status_code == 200
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "without a claim" in said


async def test_idem_in_a_dependency_is_an_error_that_says_where_it_belongs() -> None:
    """O-18, S-03: code that runs before the claim is not protected. Without a key stages run plainly."""

    def stage() -> str:
        return idem.run("session", lambda: "opened")

    app = shop()

    @app.post("/charges")
    def create(name: str = Depends(stage)) -> str:
        return name

    with pytest.raises(NotStarted, match="idem in the endpoint"):
        await post_raising(app)
    assert (await post(app)).json() == "opened"


# Replays


async def test_dependencies_with_yield_end_as_ever_on_a_replay() -> None:
    """O-18b: no dependency sees an exception; headers that they add are not added to the stored response."""
    app, key, seen = shop(), new_key(), []

    async def opened(response: Response, tasks: BackgroundTasks) -> AsyncIterator[int]:
        response.headers["x-attempt"] = str(len(seen))
        tasks.add_task(seen.append, "task")
        try:
            yield 1
        except Exception:
            seen.append("exception")
            raise
        seen.append("end")

    def opened_in_thread(one: int = Depends(opened)) -> Iterator[int]:
        try:
            yield 2
        except BaseException:
            seen.append("exception")

    @app.post("/charges", status_code=201)
    def create(tasks: BackgroundTasks, two: int = Depends(opened_in_thread)) -> dict[str, int]:
        tasks.add_task(seen.append, "endpoint's task")
        return {"two": two}

    first = await post(app, key=key)
    assert sorted(seen) == ["end", "endpoint's task", "task"]
    seen.clear()
    second = await post(app, key=key)
    assert sorted(seen) == ["end", "task"]
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.headers.get_list("x-attempt") == second.headers.get_list("x-attempt") == ["0"]
    assert is_replay(second)


async def test_a_mismatch_ends_dependencies_as_ever_too() -> None:
    """O-18b, O-05: the refusal is returned, not raised."""
    app, key, seen = shop(), new_key(), []

    async def opened() -> AsyncIterator[None]:
        try:
            yield
        except Exception:
            seen.append("exception")
            raise

    @app.post("/charges", dependencies=[Depends(opened)])
    async def create(order: Order) -> str:
        return order.sku

    await post(app, key=key, json={"sku": "hat"})
    reused = await post(app, key=key, json={"sku": "coat"})
    assert (reused.status_code, reused.headers["content-type"]) == (422, "application/problem+json")
    assert reused.json()["type"].endswith("key-reused")
    assert seen == []


async def test_an_error_of_a_dependencys_end_is_the_response_to_a_replay() -> None:
    """O-18b: the record does not change."""
    app, key, fails = shop(), new_key(), []

    async def opened() -> AsyncIterator[None]:
        yield
        if fails:
            raise HTTPException(418)

    scope = {"scope": "function"} if FASTAPI >= (0, 121) else {}

    @app.post("/charges")
    async def create(one: None = Depends(opened, **scope)) -> int:
        app.state.runs.append(1)
        return 1

    await post(app, key=key)
    fails.append(1)
    status = (await post(app, key=key)).status_code
    assert status == 418 or ("scope" not in scope and status in (200, 500))  # where it ends depends on the release
    fails.clear()
    assert is_replay(await post(app, key=key))
    assert app.state.runs == [1]


async def test_middleware_inside_sees_a_response_and_changes_nothing_of_the_stored_one() -> None:
    """O-18b: no header is added twice, and nothing is compressed twice."""
    app, key, seen = FastAPI(), new_key(), []

    @app.middleware("http")
    async def stamping(request: Request, call_next: Callable[[Request], Any]) -> Any:
        response = await call_next(request)
        seen.append(response.status_code)
        response.headers.append("x-stamp", str(len(seen)))
        return response

    app.add_middleware(GZipMiddleware, minimum_size=10)
    app.add_middleware(IdempotencyMiddleware, backend="memory://")

    @app.post("/charges", status_code=201)
    async def create() -> dict[str, str]:
        return {"text": "hat" * 1000}

    first, second = [await post(app, key=key, headers={"accept-encoding": "gzip"}) for _ in range(2)]
    assert seen == [201, 201]
    assert (second.json(), second.headers.get_list("x-stamp")) == (first.json(), ["1"])
    assert second.headers.get_list("content-encoding") == ["gzip"]
    assert is_replay(second)
    assert "open-idempotency-stand-in" not in {*first.headers, *second.headers}


class Again:
    """An inner middleware that calls the application again after a refusal or an error."""

    def __init__(self, app: Any, copies: bool) -> None:
        self.app = app
        self.copies = copies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: list[Any] = []

        async def hold(message: Any) -> None:
            held.append(message)

        for _ in range(3):
            held.clear()
            try:
                await self.app(dict(scope) if self.copies else scope, receive, hold)
            except ZeroDivisionError:
                continue
            if held[0]["status"] != 409:
                break
        for message in held:
            await send(message)


@pytest.mark.parametrize("copies", [False, True])
async def test_middleware_inside_that_calls_again_gets_no_second_claim(copies: bool) -> None:
    """O-18: a refusal stays a refusal, and an attempt continues under its own claim, also with a copied scope."""
    app, key, runs = FastAPI(), new_key(), []
    begun, done = anyio.Event(), anyio.Event()
    app.add_middleware(Again, copies=copies)
    app.add_middleware(IdempotencyMiddleware, backend="memory://")

    @app.post("/charges")
    async def create() -> int:
        runs.append(1)
        begun.set()
        with anyio.fail_after(10):
            await done.wait()
        return 1 // (len(runs) - 1)

    async with anyio.create_task_group() as group:

        async def first() -> None:
            assert (await post(app, key=key)).json() == 1

        group.start_soon(first)
        with anyio.fail_after(10):
            await begun.wait()
            # A second run would wait for the end of the first.
            assert (await post(app, key=key)).status_code == 409
        assert runs == [1]
        done.set()
    assert is_replay(await post(app, key=key))
    assert runs == [1, 1]


async def test_middleware_inside_that_makes_a_new_response_of_the_body() -> None:
    """O-18b, R-01: the stored response is sent as it is, and not wrapped in a new response a second time."""
    app, key = FastAPI(), new_key()

    @app.middleware("http")
    async def envelope(request: Request, call_next: Callable[[Request], Any]) -> Any:
        response = await call_next(request)
        text = b"".join([piece async for piece in response.body_iterator]).decode()
        return JSONResponse({"data": text}, response.status_code)

    app.add_middleware(IdempotencyMiddleware, backend="memory://")

    @app.post("/charges", status_code=201)
    async def create() -> str:
        return "hat"

    first, second = [await post(app, key=key) for _ in range(2)]
    assert (second.status_code, second.text) == (first.status_code, first.text) == (201, first.text)
    assert is_replay(second)


class Later:
    """An inner middleware that responds at once, and leaves the request to a task of its own."""

    def __init__(self, app: Any, group: list[Any], when: Any, at_once: bool = False) -> None:
        self.app = app
        self.group = group
        self.when = when
        self.at_once = at_once

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self.when.is_set():
            await self.app(scope, receive, send)
            return
        copy = dict(scope)

        async def drop(message: Any) -> None:
            pass

        async def call() -> None:
            if not self.at_once:
                await self.when.wait()
            await self.app(copy, receive, drop)

        self.group[0].start_soon(call)
        await anyio.wait_all_tasks_blocked()
        await JSONResponse({"later": True}, 202)(scope, receive, send)


async def test_an_endpoint_that_is_called_when_its_request_is_over_holds_no_key() -> None:
    """O-18, L-01: no code would settle such a claim. The success without a claim is warned about."""
    backend = MemoryBackend()
    app, key, group, when, done = FastAPI(), new_key(), [], anyio.Event(), anyio.Event()
    app.add_middleware(Later, group=group, when=when)
    app.add_middleware(IdempotencyMiddleware, backend=backend)

    @app.post("/charges")
    async def create() -> int:
        done.set()
        return 1

    async with anyio.create_task_group() as tasks:
        group.append(tasks)
        assert (await post(app, key=key)).status_code == 202
        when.set()
        with anyio.fail_after(10):
            await done.wait()
    assert list(backend.scan()) == []
    assert (await post(app, key=key)).status_code == 200


async def test_a_request_that_is_over_before_its_body_is_whole_makes_no_claim() -> None:
    """O-18, O-04: the partial body would count as the whole body, and a retry as another request."""
    backend, group = MemoryBackend(), []
    app, key, whole = FastAPI(), new_key(), anyio.Event()
    app.add_middleware(Later, group=group, when=whole, at_once=True)
    app.add_middleware(IdempotencyMiddleware, backend=backend)
    app.add_api_route("/charges", lambda: 1, methods=["POST"])

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await whole.wait()
        yield b"y"

    async with anyio.create_task_group() as tasks:
        group.append(tasks)
        assert (await post(app, key=key, content=body())).status_code == 202
        whole.set()
    assert list(backend.scan()) == []
    assert (await post(app, key=key, content=b"xy")).status_code == 200


async def test_a_failed_endpoint_runs_again() -> None:
    """O-18, O-08."""
    app, key = shop(), new_key()

    @app.post("/charges")
    async def create() -> int:
        app.state.runs.append(1)
        if len(app.state.runs) == 1:
            raise RuntimeError("first")
        return 1

    assert [(await post(app, key=key)).status_code for _ in range(3)] == [500, 200, 200]
    assert len(app.state.runs) == 2


# Bodies


async def test_forms_and_files_are_teed() -> None:
    """O-18: FastAPI has read them before the claim; the fingerprint covers their parts, whatever the boundary."""
    app, key = shop(spool_bytes=70_000), new_key()

    @app.post("/charges", status_code=201)
    async def create(sku: Annotated[str, Form()], scan: Annotated[UploadFile, File()]) -> dict[str, Any]:
        app.state.runs.append(sku)
        return {"sku": sku, "bytes": len(await scan.read())}

    scan, other = b"s" * 300_000, b"t" * 300_000
    responses = [await post(app, key=key, data={"sku": "hat"}, files={"scan": each}) for each in (scan, scan, other)]
    assert [each.status_code for each in responses] == [201, 201, 422]
    assert (responses[1].json(), is_replay(responses[1])) == ({"sku": "hat", "bytes": 300_000}, True)
    assert app.state.runs == ["hat"]


async def test_a_body_that_only_the_endpoint_reads_reaches_it_whole() -> None:
    """O-18: it is read for the fingerprint, and then given to the endpoint."""
    app, key = shop(spool_bytes=70_000), new_key()

    @app.post("/charges")
    async def create(request: Request) -> int:
        return len(await request.body())

    for body, status, length in ((b"a" * 200_000, 200, 200_000), (b"a" * 200_000, 200, 200_000), (b"b", 422, None)):
        response = await post(app, key=key, content=body)
        assert response.status_code == status
        assert length is None or response.json() == length


async def test_a_body_that_is_read_in_part_before_the_claim() -> None:
    """O-18: a dependency gets the first bytes, and the endpoint the others."""
    app, key = shop(), new_key()

    async def first_piece(request: Request) -> bytes:
        return bytes((await request.receive())["body"])

    @app.post("/charges")
    async def create(request: Request, piece: bytes = Depends(first_piece)) -> list[int]:
        rest = (await request.receive())["body"]
        return [len(piece), len(rest)]

    status, body, _ = await by_hand(app, "/charges", [b"a", b"bb", b"c"], {"idempotency-key": key})
    assert (status, body) == (200, b"[1,3]")


async def by_hand(app: Any, path: str, pieces: Sequence[bytes], headers: dict[str, str]) -> tuple[int, bytes, int]:
    """One POST without a client, which would leave generators open: status, body, number of ``receive`` calls."""
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "asgi": {"version": "3.0"}, "http_version": "1.1",
    }  # fmt: skip
    left, received, said = list(pieces), 0, list[Any]()

    async def receive() -> Any:
        nonlocal received
        received += 1
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        said.append(message)

    await app(scope, receive, send)
    return said[0]["status"], b"".join(each.get("body", b"") for each in said), received


async def test_a_body_over_the_limit_is_refused() -> None:
    """O-18, O-07: the request is refused although FastAPI has read its body by then."""
    app = shop(max_request_bytes=1000)

    @app.post("/charges")
    async def create(order: Order) -> int:
        app.state.runs.append(1)
        return 1

    for length, status in ((2000, 413), (100, 200)):
        assert (await post(app, key=new_key(), json={"sku": "x" * length})).status_code == status
    assert (await post(app, json={"sku": "x" * 2000})).status_code == 200
    assert app.state.runs == [1, 1]


async def test_what_is_known_without_the_body_is_refused_before_a_byte_of_it() -> None:
    """O-18, O-06, O-07: a malformed key, and a declared length; the rules of included routers apply."""
    app, router, read = shop(max_request_bytes=10), APIRouter(), []

    @router.post("/charges")
    async def create(order: Order) -> int:
        app.state.runs.append(1)
        return 1

    app.include_router(router)
    app.include_router(router, prefix="/large", dependencies=[Depends(IdempotencyRule(max_request_bytes=1000))])
    app.include_router(router, prefix="/exempt", dependencies=[Depends(IdempotencyRule(exempt=True))])

    async def status(prefix: str, **headers: str) -> int:
        headers = {"content-type": "application/json", "idempotency-key": new_key(), **headers}
        found, _, received = await by_hand(app, f"{prefix}/charges", [b'{"sku": "hat"}'], headers)
        read.append(received)
        return found

    assert await status("", **{"content-length": "14"}) == 413
    assert await status("/large", **{"content-length": "1" + "0" * 30}) == 413
    assert await status("/large", **{"idempotency-key": '"'}) == 400
    assert read == [0, 0, 0]
    assert await status("") == 413  # one that is longer than it was declared to be
    assert [await status("/large"), await status("/exempt", **{"content-length": "14"})] == [200, 200]
    assert app.state.runs == [1, 1]


# Kinds of endpoints, routers and middleware


async def test_a_base_http_middleware_inside_that_reads_the_body() -> None:
    """O-18: the endpoint then runs in another task."""

    class Reading(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Callable[[Request], Any]) -> Any:
            assert len(await request.body()) > 2
            return await call_next(request)

    app, key = FastAPI(), new_key()
    app.add_middleware(Reading)
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    runs: list[str] = []

    @app.post("/charges")
    def create(order: Order) -> str:
        runs.append(idem.run("stage", lambda: order.sku))
        return order.sku

    responses = [await post(app, key=key, json={"sku": sku}) for sku in ("hat", "hat", "coat")]
    assert [each.status_code for each in responses] == [200, 200, 422]
    assert (runs, is_replay(responses[1])) == (["hat"], True)


def raw_stream(runs: list[int]) -> Any:
    async def stream() -> AsyncIterator[bytes]:
        runs.append(1)
        yield b"one "
        yield b"two"

    async def endpoint() -> StreamingResponse:
        return StreamingResponse(stream())

    return endpoint, {}


def generator(runs: list[int]) -> Any:
    def endpoint() -> Iterator[dict[str, int]]:
        runs.append(1)
        yield {"one": 1}

    return endpoint, {}


def async_generator(runs: list[int]) -> Any:
    async def endpoint() -> AsyncIterator[dict[str, int]]:
        runs.append(1)
        yield {"one": 1}

    return endpoint, {}


def raw_generator(runs: list[int]) -> Any:
    def endpoint() -> Iterator[str]:
        runs.append(1)
        yield "one"

    return endpoint, {"response_class": StreamingResponse}


def events(runs: list[int]) -> Any:
    from fastapi.sse import EventSourceResponse

    async def endpoint() -> AsyncIterator[dict[str, int]]:
        runs.append(1)
        yield {"one": 1}

    return endpoint, {"response_class": EventSourceResponse}


def events_of_an_iterator(runs: list[int]) -> Any:
    from fastapi.sse import EventSourceResponse

    def endpoint() -> Any:
        runs.append(1)
        return iter([{"one": 1}])

    return endpoint, {"response_class": EventSourceResponse, "response_model": None}


STREAMS = [
    raw_stream,
    *(
        pytest.param(each, marks=pytest.mark.skipif(not STREAMS_GENERATORS, reason="FastAPI streams no generators yet"))
        for each in (generator, async_generator, raw_generator, events, events_of_an_iterator)
    ),
]


@pytest.mark.parametrize("form", STREAMS)
async def test_streams_are_replayed(form: Callable[[list[int]], Any]) -> None:
    """O-18: FastAPI calls generator endpoints from another function."""
    app, key = shop(), new_key()
    endpoint, options = form(app.state.runs)
    app.add_api_route("/charges", endpoint, methods=["POST"], **options)
    responses = [await post(app, key=key) for _ in range(3)]
    assert app.state.runs == [1]
    assert len({each.content for each in responses}) == 1
    assert len({each.headers.get("content-type") for each in responses}) == 1
    assert [is_replay(each) for each in responses] == [False, True, True]
    await post(app, key=new_key())
    assert app.state.runs == [1, 1]


async def test_a_route_class_of_ones_own_and_nested_routers() -> None:
    """O-18: the code that it runs before its endpoint runs for a replay too."""
    seen: list[str] = []

    class Noting(APIRoute):
        def get_route_handler(self) -> Any:
            handler = super().get_route_handler()

            async def noting(request: Request) -> Any:
                seen.append(request.url.path)
                return await handler(request)

            return noting

    app, key = shop(), new_key()
    inner, outer = APIRouter(route_class=Noting), APIRouter(prefix="/outer")

    @inner.post("/charges")
    def create() -> int:
        app.state.runs.append(1)
        return 1

    outer.include_router(inner, prefix="/inner")
    app.include_router(outer, prefix="/v1", dependencies=[Depends(IdempotencyRule(required=True))])
    path = "/v1/outer/inner/charges"
    assert [is_replay(await post(app, path, key=key)) for _ in range(2)] == [False, True]
    assert (await post(app, path)).status_code == 400
    assert (seen, app.state.runs) == ([path] * 3, [1])


async def test_an_exempt_endpoint_is_called_as_without_the_middleware() -> None:
    """O-18: it gets its body, and no record is made."""
    backend = MemoryBackend()
    app, key = shop(backend), new_key()

    @app.post("/charges")
    @exempt
    async def create(order: Order) -> int:
        app.state.runs.append(1)
        with pytest.raises(NotStarted):
            await idem.arun("stage", lambda: 1)
        return len(app.state.runs)

    assert [(await post(app, key=key, json={"sku": "hat"})).json() for _ in range(2)] == [1, 2]
    assert list(backend.scan()) == []


async def test_duplicates_at_one_moment_run_once() -> None:
    """O-18, O-03: both pass their dependencies before either has claimed."""
    app, key = shop(wait=5), new_key()

    behind, gate = [], anyio.Event()

    async def slow() -> None:
        behind.append(1)
        if len(behind) == 5:
            gate.set()
        await gate.wait()

    @app.post("/charges", dependencies=[Depends(slow)])
    def create() -> int:
        app.state.runs.append(1)
        return len(app.state.runs)

    responses: list[httpx.Response] = []

    async def one() -> None:
        responses.append(await post(app, key=key))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
    assert {each.status_code for each in responses} == {200}
    assert (len(responses), app.state.runs) == (5, [1])


# An unknown release of FastAPI


def test_a_release_that_is_not_known_is_claimed_in_front_with_a_warning() -> None:
    """O-18: no request fails because the private part is missing, and requests are protected."""
    script = """
import asyncio, logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
import fastapi.routing
solve = fastapi.routing.solve_dependencies
async def changed(*, connection, dependant, **rest):
    return await solve(request=connection, dependant=dependant, **rest)
fastapi.routing.solve_dependencies = changed
import httpx
from fastapi import Depends, FastAPI
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.fastapi import IdempotencyMiddleware, IdempotencyRule
fastapi.routing.solve_dependencies = solve  # FastAPI itself goes on
app, runs = FastAPI(), []
app.add_middleware(IdempotencyMiddleware, backend="memory://")
def dependency(): runs.append("dependency")
@app.post("/charges", dependencies=[Depends(dependency)])
def create(): runs.append("endpoint")
@app.post("/strict", dependencies=[Depends(IdempotencyRule(required=True))])
def strict(): runs.append("strict")
async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        key = {"idempotency-key": '"0123456789abcdef"'}
        one, two = [await client.post("/charges", headers=key) for _ in range(2)]
        strict = await client.post("/strict")
    print(one.status_code, two.headers.get("idempotent-replayed"), strict.status_code, runs)
asyncio.run(main())
try:
    asyncio.run(IdempotencyMiddleware(app, "memory://", user=dependency).check_start({}))
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "200 true 400 ['dependency', 'endpoint']" in done.stdout
    assert done.stdout.count("this release of FastAPI is not known: claims are made before dependencies") == 1
    assert "user: this release of FastAPI is not known" in done.stdout
