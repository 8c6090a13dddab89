"""One Django project for all rows: its settings are made once, and each row's handler is made under its own
``MIDDLEWARE``. Nothing else is in that list in any row, so what is compared is one middleware.

A row's views are named by the ``urlconf`` of its request class, which costs a request nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.core.management import call_command
from django.core.signals import setting_changed
from django.db import connections
from django.test.utils import override_settings

VIEWS, ASYNC_VIEWS = "benchmarks.apps.django_views", "benchmarks.apps.django_async_views"
#: applications that bring tables, where they are installed
_PEERS = ("rest_framework", "drf_idempotency", "drf_idempotencykey", "rest_framework_idempotency_key")
#: what a peer reads at each request, and our own settings would not know
_FOREIGN = ("IDEMPOTENCY_KEY", "IDEMPOTENCY_KEY_LOCK_TIMEOUT")
_PRAGMAS = {
    "sqlite-normal": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
    "sqlite-full": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
}


def configure() -> None:
    """Make the project, once a process."""
    if settings.configured:
        return
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "open_idempotency.django",
            *(name for name in _PEERS if find_spec(name) is not None),
        ],
        LOGGING_CONFIG=None,
        MIDDLEWARE=[],
        ROOT_URLCONF=VIEWS,
        SECRET_KEY="of the benchmarks",
        USE_TZ=True,
    )
    django.setup()


def make_wsgi(middleware: Sequence[str] = (), urlconf: str = VIEWS, **changes: Any) -> WSGIHandler:
    """A WSGI application with this ``MIDDLEWARE``; ``changes`` are settings that hold while it is made."""
    configure()
    with override_settings(MIDDLEWARE=list(middleware), **changes):
        _hide_foreign(changes)
        handler = WSGIHandler()
    handler.request_class = type("Request", (WSGIRequest,), {"urlconf": urlconf})
    return handler


def make_asgi(middleware: Sequence[str] = (), **changes: Any) -> ASGIHandler:
    """An ASGI application with this ``MIDDLEWARE`` and async views."""
    configure()
    with override_settings(MIDDLEWARE=list(middleware), **changes):
        _hide_foreign(changes)
        handler = get_asgi_application()
    handler.request_class = type("Request", (ASGIRequest,), {"urlconf": ASYNC_VIEWS})
    return handler


def set_for_peer(name: str, value: Any) -> None:
    """Change a setting that a peer, or a library that it uses, reads at each request."""
    configure()
    setattr(settings, name, value)
    setting_changed.send(sender=None, setting=name, value=value, enter=True)


def use_database(backend: str, url: str) -> None:
    """Use this database as the project's own from now on, with its tables made and connections that stay open."""
    configure()
    connections.close_all()
    connections.settings["default"].update({**_database(backend, url), "CONN_MAX_AGE": None})
    del connections["default"]  # it has the settings of the database before
    call_command("migrate", verbosity=0, interactive=False)


def _database(backend: str, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if backend == "postgres":
        server = {"NAME": parts.path[1:], "USER": parts.username, "HOST": parts.hostname, "PORT": parts.port}
        return {"ENGINE": "django.db.backends.postgresql", **server, "OPTIONS": {}}
    options = {"init_command": _PRAGMAS[backend], "transaction_mode": "IMMEDIATE"}
    return {"NAME": f"{unquote(parts.path[1:])}.django", "OPTIONS": options}


def _hide_foreign(changes: Mapping[str, Any]) -> None:
    for name in _FOREIGN:
        if name not in changes and hasattr(settings, name):
            delattr(settings, name)
