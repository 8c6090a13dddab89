"""Code of an application that runs after its response was recorded: warned about at start, and reported if it fails."""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import fastapi
import flask
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI

from open_idempotency import events, wsgi
from open_idempotency.fastapi import IdempotencyMiddleware, exempt
from open_idempotency.flask import Idempotency
from tests.unit.starlette.test_starlette_start import post, start

LATE = tuple(map(int, fastapi.__version__.split(".")[:2])) >= (0, 118)
SCOPED = "scope" in inspect.signature(Depends).parameters
pytestmark = pytest.mark.skipif(not LATE, reason="this FastAPI ends dependencies before the response")


def get_session() -> Iterator[str]:
    """FastAPI's documented session dependency: the code after its yield runs after the response."""
    yield "session"


async def get_async_session() -> AsyncIterator[str]:
    """The async form of ``get_session``."""
    yield "session"


class Sessions:
    """A session dependency that is a callable object."""

    def __call__(self) -> Iterator[str]:
        yield "session"


def plain() -> str:
    """A dependency that has ended before the endpoint begins."""
    return "user"


def nested(session: str = Depends(get_session)) -> str:
    """A dependency that ends early, and depends on one that does not."""
    return session


def shop(dependency: Any, **options: Any) -> FastAPI:
    """An application with one covered route that has this dependency."""
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **options)

    @app.post("/orders")
    def order(session: Any = dependency) -> str:
        return "made"

    return app


