"""Two middlewares of the library, one inside the other: what the inner one leaves to the outer one."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI, Request
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import Response
from werkzeug.test import Client

from open_idempotency import asgi as plain
from open_idempotency import idem, wsgi
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.flask import Idempotency
from open_idempotency.starlette import IdempotencyMiddleware, idempotent
from tests.unit.starlette.test_starlette_rules import PLACES, around, charge, new_key, protected, send, status, twice

pytestmark = pytest.mark.anyio


def fastapi_within(inner: dict[str, Any], outer: dict[str, Any], mark: Any) -> tuple[Any, list[int]]:
    """A FastAPI application with a middleware, mounted in another one with a middleware; and the runs of its route."""
    part, app, runs = FastAPI(), FastAPI(), list[int]()

    async def endpoint(request: Request) -> None:
        runs.append(len(await request.body()))

    part.api_route("/charges", methods=["POST", "PUT"])(mark(endpoint))
    part.add_middleware(IdempotencyMiddleware, backend="memory://", **inner)
    app.mount("/part", part)
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **outer)
    return app, runs


async def test_the_outer_one_reads_the_rules_of_a_route_that_the_inner_one_leaves() -> None:
    """O-18: in FastAPI, where key and declared length are checked before the body is read."""
    app, runs = fastapi_within({"methods": ["PUT"]}, {"cover": "marked"}, idempotent)
    assert await twice(app, "/part/charges")
    assert len(runs) == 1
    assert await status(app, "/part/charges", key="a" * 300) == 400


async def test_an_exemption_by_a_path_of_the_inner_one_holds_before_the_body_is_read() -> None:
    """O-18: the outer one does not check the key."""
    app, runs = fastapi_within({"rules": {"/*": plain.exempt}}, {}, lambda view: view)
    assert [await status(app, "/part/charges", key=key) for key in ("a" * 300, new_key())] == [200, 200]
    assert len(runs) == 2


@PLACES
async def test_an_inner_one_that_is_switched_off_leaves_all_to_the_outer_one(place: str) -> None:
    """O-18, O-25: it covers nothing, so the outer one protects."""
    backend = MemoryBackend()
    assert await twice(protected(around(place, None, charge, enabled=False), backend=backend))
    assert len(list(backend.scan())) == 1


async def charge_anew(request: Any) -> Response:
    """An endpoint whose rule concerns this file alone."""
    return await charge(request)


@PLACES
async def test_one_that_is_switched_off_hides_no_rules_of_its_routes(place: str) -> None:
    """O-18, O-25: the outer one reads them. Without an outer one they are no error, as protection was switched off on
    purpose.
    """
    route = around(place, None, idempotent(required=True)(charge_anew), enabled=False)
    assert await status(protected(route)) == 400
    assert await status(Starlette(routes=[route]), key=new_key()) == 200


@pytest.mark.parametrize("outer", [IdempotencyMiddleware, plain.IdempotencyMiddleware])
async def test_one_that_is_switched_off_leaves_the_stages_to_the_outer_one(outer: Any) -> None:
    """S-01, O-25: a stage inside is saved in the outer one's record, also around an application without routes."""
    backend = MemoryBackend()

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await idem.asave_stage("charged")
        raise LookupError

    await send(outer(IdempotencyMiddleware(inside, enabled=False), backend), key=new_key())
    assert [len(record.stages) for record in backend.scan()] == [1]


def test_one_that_is_switched_off_around_another_one_takes_nothing_from_it() -> None:
    """O-25: in WSGI, where the inner one is an extension or a middleware."""
    shop = Flask("shop")
    shop.post("/charges")(lambda: uuid4().hex)
    Idempotency(shop, "memory://")

    def inside(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [uuid4().bytes]

    for inner in (shop, wsgi.IdempotencyMiddleware(inside, "memory://")):
        client = Client(wsgi.IdempotencyMiddleware(inner, enabled=False))
        headers = {"Idempotency-Key": new_key()}
        assert [client.post("/charges", headers=headers).headers.get("idempotent-replayed") for _ in "12"] == [
            None,
            "true",
        ]


def test_one_that_is_switched_off_leaves_the_stages_to_the_outer_one_in_wsgi() -> None:
    """S-01, O-25."""
    backend = MemoryBackend()

    def inside(environ: Any, start_response: Any) -> Any:
        idem.save_stage("charged")
        raise LookupError

    app = wsgi.IdempotencyMiddleware(wsgi.IdempotencyMiddleware(inside, enabled=False), backend)
    with pytest.raises(LookupError):
        Client(app).post("/charges", headers={"Idempotency-Key": new_key()})
    assert [len(record.stages) for record in backend.scan()] == [1]
