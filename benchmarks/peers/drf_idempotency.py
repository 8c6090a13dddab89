"""drf-idempotency's middleware, around a Django view."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.django_project import make_wsgi, set_for_peer, use_database
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed

NAME = "drf-idempotency"
STYLE: Style = "wsgi"
FRAMEWORK = "django_wsgi"
BACKENDS: tuple[BackendName, ...] = ("sqlite-normal", "sqlite-full", "redis")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")
LACKS = (
    "no token: a stale owner overwrites",
    "the lock ends after 30 s, also of a view that runs",
    "no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("drf_idempotency", "rest_framework")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    found: dict[str, Any] = {"BACKEND": "drf_idempotency.backends.database.DatabaseBackend"}
    if backend == "redis":
        found = {"BACKEND": "drf_idempotency.backends.redis.RedisBackend", "BACKEND_OPTIONS": {"url": url}}
    else:
        use_database(backend, url)
    set_for_peer("IDEMPOTENCY", {**found, **documented})
    return make_wsgi(["drf_idempotency.middleware.IdempotencyMiddleware"])
