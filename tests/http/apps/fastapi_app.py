"""The application in FastAPI; its sync endpoint and its dependency run in the thread pool.

One router requires a key on all its routes, and one route is exempt.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import Response

from open_idempotency.asgi import App
from open_idempotency.backend import Backend
from open_idempotency.fastapi import IdempotencyMiddleware, IdempotencyRule, exempt
from tests.http.apps.starlette_app import METHODS, HeaderAuthentication, call_from, log_in, respond
from tests.http.behaviours import perform, perform_async


async def _body(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


def make(backend: Backend | str, fields: dict[str, Any]) -> App:
    """The application with its middleware."""
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend=backend, **fields)
    app.add_middleware(AuthenticationMiddleware, backend=HeaderAuthentication())
    app.add_middleware(SessionMiddleware, secret_key="for tests only")
    app.add_route("/login/{name}", log_in)
    app.add_api_route("/sync/{rest:path}", _in_threadpool, methods=METHODS)
    strict = APIRouter(prefix="/required", dependencies=[Depends(IdempotencyRule(required=True))])
    strict.add_api_route("/{rest:path}", _on_loop, methods=METHODS)
    app.include_router(strict)
    app.add_api_route("/exempt/{rest:path}", _exempt, methods=METHODS)
    app.add_api_route("/{rest:path}", _on_loop, methods=METHODS)
    return app


async def _on_loop(request: Request, body: Body) -> Response:
    return respond(await perform_async(call_from(request, body)))


@exempt
async def _exempt(request: Request, body: Body) -> Response:
    return await _on_loop(request, body)


def _in_threadpool(request: Request, body: Body) -> Response:
    return respond(perform(call_from(request, body)))
