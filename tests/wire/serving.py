"""What the server processes serve: the applications of the HTTP suite, picked by the ``X-App`` request header.

``asgi`` and ``wsgi`` are the servers' targets. Everything about a process comes from its environment: ``WIRE_FOLDER``
(records, journals, gates), ``WIRE_NONCE``, ``WIRE_BACKEND``, ``WIRE_WARM`` (the applications that have connections and
threads before a fork), ``WIRE_LIFESPAN`` (the application that gets the lifespan events), ``WIRE_DRAINED`` (whether
``DrainAtShutdown`` is around it all), ``WIRE_SIGTERM`` (after how many seconds a SIGTERM drains) and ``WIRE_BUILT``
(applications that are built before the first request). An application is named ``adapter/variant``, or
``adapter/variant/backend`` for the one at ``WIRE_BACKEND_<BACKEND>``; an adapter of another suite is the dotted name
of what makes it.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any
from uuid import uuid4

from open_idempotency.shutdown import DrainAtShutdown, drain_after_sigterm
from tests.http.behaviours import SCRIPTS, Script
from tests.wire import native
from tests.wire.endpoints import ENDPOINTS
from tests.wire.variants import VARIANTS

SCRIPTS.update({name: Script(behaviour) for name, behaviour in ENDPOINTS.items()})

# A table of its own: importing the HTTP suite's one would import its client and servers.
_MODULES = {
    "asgi": "tests.http.apps.plain_asgi.make",
    "fastapi": "tests.http.apps.fastapi_app.make",
    "django-asgi": "tests.http.apps.django_app.make_asgi",
    "wsgi": "tests.http.apps.plain_wsgi.make",
    "flask": "tests.http.apps.flask_app.make",
    "django-wsgi": "tests.http.apps.django_app.make_wsgi",
}
_apps: dict[str, Any] = {}
_building = threading.Lock()


def _app(name: str) -> Any:
    """The application of this name, built when it is first asked for."""
    with _building:
        if name not in _apps:
            adapter, variant, *backends = name.split("/")
            fields = dict(VARIANTS[variant])
            variables = [f"WIRE_BACKEND_{backend.upper()}" for backend in backends] or ["WIRE_BACKEND"]
            backend = os.environ.get(variables[0]) or f"sqlite:///{os.environ['WIRE_FOLDER']}/records.db"
            backend += ("&" if "?" in backend else "?") + fields.pop("options", "timeout=2")
            _apps[name] = maker_of(adapter)(backend, fields)
        return _apps[name]


def maker_of(adapter: str) -> Callable[[Any, dict[str, Any]], Any]:
    """The function that makes an adapter's application from a backend (or its URL) and the policy's fields."""
    if adapter in native.MAKERS:
        return native.MAKERS[adapter]
    module, _, function = _MODULES.get(adapter, adapter).rpartition(".")
    maker: Callable[[Any, dict[str, Any]], Any] = getattr(import_module(module), function)
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
    await receive()
    _drain_after_sigterm()  # after the server has installed its own handler
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def _drain_after_sigterm() -> None:
    if "WIRE_SIGTERM" in os.environ:
        drain_after_sigterm(float(os.environ["WIRE_SIGTERM"]))


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI servers' target."""
    if "HTTP_X_APP" in environ:
        response: Iterable[bytes] = _app(environ["HTTP_X_APP"])(environ, start_response)
        return response
    body = _said()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _warm(name: str) -> None:
    """Serve a request in this process, so that it has connections and a heartbeat thread."""
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


if "WIRE_DRAINED" in os.environ:
    asgi = DrainAtShutdown(asgi)
if "waitress" in sys.modules:  # it has neither signal handlers nor start hooks
    _drain_after_sigterm()
for _name in os.environ.get("WIRE_BUILT", "").split():
    _app(_name)
for _name in os.environ.get("WIRE_WARM", "").split():
    _warm(_name)
