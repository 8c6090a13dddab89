"""The forms under proof: real applications that make one order for a key and respond with its number.

``FORMS`` has a maker for each name. A maker gets the addresses and a trap, and returns a function that makes one
request and returns its status and body. Every number is random, so a second response would differ.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from open_idempotency import idem
from tests.proof.calls import call_asgi, call_wsgi
from tests.proof.traps import AFTER_CLAIM, AFTER_COMMIT, BEFORE_COMMIT, IN_TRANSACTION, Trap

LEASE = 1.5
KEY_FIELD = "HTTP_IDEMPOTENCY_KEY"
ORDER = "INSERT INTO orders (name, number) VALUES ({}, {})"

Result = tuple[int, bytes]
Call = Callable[[str], Result | Awaitable[Result]]


class Setting(NamedTuple):
    """The addresses of the servers, and the trap."""

    records: str
    database: str
    trap: Trap

    @property
    def options(self) -> dict[str, Any]:
        """The options of every adapter."""
        return {"backend": self.records, "lease": LEASE, "scope": lambda request: "proof"}


def _sqlalchemy_url(setting: Setting, awaited: bool = False) -> str:
    kind, _, where = setting.database.partition(":")
    driver = "psycopg" if kind == "postgresql" else "asyncmy" if awaited else "pymysql"
    return f"{kind}+{driver}:{where}"


def _body(number: Any) -> bytes:
    return json.dumps({"order": number}).encode()


def stage_in_wsgi(setting: Setting) -> Call:
    """``idem.stage(tx=)`` on a psycopg connection, in a plain WSGI application."""
    return _wsgi_with_a_stage(setting, in_transaction=True)


def stage_beside(setting: Setting) -> Call:
    """The same without ``tx=``: a kill after COMMIT repeats its effect, which shows that the proof can fail."""
    return _wsgi_with_a_stage(setting, in_transaction=False)


def _wsgi_with_a_stage(setting: Setting, in_transaction: bool) -> Call:
    from psycopg_pool import ConnectionPool

    from open_idempotency.wsgi import IdempotencyMiddleware

    trap = setting.trap
    pool = ConnectionPool(setting.database, min_size=0, max_size=12, open=False, timeout=90)

    def view(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        pool.open()
        with pool.connection() as connection:
            trap.at(AFTER_CLAIM)
            with idem.stage("order", tx=connection if in_transaction else None) as stage:
                if not stage.done:
                    number = secrets.token_hex(8)
                    connection.execute(ORDER.format("%s", "%s").encode(), (environ[KEY_FIELD], number))
                    trap.at(IN_TRANSACTION)
                    stage.save(number)
                    if not in_transaction:
                        connection.commit()
                        trap.at(AFTER_COMMIT)
            trap.at(BEFORE_COMMIT)
        trap.at(AFTER_COMMIT)
        start_response("201 Created", [("Content-Type", "application/json")])
        return [_body(stage.value)]

    return partial(call_wsgi, IdempotencyMiddleware(view, **setting.options), trap)


def stage_in_asgi(setting: Setting) -> Call:
    """``idem.stage(tx=)`` on SQLAlchemy's async session, in Starlette."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from open_idempotency.asgi import IdempotencyMiddleware

    trap, sessions = setting.trap, _async_sessions(setting)

    async def view(request: Request) -> Response:
        async with sessions() as session, session.begin():
            await trap.aat(AFTER_CLAIM)
            async with idem.stage("order", tx=session) as stage:
                if not stage.done:
                    number = await _order_awaited(session, request.headers["idempotency-key"])
                    await trap.aat(IN_TRANSACTION)
                    stage.save(number)
            await trap.aat(BEFORE_COMMIT)
        await trap.aat(AFTER_COMMIT)
        return Response(_body(stage.value), 201, media_type="application/json")

    routes = [Route("/", view, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(IdempotencyMiddleware, **setting.options)])
    return partial(call_asgi, app, trap)


def atomic_in_fastapi(setting: Setting) -> Call:
    """``idem.atomic`` with SQLAlchemy's async session, in FastAPI."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    from open_idempotency.asgi import IdempotencyMiddleware

    trap, sessions = setting.trap, _async_sessions(setting)
    app = FastAPI()

    async def view(request):
        async with sessions() as session, session.begin():
            await trap.aat(AFTER_CLAIM)
            async with idem.atomic(session) as block:
                number = await _order_awaited(session, request.headers["idempotency-key"])
                await trap.aat(IN_TRANSACTION)
                response = block.respond(JSONResponse({"order": number}, 201))
            await trap.aat(BEFORE_COMMIT)
        await trap.aat(AFTER_COMMIT)
        return response

    # Annotations are strings here, and FastAPI looks for their names in the module.
    view.__annotations__ = {"request": Request}
    app.post("/")(view)
    app.add_middleware(IdempotencyMiddleware, **setting.options)
    return partial(call_asgi, app, trap)


def _async_sessions(setting: Setting) -> Any:
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    return async_sessionmaker(
        create_async_engine(_sqlalchemy_url(setting, awaited=True), pool_size=24, max_overflow=0, pool_timeout=90)
    )


async def _order_awaited(session: Any, key: str) -> str:
    from sqlalchemy import text

    number = secrets.token_hex(8)
    await session.execute(text(ORDER.format(":name", ":number")), {"name": key, "number": number})
    return number


def atomic_in_flask(setting: Setting) -> Call:
    """``idem.atomic`` with SQLAlchemy's session, in Flask."""
    import flask
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import sessionmaker

    from open_idempotency.flask import Idempotency

    trap = setting.trap
    sessions = sessionmaker(create_engine(_sqlalchemy_url(setting), pool_size=24, max_overflow=0, pool_timeout=90))
    app = flask.Flask(__name__)

    @app.post("/")
    def view() -> flask.Response:
        with sessions.begin() as session:
            trap.at(AFTER_CLAIM)
            with idem.atomic(session) as block:
                number = secrets.token_hex(8)
                named = {"name": flask.request.headers["Idempotency-Key"], "number": number}
                session.execute(text(ORDER.format(":name", ":number")), named)
                trap.at(IN_TRANSACTION)
                response = block.respond(flask.make_response({"order": number}, 201))
            trap.at(BEFORE_COMMIT)
        trap.at(AFTER_COMMIT)
        return response

    Idempotency(app, **setting.options)
    return partial(call_wsgi, app.wsgi_app, trap)


def atomic_in_django(setting: Setting, atomic_requests: bool = False) -> Call:
    """``@idempotent(atomic=True)`` in Django."""
    from tests.proof.in_django import make_application

    return partial(call_wsgi, make_application(setting, atomic_requests), setting.trap)


FORMS: dict[str, Callable[[Setting], Call]] = {
    "stage, psycopg in WSGI": stage_in_wsgi,
    "stage, AsyncSession in Starlette": stage_in_asgi,
    "atomic, Session in Flask": atomic_in_flask,
    "atomic, AsyncSession in FastAPI": atomic_in_fastapi,
    "atomic, Django": atomic_in_django,
    "atomic, Django with ATOMIC_REQUESTS": partial(atomic_in_django, atomic_requests=True),
}
#: forms that run on MySQL and MariaDB too: one for each adapter and each library
ON_MYSQL = ("stage, AsyncSession in Starlette", "atomic, Session in Flask", "atomic, Django")
#: not proved: it has the gap
WITH_A_GAP = "stage without tx, psycopg in WSGI"
EVERY_FORM = {**FORMS, WITH_A_GAP: stage_beside}
