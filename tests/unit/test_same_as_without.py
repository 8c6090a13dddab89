"""Order and context variables are the same with and without the middleware, in one ASGI application.

The application notes each step with the value of a context variable: start-up and shutdown, outer and inner layers,
dependencies, endpoints, exception handlers, streams, background tasks, a mounted application. Messages to the server
are noted too, except for the start of a response, which may wait for the first bytes (R-03).
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated, Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from open_idempotency.fastapi import IdempotencyMiddleware

# Starlette leaves the iterator of a body to the garbage collector; trio warns about it, on Python 3.10 at once.
LEFT_BY_STARLETTE = "ignore:Async generator 'starlette.requests.Request.stream' was garbage collected:ResourceWarning"
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(LEFT_BY_STARLETTE)]

TRAIL: ContextVar[str] = ContextVar("trail", default="")
PATIENCE = 10


class Diary:
    """Notes of what happened, and of the steps that the context contained at that moment."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def note(self, what: str) -> None:
        """Write a note."""
        self.notes.append((what, TRAIL.get()))

    def step(self, what: str) -> None:
        """Write a note, and add the step to the context, where it stays; so later notes show how far it is visible."""
        self.note(what)
        TRAIL.set(f"{TRAIL.get()} > {what}")


class Layer:
    """A plain ASGI middleware of another library."""

    def __init__(self, app: Any, name: str, diary: Diary) -> None:
        self._app, self._name, self._diary = app, name, diary

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._diary.step(f"{self._name} enters")
        try:
            await self._app(scope, receive, send)
        finally:
            self._diary.note(f"{self._name} leaves")


def base_layer(name: str, diary: Diary) -> Middleware:
    """A middleware of another library that runs the inner application in a task of its own."""

    async def dispatch(request: Request, call_next: Any) -> Response:
        diary.step(f"{name} enters")
        response: Response = await call_next(request)
        diary.note(f"{name} leaves")
        return response

    return Middleware(BaseHTTPMiddleware, dispatch=dispatch)


class Declined(Exception):
    """An exception with a handler."""


def shop(diary: Diary, middleware: list[Middleware]) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        diary.note("up")
        yield {"sign": "open"}
        diary.note("down")

    async def session(request: Request) -> AsyncIterator[str]:
        diary.step("session opens")
        try:
            yield "session"
        except Exception as error:
            diary.note(f"session sees {type(error).__name__}")
            raise
        finally:
            diary.note("session closes")

    def connection(session: Annotated[str, Depends(session)]) -> Iterator[str]:
        diary.step("connection opens")
        yield "connection"
        diary.note("connection closes")

    app = FastAPI(lifespan=lifespan, middleware=middleware)
    used = Annotated[str, Depends(connection)]

    @app.post("/awaited")
    async def awaited(request: Request, connection: used) -> dict[str, str]:
        diary.step(f"endpoint, {request.state.sign}, {len(await request.body())}")
        return {}

    @app.post("/threaded")
    def threaded(request: Request, connection: used) -> dict[str, str]:
        diary.step(f"endpoint, {request.state.sign}")
        return {}

    @app.post("/declined")
    async def declined(connection: used) -> None:
        diary.step("endpoint")
        raise Declined

    @app.exception_handler(Declined)
    async def respond(request: Request, error: Exception) -> Response:
        diary.step("handler")
        return JSONResponse({}, 402)

    @app.post("/broken")
    async def broken(connection: used) -> None:
        diary.step("endpoint")
        raise ValueError

    async def later() -> None:
        diary.step("later")

    def later_in_a_thread() -> None:
        diary.note("later, in a thread")

    def later_and_broken() -> None:
        diary.note("later, and broken")
        raise ValueError

    @app.post("/background")
    async def background(tasks: BackgroundTasks, connection: used) -> dict[str, str]:
        tasks.add_task(later)
        tasks.add_task(later_in_a_thread)
        return {}

    @app.post("/background-broken")
    async def background_broken(tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(later_and_broken)
        tasks.add_task(later)
        return {}

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            diary.step(f"piece {number}")
            yield b"%d" % number

    @app.post("/stream")
    async def stream(connection: used) -> Response:
        return StreamingResponse(pieces())

    app.mount("/part", part(diary))
    return app


def part(diary: Diary) -> Starlette:
    """The mounted application."""

    async def endpoint(request: Request) -> Response:
        diary.step(f"part, {request.scope['root_path']}, {request.scope['path']}, {len(await request.body())}")
        return JSONResponse({}, 201)

    inner = Starlette(routes=[Route("/charges", endpoint, methods=["POST"])], middleware=[base_layer("part", diary)])
    return Starlette(routes=[Mount("/inner", inner)])


async def served(app: Any, diary: Diary, path: str, key: str | None, turns: int = 0) -> None:
    """Start the application, send one request, and shut it down, as a server does that needs ``turns`` to send."""
    state: dict[str, Any] = {}
    to_app, from_server = anyio.create_memory_object_stream[Any](1)
    started = anyio.Event()

    async def reported(message: Any) -> None:
        diary.note(message["type"])
        started.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks, to_app, from_server:
            tasks.start_soon(app, {"type": "lifespan", "state": state}, from_server.receive, reported)
            await to_app.send({"type": "lifespan.startup"})
            await started.wait()
            async with anyio.create_task_group() as requests:
                requests.start_soon(requested, app, diary, path, key, state, turns)
            await to_app.send({"type": "lifespan.shutdown"})


async def requested(app: Any, diary: Diary, path: str, key: str | None, state: dict[str, Any], turns: int) -> None:
    """One request with a body in two pieces, from a client that stays until it has the response."""
    bodies = [{"body": b'{"amount"', "more_body": True}, {"body": b": 1}", "more_body": False}]
    responded = anyio.Event()

    async def receive() -> Any:
        if bodies:
            return {"type": "http.request", **bodies.pop(0)}
        await responded.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            diary.note(f"sent {message.get('body', b'')!r}")
            if not message.get("more_body", False):
                responded.set()

    headers = [(b"content-type", b"application/json"), *([(b"idempotency-key", key.encode())] if key else [])]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": dict(state),
    }  # fmt: skip
    try:
        await app(scope, receive, send)
    except Exception as error:
        diary.note(f"the server sees {type(error).__name__}")
    diary.note("the server is done")


