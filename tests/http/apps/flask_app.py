"""The application in Flask, with one route that requires a key and one that is exempt.

Flask-Login trusts the ``X-User`` header. Users who log in by ``/login/NAME`` are in the session alone.
"""

from __future__ import annotations

from typing import Any

import flask
from flask_login import LoginManager, UserMixin

from open_idempotency.backend import Backend
from open_idempotency.flask import Idempotency, exempt, idempotent
from tests.http.behaviours import call_of, chunks, perform

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def make(backend: Backend | str, fields: dict[str, Any]) -> flask.Flask:
    """The application with its extension."""
    app = flask.Flask("tests.http.apps.flask_app", static_folder=None)
    app.secret_key = "for tests only"
    LoginManager(app).request_loader(_user)
    app.add_url_rule("/required/<path:rest>", "required", idempotent(required=True)(_required), methods=METHODS)
    app.add_url_rule("/exempt/<path:rest>", "exempt", exempt(_exempt), methods=METHODS)
    app.add_url_rule("/login/<name>", "login", _log_in)
    app.add_url_rule("/<path:rest>", "any", _view, methods=METHODS)
    Idempotency(app, backend=backend, **fields)
    return app


class _User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def _user(request: flask.Request) -> _User | None:
    name = request.headers.get("x-user")
    return _User(name) if name else None


def _log_in(name: str) -> str:
    """Log in by an entry of the session that Flask-Login does not read."""
    flask.session["user_id"] = name
    return name


def _become(name: str) -> None:
    flask.g._login_user = _User(name)  # for this request only, as with a request loader


def _view(rest: str) -> flask.Response:
    request = flask.request
    query = request.query_string.decode()
    script = request.headers["x-script"]
    reply = perform(call_of(request.method, request.path, query, request.get_data(), script, _become))
    body = reply.body if isinstance(reply.body, bytes) else chunks(reply.body)
    response = flask.Response(body, reply.status)
    del response.headers["content-type"]
    response.headers.extend(reply.headers)
    return response


def _required(rest: str) -> flask.Response:
    return _view(rest)


def _exempt(rest: str) -> flask.Response:
    return _view(rest)
