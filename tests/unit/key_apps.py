"""One application on each adapter whose view reads its body, for keys that are read from a request (H-15 to H-21).

``APPS`` has a factory by name: it takes a backend, and policy fields of the application or of the one route. It returns
a function that posts a request and returns the application's response.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from typing import Any

import httpx
from django.http import HttpResponse
from django.test import AsyncClient, Client
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from flask import Flask
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from werkzeug.test import EnvironBuilder, run_wsgi_app

from open_idempotency import asgi, django, fastapi, flask, starlette, wsgi
from open_idempotency.adapter import Adapter, AsyncAdapter
from open_idempotency.hooks import Request, Response
from tests.django_project.calls import project
from tests.unit.every_adapter import Reply

JSON = "application/json"
#: sends a POST: its body, its query, its headers, and whether its length is declared
Post = Callable[..., Reply]


class Count:
    """How often a view ran, and the bodies that it has read."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def run(self, body: bytes) -> dict[str, int]:
        self.bodies.append(body)
        return {"run": len(self.bodies), "bytes": len(body)}


def _headers(content_type: str | None, headers: dict[str, str]) -> dict[str, str]:
    return {**({} if content_type is None else {"content-type": content_type}), **headers}


def _by_httpx(app: Any) -> Post:
    def post(
        body: bytes = b"", query: str = "", content_type: str | None = JSON, declared: bool = True, **headers: str
    ) -> Reply:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                url = "/hook" + (f"?{query}" if query else "")
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.post(
                    url, content=body if declared else pieces(), headers=_headers(content_type, named)
                )

        response = asyncio.run(send())
        return Reply(response.status_code, response.headers.items(), response.content)

    return post


def _by_werkzeug(app: Any) -> Post:
    def post(
        body: bytes = b"", query: str = "", content_type: str | None = JSON, declared: bool = True, **headers: str
    ) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        environ = EnvironBuilder(
            "/hook",
            method="POST",
            query_string=query,
            headers=_headers(content_type, named),
            input_stream=BytesIO(body),
        ).get_environ()
        if declared:
            environ["CONTENT_LENGTH"] = str(len(body))
        else:
            environ.pop("CONTENT_LENGTH", None)
            environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
        body_sent, status, sent = run_wsgi_app(app, environ)
        return Reply(int(status[:3]), sent.items(), b"".join(body_sent))

    return post


def _asgi(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        said = json.dumps(count.run(body)).encode()
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": said})

    rules = {"/hook": route} if route else None
    return _by_httpx(asgi.IdempotencyMiddleware(app, backend, rules=rules, **fields))


def _starlette(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    async def view(request: StarletteRequest) -> JSONResponse:
        return JSONResponse(count.run(await request.body()), 201)

    marked = starlette.idempotent(**route)(view) if route else view
    app = Starlette(routes=[Route("/hook", marked, methods=["POST"])])
    app.add_middleware(starlette.IdempotencyMiddleware, backend=backend, **fields)
    return _by_httpx(app)


def _fastapi(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    app = FastAPI()
    app.add_middleware(fastapi.IdempotencyMiddleware, backend=backend, **fields)

    async def view(request: FastAPIRequest) -> dict[str, int]:
        return count.run(await request.body())

    app.post("/hook", status_code=201)(fastapi.idempotent(**route)(view) if route else view)
    return _by_httpx(app)


def _wsgi(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read() if length is None else environ["wsgi.input"].read(int(length))
        start_response("201 Created", [("Content-Type", JSON)])
        return [json.dumps(count.run(body)).encode()]

    rules = {"/hook": route} if route else None
    return _by_werkzeug(wsgi.IdempotencyMiddleware(app, backend, rules=rules, **fields))


def _flask(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    app = Flask("hooks")

    def view() -> Any:
        return count.run(flask_request.get_data()), 201

    flask.Idempotency(app, backend, **fields)
    app.post("/hook")(flask.idempotent(**route)(view) if route else view)
    return _by_werkzeug(app)


def _django(awaited: bool) -> Callable[..., Post]:
    def make(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
        settings = {f"IDEMPOTENCY_{name.upper()}": value for name, value in fields.items()}

        def view(request: Any) -> HttpResponse:
            return HttpResponse(json.dumps(count.run(request.body)), status=201, content_type=JSON)

        async def aview(request: Any) -> HttpResponse:
            return view(request)

        chosen = aview if awaited else view
        marked = django.idempotent(**route)(chosen) if route else chosen

        def post(
            body: bytes = b"", query: str = "", content_type: str | None = JSON, declared: bool = True, **headers: str
        ) -> Reply:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            options: dict[str, Any] = {"content_type": content_type or ""}
            url = "/0" + (f"?{query}" if query else "")
            with project(marked, IDEMPOTENCY_BACKEND=backend, **settings):
                if awaited:

                    async def send() -> Any:
                        return await AsyncClient().post(url, body, **options, **named)

                    response = asyncio.run(send())
                else:
                    response = Client().post(url, body, headers=named, **options)
            return Reply(response.status_code, response.items(), response.content)

        return post

    return make


def _request(query: str, content_type: str | None, headers: dict[str, str]) -> Request:
    named = _headers(content_type, {name.replace("_", "-").lower(): value for name, value in headers.items()})
    return Request(
        "POST", b"/hook", query.encode(), [(name.encode(), value.encode()) for name, value in named.items()], None
    )


def _of(response: Response) -> Reply:
    pairs = [(name.decode(), value.decode()) for name, value in response.headers]
    return Reply(response.status, pairs, response.body or b"")


def _adapter(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    adapter = Adapter(backend, **fields, **route)

    def post(
        body: bytes = b"", query: str = "", content_type: str | None = JSON, declared: bool = True, **headers: str
    ) -> Reply:
        def handler() -> Response:
            return Response(201, [(b"content-type", b"application/json")], json.dumps(count.run(body)).encode())

        return _of(adapter.handle(_request(query, content_type, headers), body, handler))

    return post


def _async_adapter(backend: Any, count: Count, route: dict[str, Any], **fields: Any) -> Post:
    adapter = AsyncAdapter(backend, **fields, **route)

    def post(
        body: bytes = b"", query: str = "", content_type: str | None = JSON, declared: bool = True, **headers: str
    ) -> Reply:
        async def handler() -> Response:
            return Response(201, [(b"content-type", b"application/json")], json.dumps(count.run(body)).encode())

        return _of(asyncio.run(adapter.handle(_request(query, content_type, headers), body, handler)))

    return post


APPS: dict[str, Callable[..., Post]] = {
    "asgi": _asgi,
    "starlette": _starlette,
    "fastapi": _fastapi,
    "wsgi": _wsgi,
    "flask": _flask,
    "django": _django(awaited=False),
    "django under asgi": _django(awaited=True),
    "adapter": _adapter,
    "async adapter": _async_adapter,
}
