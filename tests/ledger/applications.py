"""One view in three frameworks: an order and its response in one transaction, optionally after a plain stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import anyio
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from open_idempotency import idem
from open_idempotency.backends.memory import MemoryBackend
from tests.django_project.calls import KEY, post, project
from tests.ledger.databases import INSERT, Database, django_alias

ORDER = sqlalchemy.text(INSERT)
PLACED = {"order": "placed"}


class Result(NamedTuple):
    """Status and body of a response."""

    status: int
    body: bytes

    @property
    def problem(self) -> str:
        """The name of the problem, if the body is one."""
        return str(json.loads(self.body)["type"]).rpartition(":")[2]


class Application(NamedTuple):
    """A running application: ``send(body)`` makes a request, always with the same key. Its records are in memory."""

    send: Callable[[bytes], Result]
    backend: MemoryBackend

    def lose(self) -> None:
        """Delete every record, as a flushed cache does."""
        for record in list(self.backend.scan()):
            self.backend.delete(record.record_id)

    def records(self) -> int:
        """The number of records."""
        return len(list(self.backend.scan()))


Make = Callable[..., AbstractContextManager[Application]]


@contextmanager
def in_flask(database: Database, notifies: bool = False, **fields: Any) -> Iterator[Application]:
    """A Flask view that uses ``idem.atomic`` with a session."""
    import flask

    from open_idempotency.flask import Idempotency

    app, backend = flask.Flask("shop"), MemoryBackend()
    engine = sqlalchemy.create_engine(database.url)

    @app.post("/")
    def view() -> flask.Response:
        if notifies:
            idem.save_stage("notify")
        with Session(engine) as session, session.begin(), idem.atomic(session) as block:
            session.execute(ORDER)
            return block.respond(flask.make_response(PLACED, 201))

    Idempotency(app, backend, **fields)

    def send(body: bytes) -> Result:
        response = app.test_client().post("/", headers={"Idempotency-Key": KEY}, data=body)
        return Result(response.status_code, response.data)

    yield Application(send, backend)
    engine.dispose()


@contextmanager
def in_fastapi(database: Database, notifies: bool = False, **fields: Any) -> Iterator[Application]:
    """A FastAPI view that uses ``idem.atomic`` with an async session."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from httpx import ASGITransport, AsyncClient

    from open_idempotency.fastapi import IdempotencyMiddleware

    app, backend = FastAPI(), MemoryBackend()
    # Each request has an event loop of its own here.
    url = database.url.replace("sqlite:", "sqlite+aiosqlite:")
    engine = create_async_engine(url, poolclass=sqlalchemy.NullPool)

    async def view():
        if notifies:
            await idem.asave_stage("notify")
        async with AsyncSession(engine) as session, session.begin(), idem.atomic(session) as block:
            await session.execute(ORDER)
            return block.respond(JSONResponse(PLACED, 201))

    app.post("/")(view)
    app.add_middleware(IdempotencyMiddleware, backend=backend, **fields)

    async def asend(body: bytes) -> Result:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
            response = await client.post("/", content=body, headers={"Idempotency-Key": KEY})
        return Result(response.status_code, response.content)

    yield Application(lambda body: anyio.run(asend, body), backend)


@contextmanager
def in_django(database: Database, notifies: bool = False, **fields: Any) -> Iterator[Application]:
    """A Django view under ``@idempotent(atomic=...)``."""
    from django.db import connections
    from django.http import HttpRequest, JsonResponse
    from django.test import Client

    from open_idempotency.django import idempotent

    with django_alias(database) as alias:

        @idempotent(atomic=alias)
        def order(request: HttpRequest) -> JsonResponse:
            with connections[alias].cursor() as cursor:
                cursor.execute(INSERT)
            return JsonResponse(PLACED, status=201)

        def view(request: HttpRequest) -> Any:
            if notifies:
                idem.save_stage("notify")
            return order(request)

        def send(body: bytes) -> Result:
            response = post(Client(raise_request_exception=False), data=body.decode(), content_type="text/plain")
            return Result(response.status_code, response.content)

        backend = MemoryBackend()
        settings = {f"IDEMPOTENCY_{name.upper()}": value for name, value in fields.items()}
        with project(view, IDEMPOTENCY_BACKEND=backend, **settings):
            yield Application(send, backend)


FRAMEWORKS: dict[str, Make] = {"Flask": in_flask, "FastAPI": in_fastapi, "Django": in_django}