def layers(diary: Diary) -> list[Middleware]:
    """Middleware of other libraries, from the outside in."""
    return [
        Middleware(Layer, name="outer", diary=diary),
        base_layer("base", diary),
        Middleware(Layer, name="inner", diary=diary),
    ]


async def diary_of(path: str, key: str | None, place: int | None, turns: int = 0) -> list[tuple[str, str]]:
    """The notes with the middleware inside of this many other layers; None: without it."""
    diary = Diary()
    middleware = layers(diary)
    if place is not None:
        middleware.insert(place, Middleware(IdempotencyMiddleware, backend="memory://"))
    await served(shop(diary, middleware), diary, path, key, turns)
    return diary.notes


#: by path: a note which shows that the intended step has happened
HAPPENS = {
    "/awaited": "endpoint, open, 13",
    "/threaded": "endpoint, open",
    "/declined": "handler",
    "/broken": "the server sees ValueError",
    "/background": "later, in a thread",
    "/background-broken": "later, and broken",
    "/stream": "piece 2",
    "/part/inner/charges": "part, /part/inner, /part/inner/charges, 13",
    "/nowhere": "the server is done",
}


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("path", HAPPENS)
async def test_an_application_sees_what_it_sees_without_us(path: str, place: int) -> None:
    """O-01, R-05, R-06: the same steps in the same order, with the same values in the context.

    An old Starlette's BaseHTTPMiddleware does not wait until the server has sent the last bytes, so the order without
    the middleware depends on how long that takes. A newer release waits, and has one order.
    """
    without = await diary_of(path, None, None)
    assert HAPPENS[path] in [what for what, _ in without]
    assert await diary_of(path, None, place) == without
    assert await diary_of(path, str(uuid4()), place) in [without, await diary_of(path, None, None, turns=1)]


async def test_a_middleware_with_a_task_of_its_own_would_be_noticed() -> None:
    """The comparison can fail: such a middleware changes the context of the outer layers."""
    diary, without = Diary(), Diary()
    middleware = [
        Middleware(Layer, name="outer", diary=diary),
        base_layer("theirs", Diary()),
        Middleware(Layer, name="inner", diary=diary),
    ]
    await served(shop(diary, middleware), diary, "/awaited", None)
    await served(
        shop(without, [Middleware(Layer, name=n, diary=without) for n in ("outer", "inner")]), without, "/awaited", None
    )
    assert dict(diary.notes)["outer leaves"] != dict(without.notes)["outer leaves"]
