"""The application in Django, sync and async: async views under ASGI, sync views under WSGI.

Each variant is a handler of its own, whose middleware is built while its settings are in force. The views are found by
``request.urlconf``, so that no setting has to change while a request runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

from open_idempotency.backend import Backend
from open_idempotency.django import exempt, idempotent
from tests.django_project import set_up
from tests.http.behaviours import Call, Reply, achunks, call_of, chunks, perform, perform_async

OURS = "open_idempotency.django.IdempotencyMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
MIDDLEWARE = [SESSIONS, "tests.http.apps.django_app.find_views_here", OURS]
REST_MIDDLEWARE = [SESSIONS, "tests.http.apps.django_app.find_rest_views", OURS]


def make_wsgi(backend: Backend | str, fields: dict[str, Any]) -> WSGIHandler:
    """The WSGI application."""
    return _make(WSGIHandler, MIDDLEWARE, backend, fields)


def make_rest(backend: Backend | str, fields: dict[str, Any]) -> WSGIHandler:
    """The WSGI application whose views are REST framework's."""
    return _make(WSGIHandler, REST_MIDDLEWARE, backend, fields)


def make_asgi(backend: Backend | str, fields: dict[str, Any]) -> ASGIHandler:
    """The ASGI application."""
    return _make(ASGIHandler, MIDDLEWARE, backend, fields)


def _make(handler: Any, middleware: list[str], backend: Backend | str, fields: dict[str, Any]) -> Any:
    set_up()
    options = {f"IDEMPOTENCY_{name.upper()}": value for name, value in fields.items()}
    with override_settings(MIDDLEWARE=middleware, IDEMPOTENCY_BACKEND=backend, **options):
        return handler()


@sync_and_async_middleware
def find_views_here(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Set the request's URLconf to this module, sync or async like the chain. Trusts the ``X-User`` header."""
    if asyncio.iscoroutinefunction(get_response):

        async def awaited(request: HttpRequest) -> Any:
            _prepare(request, AsyncUrls)
            return await get_response(request)

        return awaited

    def blocking(request: HttpRequest) -> Any:
        _prepare(request, BlockingUrls)
        return get_response(request)

    return blocking


def find_rest_views(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Set the request's URLconf to the views of ``rest_framework_app``."""
    from tests.http.apps.rest_framework_app import Urls

    def middleware(request: HttpRequest) -> Any:
        _prepare(request, Urls)
        return get_response(request)

    return middleware


def _prepare(request: HttpRequest, urls: Any) -> None:
    request.urlconf = urls
    name = request.headers.get("x-user")
    if name:
        become_user(request, name)


def become_user(request: Any, name: str) -> None:
    """Set a user on a request of Django or of REST framework."""
    request.user = SimpleNamespace(is_authenticated=True, pk=name)


def log_in(request: HttpRequest, name: str) -> HttpResponse:
    """Log in by an entry of the session, not as a user of Django."""
    request.session["user_id"] = name
    return HttpResponse(name)


async def _log_in_awaited(request: HttpRequest, name: str) -> HttpResponse:
    return log_in(request, name)


def _call(request: HttpRequest) -> Call:
    query = request.META["QUERY_STRING"]
    become = partial(become_user, request)
    return call_of(str(request.method), request.path, query, request.body, request.headers["x-script"], become)


def _respond(reply: Reply, stream: Callable[[Any], Any]) -> HttpResponseBase:
    response: HttpResponseBase
    if isinstance(reply.body, bytes):
        response = HttpResponse(reply.body, status=reply.status)
    else:
        response = StreamingHttpResponse(stream(reply.body), status=reply.status)
    del response["content-type"]
    for name, value in reply.headers:
        response[name] = value
    if isinstance(reply.body, bytes) and reply.status not in (204, 304):
        response["content-length"] = str(len(reply.body))
    return response


def _blocking(request: HttpRequest, rest: str) -> HttpResponseBase:
    return _respond(perform(_call(request)), chunks)


async def _awaited(request: HttpRequest, rest: str) -> HttpResponseBase:
    return _respond(await perform_async(_call(request)), achunks)


async def _awaited_required(request: HttpRequest, rest: str) -> HttpResponseBase:
    return await _awaited(request, rest)


async def _awaited_exempt(request: HttpRequest, rest: str) -> HttpResponseBase:
    return await _awaited(request, rest)


def _blocking_in_async(request: HttpRequest, rest: str) -> HttpResponseBase:
    return _respond(perform(_call(request)), achunks)


def _blocking_required(request: HttpRequest, rest: str) -> HttpResponseBase:
    return _blocking(request, rest)


def _blocking_exempt(request: HttpRequest, rest: str) -> HttpResponseBase:
    return _blocking(request, rest)


class AsyncUrls:
    """The views of the ASGI application."""

    urlpatterns = [
        path("sync/<path:rest>", _blocking_in_async),
        path("required/<path:rest>", idempotent(required=True)(_awaited_required)),
        path("exempt/<path:rest>", exempt(_awaited_exempt)),
        path("login/<str:name>", _log_in_awaited),
        path("<path:rest>", _awaited),
    ]


class BlockingUrls:
    """The views of the WSGI application."""

    urlpatterns = [
        path("required/<path:rest>", idempotent(required=True)(_blocking_required)),
        path("exempt/<path:rest>", exempt(_blocking_exempt)),
        path("login/<str:name>", log_in),
        path("<path:rest>", _blocking),
    ]
