"""The Django project of the proof, in a separate process, which configures its settings."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests import mariadb_server
from tests.proof.traps import AFTER_CLAIM, AFTER_COMMIT, BEFORE_COMMIT, IN_TRANSACTION, Trap

if TYPE_CHECKING:
    from tests.proof.forms import Setting


def _configure(setting: Setting, atomic_requests: bool) -> None:
    import django
    from django.conf import settings

    where = urlsplit(setting.database)
    if where.scheme == "mysql":
        mariadb_server.for_django()
    database = {
        "ENGINE": f"django.db.backends.{where.scheme}",
        "NAME": where.path[1:],
        "USER": where.username,
        "PASSWORD": where.password or "",
        "HOST": where.hostname,
        "PORT": str(where.port),
        "ATOMIC_REQUESTS": atomic_requests,
    }
    settings.configure(
        SECRET_KEY="for tests only",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["open_idempotency.django.IdempotencyMiddleware"],
        DATABASES={"default": database},
        # it writes a line for each 409
        LOGGING={"version": 1, "disable_existing_loggers": False, "loggers": {"django": {"level": "CRITICAL"}}},
        **{f"IDEMPOTENCY_{name.upper()}": value for name, value in setting.options.items()},
    )
    django.setup()


def make_application(setting: Setting, atomic_requests: bool) -> Any:
    """The WSGI application of this process."""
    _configure(setting, atomic_requests)
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    urlpatterns[:] = [path("", _view_of(setting.trap))]
    return get_wsgi_application()


def _view_of(trap: Trap) -> Any:
    from django.db import connection, transaction
    from django.http import HttpRequest, HttpResponse

    from open_idempotency.django import idempotent

    class Response(HttpResponse):
        """A response that is rendered between the row and the ledger's response, as a template response is."""

        is_rendered = False

        def render(self) -> Response:
            trap.at(IN_TRANSACTION)
            return self

    @idempotent(atomic=True)
    def order(request: HttpRequest) -> HttpResponse:
        number = secrets.token_hex(8)
        key = request.headers["Idempotency-Key"]
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders (name, number) VALUES (%s, %s)", (key, number))
        transaction.on_commit(lambda: trap.at(AFTER_COMMIT))
        return Response(json.dumps({"order": number}), status=201, content_type="application/json")

    def stop_behind_the_response(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if "SET response" in sql:  # the last thing that is written
            trap.at(BEFORE_COMMIT)
        return result

    def view(request: HttpRequest) -> HttpResponse:
        # Within the transaction where ATOMIC_REQUESTS is on; else before the one that atomic=True makes.
        trap.at(AFTER_CLAIM)
        with connection.execute_wrapper(stop_behind_the_response):
            response: HttpResponse = order(request)
        return response

    return view


urlpatterns: list[Any] = []
