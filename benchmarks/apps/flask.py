"""The endpoint in Flask; layer and floor wrap ``app.wsgi_app``, and this package is the documented extension."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, request

from benchmarks.interface import HELD, HOLD, METHODS, OTHER_PATH, PATH, STATUS, App, Reply, Style, body_of
from open_idempotency.flask import Idempotency

STYLE: Style = "wsgi"
WSGIApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Layer:
    """The least that a WSGI middleware can do."""

    def __init__(self, app: WSGIApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return self.app(environ, start_response)


def for_flask(reply: Reply) -> Response:
    """A script's reply."""
    body = iter(reply.parts) if reply.streamed else b"".join(reply.parts)
    return Response(body, reply.status, reply.headers)


def charge() -> Response:
    """Read the order, respond with as many bytes."""
    body = request.get_data()
    if HOLD in request.headers:
        reply = HELD.wait()
        if reply is not None:
            return for_flask(reply)
    return Response(body_of(len(body)), STATUS, content_type="application/json")


def add_endpoint(app: Flask, view: Callable[..., Any]) -> None:
    """Make ``view`` the endpoint."""
    for path in (PATH, OTHER_PATH):
        app.add_url_rule(path, view_func=view, methods=METHODS)


def bare() -> App:
    """The application alone."""
    app = Flask("benchmarks")
    add_endpoint(app, charge)
    return app


def layer() -> App:
    """Behind a middleware that does nothing."""
    return within(Layer)


def ours(backend_url: str, **documented: Any) -> App:
    """Protected by the extension."""
    app = bare()
    Idempotency(app, backend=backend_url, **documented)
    return app


def within(middleware: Callable[[WSGIApp], WSGIApp]) -> App:
    """The application with ``middleware`` where Flask's documentation puts one."""
    app = bare()
    app.wsgi_app = middleware(app.wsgi_app)
    return app
