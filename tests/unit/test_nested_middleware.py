"""Several middlewares of the library around one endpoint of Starlette or FastAPI: which of them protects a request."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from open_idempotency import NotStarted, idem
from open_idempotency import asgi as plain
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.starlette import IdempotencyMiddleware
from tests.unit.starlette.test_starlette_rules import (
    PLACES,
    Hiding,
    around,
    new_key,
    ours,
    protected,
    send,
    status,
    twice,
)

pytestmark = pytest.mark.anyio

ALL = ["POST", "PATCH", "PUT"]


async def echo(request: Any) -> Response:
    """Responds with the body, and a new text each time."""
    return PlainTextResponse(f"{(await request.body()).decode()} {uuid4().hex}")


def place_of(place: str, backend: Any, **fields: Any) -> Any:
    """A route for all methods, with a middleware at this level."""
    route = around(place, backend, echo, **fields)
    for each in getattr(route, "routes", None) or [route]:
        each.methods = {*ALL, "GET"}
    return route


@PLACES
async def test_a_method_that_the_inner_one_does_not_cover_is_the_outer_ones(place: str) -> None:
    """O-18: the innermost middleware that covers the request protects it."""
    outer, inner = MemoryBackend(), MemoryBackend()
    app = protected(place_of(place, inner), backend=outer, methods=ALL)
    assert await twice(app, method="PUT")
    assert (len(list(outer.scan())), len(list(inner.scan()))) == (1, 0)
    assert await twice(app, method="POST")
    assert (len(list(outer.scan())), len(list(inner.scan()))) == (1, 1)


@PLACES
async def test_a_key_that_the_inner_one_does_not_read_is_the_outer_ones(place: str) -> None:
    """O-18: the outer one reads the key."""
    outer, inner = MemoryBackend(), MemoryBackend()
    app = protected(place_of(place, inner, header="X-Inner"), backend=outer)
    assert await twice(app)
    key = new_key()
    assert [(await send(app, x_inner=key)).headers.get("idempotent-replayed") for _ in range(2)] == [None, "true"]
    assert (len(list(outer.scan())), len(list(inner.scan()))) == (1, 1)


@PLACES
async def test_a_required_key_is_asked_for_by_the_one_that_covers_the_method(place: str) -> None:
    """O-06, O-18: the outer one requires it for the methods that only it covers."""
    app = protected(place_of(place, "memory://"), required=True, methods=ALL)
    assert [await status(app, method=method) for method in ("POST", "PUT")] == [200, 400]


@PLACES
async def test_an_exemption_of_the_inner_one_holds_for_both(place: str) -> None:
    """O-18: the nearest rule decides."""
    outer = MemoryBackend()
    app = protected(place_of(place, "memory://", rules={"/*": plain.exempt}), backend=outer, required=True)
    assert not await twice(app)
    assert list(outer.scan()) == []


@PLACES
async def test_the_outer_one_reads_the_whole_body(place: str) -> None:
    """O-05: another body under its key is refused, and the endpoint gets the whole first body."""
    app = protected(place_of(place, "memory://"), methods=ALL)
    key, body = new_key(), b"b" * 100_000
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        headers = {"idempotency-key": key}
        first = await client.put("/charges", content=body, headers=headers)
        other = await client.put("/charges", content=body + b"!", headers=headers)
    assert (first.status_code, first.content.partition(b" ")[0], other.status_code) == (200, body, 422)


async def test_of_two_in_one_list_the_outer_one_covers_what_the_inner_one_leaves() -> None:
    """O-18: also where the inner one is the plain middleware."""
    listed: Any = Middleware
    for inner in (ours(), [listed(plain.IdempotencyMiddleware, backend="memory://")]):
        routes = [Route("/charges", echo, methods=ALL)]
        app = Starlette(routes=routes, middleware=[*ours(MemoryBackend(), methods=ALL), *inner])
        assert await twice(app, method="PUT")
        assert await twice(app, method="POST")


async def test_of_three_the_outermost_covers_what_both_others_leave() -> None:
    """O-18."""
    routes = [Route("/charges", echo, methods=[*ALL, "DELETE"])]
    middle = Mount("/", routes=routes, middleware=[*ours(methods=["PUT"]), *ours()])
    app = protected(middle, methods=[*ALL, "DELETE"])
    assert [await twice(app, method=method) for method in ("DELETE", "PUT", "POST")] == [True, True, True]


async def test_a_hidden_inner_one_leaves_the_rest_too() -> None:
    """O-18: a layer between them changes nothing, as long as the routes are the application's."""
    inner = IdempotencyMiddleware(Starlette(routes=[Route("/charges", echo, methods=ALL)]), "memory://")
    app = IdempotencyMiddleware(Starlette(routes=[Mount("/", inner)]), "memory://", methods=ALL)
    assert await twice(app, method="PUT")
    assert await twice(Starlette(routes=[Mount("/", Hiding(app))]), method="PUT")


async def test_a_fastapi_endpoint_is_protected_by_the_outer_one() -> None:
    """O-18: after its dependencies, in a mounted application with a middleware of its own."""
    part = FastAPI()

    async def echoed(request: Request) -> str:
        return f"{(await request.body()).decode()} {uuid4().hex}"

    part.put("/charges")(echoed)
    part.add_middleware(IdempotencyMiddleware, backend="memory://")
    app = FastAPI()
    app.mount("/part", part)
    app.add_middleware(IdempotencyMiddleware, backend="memory://", methods=ALL)
    assert await twice(app, "/part/charges", method="PUT")
    refused = await send(app, "/part/charges", key="a\\b", method="PUT")
    assert refused.status_code == 400


@PLACES
async def test_stages_without_a_key_run_by_the_policy_that_covers_the_method(place: str) -> None:
    """S-03: the inner one's policy where it covers, else the outer one's; else there is no request to record stages
    for.
    """
    noted: list[str] = []

    async def endpoint(request: Any) -> Response:
        try:
            await idem.asave_stage(request.method)
            noted.append(request.method)
        except NotStarted:
            noted.append("none")
        return PlainTextResponse("done")

    route = around(place, "memory://", endpoint, methods=["POST"])
    for each in getattr(route, "routes", None) or [route]:
        each.methods = {"POST", "PUT", "DELETE"}
    app = protected(route, methods=["PUT"])
    assert [await status(app, method=method) for method in ("POST", "PUT", "DELETE")] == [200] * 3
    assert noted == ["POST", "PUT", "none"]
