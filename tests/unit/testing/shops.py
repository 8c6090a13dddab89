"""The same payment in each framework: correct applications, made at the top of a module as users make theirs.

Their backends are servers that do not exist, so a request that reached one would fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI
from flask import Flask, request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from open_idempotency import asgi, flask, idem, starlette, wsgi
from tests.unit.testing.bank import bank

NOWHERE = "redis://127.0.0.1:1/0"

# FastAPI

fast = FastAPI()
fast.add_middleware(starlette.IdempotencyMiddleware, backend=NOWHERE)


@fast.post("/pay", status_code=201)
async def pay_fast(body: dict[str, int]) -> dict[str, Any]:
    """A coroutine endpoint."""
    return {"charge": await idem.arun("charge", bank.acharge, body["amount"], idem.key_for("charge"))}


@fast.post("/def", status_code=201)
def pay_fast_in_thread(body: dict[str, int]) -> dict[str, Any]:
    """A sync endpoint, which runs in the thread pool."""
    return {"charge": idem.run("charge", bank.charge, body["amount"], idem.key_for("charge"))}


# Starlette


async def _pay(request: Request) -> JSONResponse:
    body = await request.json()
    charge = await idem.arun("charge", bank.acharge, body["amount"], idem.key_for("charge"))
    return JSONResponse({"charge": charge}, status_code=201)


async def _stream(request: Request) -> StreamingResponse:
    charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    async def parts() -> Any:
        yield b"charged "
        yield str(charge["amount"]).encode()

    return StreamingResponse(parts())


star = Starlette(
    routes=[Route("/pay", _pay, methods=["POST"]), Route("/stream", _stream, methods=["POST"])],
    middleware=[Middleware(starlette.IdempotencyMiddleware, backend=NOWHERE)],
)

# ASGI


async def _plain(scope: Any, receive: Any, send: Any) -> None:
    body = json.loads((await receive())["body"])
    charge = await idem.arun("charge", bank.acharge, body["amount"], idem.key_for("charge"))
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps({"charge": charge}).encode()})


plain_asgi = asgi.IdempotencyMiddleware(_plain, NOWHERE)

# Flask

flasked = Flask("shop")
flask.Idempotency(flasked, NOWHERE)


@flasked.post("/pay")
def pay_flask() -> Any:
    """A view."""
    charge = idem.run("charge", bank.charge, request.get_json()["amount"], idem.key_for("charge"))
    return {"charge": charge}, 201


@flasked.post("/apay")
async def apay_flask() -> Any:
    """An async view."""
    charge = await idem.arun("charge", bank.acharge, request.get_json()["amount"], idem.key_for("charge"))
    return {"charge": charge}, 201


@flasked.post("/stream")
def stream_flask() -> Any:
    """A response in parts."""
    charge = idem.run("charge", bank.charge, 1, idem.key_for("charge"))
    return (part for part in ["charged ", str(charge["amount"])])


# WSGI


def _plain_wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    charge = idem.run("charge", bank.charge, body["amount"], idem.key_for("charge"))
    start_response("201 Created", [("Content-Type", "application/json")])
    return [json.dumps({"charge": charge}).encode()]


plain_wsgi = wsgi.IdempotencyMiddleware(_plain_wsgi, NOWHERE)
