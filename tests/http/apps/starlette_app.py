"""The application in Starlette, with one route that requires a key and one that is exempt.

An outer AuthenticationMiddleware trusts the ``X-User`` header. Users who log in by ``/login/NAME`` are in the session
alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from open_idempotency.asgi import App
from open_idempotency.backend import Backend
from open_idempotency.starlette import IdempotencyMiddleware, exempt, idempotent
from tests.http.behaviours import Reply, achunks, call_of, perform, perform_async

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def make(backend: Backend | str, fields: dict[str, Any]) -> App:
    """The application with its middleware."""
    routes = [
        Route("/sync/{rest:path}", _in_threadpool, methods=METHODS),
        Route("/required/{rest:path}", _required, methods=METHODS),
        Route("/exempt/{rest:path}", _exempt, methods=METHODS),
        Route("/login/{name}", log_in),
        Route("/{rest:path}", _on_loop, methods=METHODS),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(IdempotencyMiddleware, backend=backend, **fields)
    app.add_middleware(AuthenticationMiddleware, backend=HeaderAuthentication())
    app.add_middleware(SessionMiddleware, secret_key="for tests only")
    return app


class HeaderAuthentication(AuthenticationBackend):
    """Authenticates the user whom the client names."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


async def log_in(request: Request) -> Response:
    """Log in by an entry of the session that the authentication does not read."""
    request.session["user_id"] = request.path_params["name"]
    return Response("in")


async def _on_loop(request: Request) -> Response:
    return respond(await perform_async(call_from(request, await request.body())))


@idempotent(required=True)
async def _required(request: Request) -> Response:
    return await _on_loop(request)


@exempt
async def _exempt(request: Request) -> Response:
    return await _on_loop(request)


def _in_threadpool(request: Request) -> Response:
    return respond(perform(call_from(request, b"")))


def call_from(request: Request, body: bytes) -> Any:
    """The request as a ``Call``."""
    script = request.headers["x-script"]
    return call_of(request.method, request.url.path, request.url.query, body, script, partial(_become, request))


def _become(request: Request, name: str) -> None:
    request.scope["user"] = SimpleUser(name)


def respond(reply: Reply) -> Response:
    """The reply as Starlette's response."""
    background = BackgroundTask(reply.background) if reply.background else None
    response: Response
    if isinstance(reply.body, bytes):
        response = Response(reply.body, reply.status, background=background)
    else:
        response = StreamingResponse(achunks(reply.body), reply.status, background=background)
    response.raw_headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in reply.headers]
    return response
