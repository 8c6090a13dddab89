"""Statements of docs/frameworks/litestar.md about Litestar beyond its examples: routes, guards, sessions, CORS."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, Request, Router, post
from litestar.config.compression import CompressionConfig
from litestar.config.cors import CORSConfig
from litestar.exceptions import PermissionDeniedException
from litestar.middleware import DefineMiddleware
from litestar.middleware.session.client_side import CookieBackendConfig

from open_idempotency._core.keys import About
from open_idempotency._routes import survey
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.sqlite import SqliteBackend
from tests.frameworks.calls import REPLAYED, posted, start

numbers = count(1)
PAGE = "https://app.example"


def guard(connection: Any, handler: Any) -> None:
    """Refuse a request whose header says so."""
    if "x-denied" in connection.headers:
        raise PermissionDeniedException


@post("/charges/{number:int}", guards=[guard])
async def create_charge() -> dict[str, int]:
    return {"run": next(numbers)}


@post("/long")
async def long() -> dict[str, Any]:
    return {"run": next(numbers), "text": "x" * 2000}


@post("/of-session")
async def of_session(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return {"run": next(numbers), "user": request.session.get("user_id")}


@post("/login/{number:int}")
async def log_in(request: Request[Any, Any, Any]) -> None:
    request.set_session({"user_id": request.path_params["number"]})


def protected(backend: Any, *handlers: Any, **options: Any) -> Litestar:
    """An application with the middleware, as the page installs it."""
    return Litestar(
        list(handlers) or [create_charge, long],
        middleware=[*options.pop("outside", ()), DefineMiddleware(IdempotencyMiddleware, backend=backend)],
        logging_config=None,  # Litestar's default logging would hide the log from the tests
        **options,
    )


@pytest.fixture
def _nothing_warned() -> Iterator[None]:
    """Reset the warnings about layers, which come once in each process."""
    before = set(survey._warned)
    survey._warned.clear()
    yield
    survey._warned.update(before)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The first word of each warning about an inner layer."""
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [text.partition(" ")[0] for text in texts if "is inside IdempotencyMiddleware" in text]


def test_a_record_has_the_template_of_litestars_route() -> None:
    """P-02: the middleware runs after the route is resolved."""
    backend = MemoryBackend()
    (made,) = posted(protected(backend), ("/charges/7", {}))
    assert made.status_code == 201
    (record,) = backend.scan()
    assert About.of(record).route == "/charges/{number}"


def test_a_request_without_a_route_makes_no_record() -> None:
    """O-18: Litestar's 404 comes before a route's middleware."""
    backend = MemoryBackend()
    assert [each.status_code for each in posted(protected(backend), ("/none", {}), ("/none", {}))] == [404, 404]
    assert list(backend.scan()) == []


def test_one_backend_object_notices_a_key_on_another_route() -> None:
    """O-05: a ``memory://`` URL would make a new backend for each route, as the page says."""
    apart = posted(protected("memory://"), ("/charges/7", {}), ("/long", {}))
    assert [each.status_code for each in apart] == [201, 201]
    together = posted(protected(MemoryBackend()), ("/charges/7", {}), ("/long", {}))
    assert [each.status_code for each in together] == [201, 422]


def test_a_guard_does_not_run_before_a_replay() -> None:
    """Guards run inside of the middleware, as the page says."""
    denied = {"X-Denied": "1"}
    app = protected(MemoryBackend())
    refused, made, replayed = posted(app, ("/charges/7", denied), ("/charges/7", {}), ("/charges/7", denied))
    assert (refused.status_code, made.status_code) == (403, 201)
    assert replayed.content == made.content
    assert replayed.headers[REPLAYED] == "true"


def test_the_session_of_litestar_names_the_caller() -> None:
    """O-19: its middleware is listed before this one."""
    sessions = CookieBackendConfig(secret=b"0123456789abcdef")
    app = protected(MemoryBackend(), of_session, log_in, outside=[sessions.middleware])
    cookies = []
    for number in (7, 8):
        (response,) = posted(app, (f"/login/{number}", {"Idempotency-Key": f"key-of-the-login-of-{number}"}))
        cookies.append({"Cookie": response.headers["set-cookie"].partition(";")[0]})
    ann, bob, again = posted(app, *[("/of-session", cookie) for cookie in (*cookies, cookies[0])])
    assert (ann.json()["user"], bob.json()["user"]) == (7, 8)
    assert again.content == ann.content
    assert (ann.headers.get(REPLAYED), bob.headers.get(REPLAYED), again.headers[REPLAYED]) == (None, None, "true")


@pytest.mark.usefixtures("_nothing_warned")
def test_compression_of_litestar_is_inside_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """R-12: a route's middleware gets no lifespan, so it is reported when it is made, once for all routes."""
    app = protected(MemoryBackend(), compression_config=CompressionConfig("gzip"))
    assert warnings_of(caplog) == ["CompressionMiddleware"]
    gzipped, plain = posted(app, ("/long", {}), ("/long", {"Accept-Encoding": "identity"}))
    assert gzipped.headers["content-encoding"] == plain.headers["content-encoding"] == "gzip"


@pytest.mark.usefixtures("_nothing_warned")
def test_cors_of_litestar_is_outside_of_its_middleware(caplog: pytest.LogCaptureFixture) -> None:
    """R-11: problems have CORS headers, and nothing is reported."""
    app = protected(MemoryBackend(), cors_config=CORSConfig(allow_origins=[PAGE]))
    (problem,) = posted(app, ("/long", {"Origin": PAGE, "Idempotency-Key": '"'}))
    assert problem.status_code == 400
    assert problem.headers["access-control-allow-origin"] == PAGE
    assert warnings_of(caplog) == []


class Own(Litestar):
    """An application class of a project."""


@pytest.mark.parametrize("kind", [Litestar, Own])
def test_cors_and_compression_of_a_wrapped_litestar_are_reported_at_start(
    kind: type[Litestar], caplog: pytest.LogCaptureFixture
) -> None:
    """R-12: both are inside of a middleware around the application; nothing is reported if they are not configured."""
    config: Any = {"cors_config": CORSConfig(allow_origins=[PAGE]), "compression_config": CompressionConfig("gzip")}
    wrapped = IdempotencyMiddleware(kind([long], logging_config=None, **config), "memory://")
    assert asyncio.run(start(wrapped)) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert warnings_of(caplog) == ["LitestarCORS", "CompressionMiddleware"]
    caplog.clear()
    asyncio.run(start(IdempotencyMiddleware(kind([long], logging_config=None), "memory://")))
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("used", [False, True])
def test_a_backend_object_may_stand_in_the_middleware_of_a_handler(tmp_path: Path, used: bool) -> None:
    """B-25: Litestar copies a router's handlers; the copies share the backend."""
    with SqliteBackend(str(tmp_path / "idem.db")) as backend:
        if used:
            assert list(backend.scan()) == []
        define = DefineMiddleware(IdempotencyMiddleware, backend=backend)

        @post("/defined", middleware=[define])
        async def defined() -> dict[str, int]:
            return {"run": next(numbers)}

        app = Litestar([Router("/v1", route_handlers=[defined])], logging_config=None)
        first, second = posted(app, ("/v1/defined", {}), ("/v1/defined", {}))
        assert (first.status_code, second.content, second.headers[REPLAYED]) == (201, first.content, "true")
        assert len(list(backend.scan())) == 1
        for each in (backend, backend.to_async()):
            assert copy.deepcopy(each) is each
