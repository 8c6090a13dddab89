"""What the server processes serve: the applications of the HTTP suite, picked by the ``X-App`` request header.

``asgi`` and ``wsgi`` are the servers' targets. Everything about a process comes from its environment: ``WIRE_FOLDER``
(records, journals, gates), ``WIRE_NONCE``, ``WIRE_BACKEND``, ``WIRE_WARM`` (the application that has connections and
threads before a fork) and ``WIRE_LIFESPAN`` (the application that gets the lifespan events).
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any
from uuid import uuid4

from tests.http.behaviours import SCRIPTS, Script
from tests.wire import native
from tests.wire.endpoints import ENDPOINTS
from tests.wire.variants import VARIANTS

SCRIPTS.update({name: Script(behaviour) for name, behaviour in ENDPOINTS.items()})

# Named here anew: the HTTP suite's own table comes with its client and its servers.
_MODULES = {
    "asgi": "plain_asgi.make",
    "fastapi": "fastapi_app.make",
    "django-asgi": "django_app.make_asgi",
    "wsgi": "plain_wsgi.make",
    "flask": "flask_app.make",
    "django-wsgi": "django_app.make_wsgi",
}
_apps: dict[str, Any] = {}
_building = threading.Lock()


def _app(name: str) -> Any:
    """The application ``adapter/variant``, built when it is first asked for."""
    with _building:
        if name not in _apps:
            adapter, _, variant = name.partition("/")
            fields = dict(VARIANTS[variant])
            backend = os.environ.get("WIRE_BACKEND") or f"sqlite:///{os.environ['WIRE_FOLDER']}/records.db"
            backend += ("&" if "?" in backend else "?") + fields.pop("options", "timeout=2")
            _apps[name] = _maker(adapter)(backend, fields)
        return _apps[name]


def _maker(adapter: str) -> Callable[[str, dict[str, Any]], Any]:
    if adapter in native.MAKERS:
        return native.MAKERS[adapter]
    module, _, function = _MODULES[adapter].partition(".")
    maker: Callable[[str, dict[str, Any]], Any] = getattr(import_module(f"tests.http.apps.{module}"), function)
    return maker


def _said() -> bytes:
    return f"{os.environ['WIRE_NONCE']} {os.getpid()}".encode()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI servers' target."""
    if scope["type"] == "lifespan":
        await _live(scope, receive, send)
        return
    name = dict(scope["headers"]).get(b"x-app")
    if name is not None:
        await _app(name.decode())(scope, receive, send)
        return
    body = _said()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def _live(scope: Any, receive: Any, send: Any) -> None:
    if "WIRE_LIFESPAN" in os.environ:
        await _app(os.environ["WIRE_LIFESPAN"])(scope, receive, send)
        return
    for _ in range(2):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI servers' target."""
    if "HTTP_X_APP" in environ:
        answer: Iterable[bytes] = _app(environ["HTTP_X_APP"])(environ, start_response)
        return answer
    body = _said()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _warm(name: str) -> None:
    """Answer a request in this process, so that it has connections and a heartbeat thread."""
    case = uuid4().hex
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/charges",
        "QUERY_STRING": f"case={case}",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "CONTENT_LENGTH": "0",
        "HTTP_X_APP": name,
        "HTTP_X_SCRIPT": "charge",
        "HTTP_IDEMPOTENCY_KEY": case,
    }
    statuses: list[str] = []
    list(wsgi(environ, lambda status, headers: statuses.append(status)))
    assert statuses[0].startswith("201 "), statuses
    assert any(thread.name == "open-idempotency-heartbeat" for thread in threading.enumerate())


if "WIRE_WARM" in os.environ:
    _warm(os.environ["WIRE_WARM"])
