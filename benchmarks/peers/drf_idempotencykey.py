"""drf-idempotencykey's mixin, on a view of Django REST framework."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.django_project import make_wsgi, use_database
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed, load

NAME = "drf-idempotencykey"
STYLE: Style = "wsgi"
FRAMEWORK = "django_wsgi"
BACKENDS: tuple[BackendName, ...] = ("sqlite-normal", "sqlite-full")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
LACKS = (
    "views of REST framework and verified users only, so its time has theirs in it",
    "no lease: a request that dies holds its key for an hour",
    "text responses of status 2xx only",
    "keeps the request's body in clear",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("drf_idempotencykey", "rest_framework")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    use_database(backend, url)
    users = load("django.contrib.auth.models").User.objects
    for number, name in enumerate(("anna", "bert"), 1):
        users.get_or_create(pk=number, username=name)
    return make_wsgi([], "benchmarks.peers.views.drf_idempotencykey")