def warnings_at_start(app: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings while the application starts."""
    caplog.clear()
    asyncio.run(start(app))
    return [r.getMessage() for r in caplog.records if r.name == "open_idempotency" and r.levelno == logging.WARNING]


LATE_ONES: dict[str, tuple[Any, str]] = {
    "generator": (Depends(get_session), f"{__name__}.get_session "),
    "async generator": (Depends(get_async_session), f"{__name__}.get_async_session "),
    "object": (Depends(Sessions()), f"{__name__}.Sessions "),
    "partial": (Depends(functools.partial(get_session)), f"{__name__}.get_session "),
    "nested": (Depends(nested), f"{__name__}.get_session "),
}
if SCOPED:
    LATE_ONES["its scope written out"] = (Depends(get_session, scope="request"), f"{__name__}.get_session ")


@pytest.mark.parametrize("form", LATE_ONES)
def test_a_dependency_that_ends_after_the_response_is_warned_about_at_start(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """R-05a: once, with its name, its route and the cures."""
    dependency, name = LATE_ONES[form]
    (said,) = warnings_at_start(shop(dependency), caplog)
    assert said.startswith(name)
    assert "POST /orders" in said
    for cure in ('scope="function"', "commit in the endpoint", "idem.atomic", "tx="):
        assert cure in said


def test_one_warning_names_all_routes_of_a_dependency(caplog: pytest.LogCaptureFixture) -> None:
    """R-05a: also the routes of a router with the dependency; not the routes that are not covered."""
    app, router = shop(Depends(get_session)), APIRouter(prefix="/part", dependencies=[Depends(get_session)])
    for number in range(6):
        router.add_api_route(f"/{number}", plain, methods=["POST"])
    router.add_api_route("/exempt", exempt(lambda: "done"), methods=["POST"])
    router.add_api_route("/read", plain, methods=["GET"])
    app.include_router(router)
    (said,) = warnings_at_start(app, caplog)
    assert "POST /orders, POST /part/0, POST /part/1, POST /part/2, POST /part/3 and 2 more:" in said


SOUND_ONES: dict[str, Callable[[], FastAPI]] = {
    "no generator": lambda: shop(Depends(plain)),
    "route not covered": lambda: shop(Depends(get_session), methods=["PATCH"]),
    "path exempt": lambda: shop(Depends(get_session), rules={"/orders": exempt}),
}
if SCOPED:
    SOUND_ONES["ends before the response"] = lambda: shop(Depends(get_session, scope="function"))


@pytest.mark.parametrize("form", SOUND_ONES)
def test_what_ends_in_time_is_no_reason_to_warn(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """R-05a: nor is a route that the middleware does not cover."""
    assert warnings_at_start(SOUND_ONES[form](), caplog) == []


def test_without_a_start_the_first_request_warns(caplog: pytest.LogCaptureFixture) -> None:
    """R-05a: some servers and test clients start no lifespan."""
    app = shop(Depends(get_session))
    caplog.clear()
    assert [post(app, "/orders") for _ in range(2)] == [200, 200]
    said = [record for record in caplog.records if "ends after the response" in record.getMessage()]
    assert len(said) == 1


# An application that raises after its response was recorded


class CommitFailed(Exception):
    """An error that comes too late for the response."""


def failing_session() -> Iterator[str]:
    """A session whose commit fails."""
    yield "session"
    raise CommitFailed


def failing_task() -> None:
    """A background task that fails."""
    raise CommitFailed


def in_fastapi(listener: events.Listener) -> None:
    app = shop(Depends(failing_session), on_event=listener)
    post_twice(app)


def in_a_background_task(listener: events.Listener) -> None:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://", on_event=listener)

    @app.post("/orders")
    def order(tasks: BackgroundTasks) -> str:
        tasks.add_task(failing_task)
        return "made"

    post_twice(app)


def post_twice(app: Any) -> None:
    key = str(uuid4())

    async def run() -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            responses = [await client.post("/orders", headers={"idempotency-key": key}) for _ in range(2)]
        assert [response.headers.get("idempotent-replayed") for response in responses] == [None, "true"]
        return [response.status_code for response in responses]

    assert asyncio.run(run()) == [200, 200]


def in_flask(teardown: str) -> Callable[[events.Listener], None]:
    def run(listener: events.Listener) -> None:
        app = flask.Flask(__name__)
        Idempotency(app, backend="memory://", on_event=listener)
        app.post("/orders", endpoint="orders")(lambda: "made")

        @getattr(app, teardown)
        def commit(error: BaseException | None) -> None:
            raise CommitFailed

        with pytest.raises(CommitFailed):
            app.test_client().post("/orders", headers={"Idempotency-Key": str(uuid4())})

    return run


class ClosesBadly:
    """A WSGI response of one chunk whose ``close()`` fails."""

    def __init__(self) -> None:
        self._chunks = iter([b"made"])

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        raise CommitFailed


def in_wsgi(listener: events.Listener) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("201 Created", [("Content-Length", "4")])
        return ClosesBadly()

    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/orders", "QUERY_STRING": "", "CONTENT_LENGTH": "0",
        "HTTP_IDEMPOTENCY_KEY": str(uuid4()), "wsgi.input": io.BytesIO(),
    }  # fmt: skip
    result: Any = wsgi.IdempotencyMiddleware(app, "memory://", on_event=listener)(environ, lambda *_: None)
    assert b"".join(result) == b"made"
    with pytest.raises(CommitFailed):
        result.close()


FAILING = {
    "a dependency of FastAPI": in_fastapi,
    "a background task": in_a_background_task,
    "a teardown_request function of Flask": in_flask("teardown_request"),
    "a teardown_appcontext function of Flask": in_flask("teardown_appcontext"),
    "close() of a WSGI response": in_wsgi,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("where", FAILING)
def test_what_raises_after_the_response_was_recorded_is_reported(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """R-05a: by an event, and by an error in the log that says what a retry will get."""
    seen: list[events.Event] = []
    FAILING[where](seen.append)
    (late,) = [event for event in seen if isinstance(event, events.RaisedAfterResponse)]
    assert late.error == "CommitFailed"
    assert late.record == next(event.record for event in seen if isinstance(event, events.Completed))
    (logged,) = [r for r in caplog.records if r.levelno == logging.ERROR and "RaisedAfterResponse" in r.getMessage()]
    assert "a retry replays that response" in logged.getMessage()
