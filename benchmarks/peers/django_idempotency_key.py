"""django-idempotency-key's middleware for views that opt in, and such a view."""

from __future__ import annotations

from typing import Any

from benchmarks.apps.django_project import make_wsgi, set_for_peer
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed

NAME = "django-idempotency-key"
STYLE: Style = "wsgi"
FRAMEWORK = "django_wsgi"
BACKENDS: tuple[BackendName, ...] = ("memory", "redis")
ROWS: tuple[Kind, ...] = ("no-key", "new-key", "replay")
LACKS = (
    "its lock guards the look-up alone: duplicates in flight all run",
    "one lock for all keys, over the network with Redis",
    "pickles whole responses (Redis); nothing expires or is bounded (memory)",
    "a replay has status 409, unless configured otherwise, as it is here",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("idempotency_key")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    found: dict[str, Any] = {"CONFLICT_STATUS_CODE": None, **documented}
    if backend == "redis":
        set_for_peer("CACHES", {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}})
        found["STORAGE"] = {"CLASS": "idempotency_key.storage.CacheKeyStorage", "CACHE_NAME": "default"}
        found["LOCK"] = {"CLASS": "idempotency_key.locks.redis.MultiProcessRedisLock", "LOCATION": url}
    set_for_peer("IDEMPOTENCY_KEY", found)
    middleware = "idempotency_key.middleware.ExemptIdempotencyKeyMiddleware"
    return make_wsgi([middleware], "benchmarks.peers.views.django_idempotency_key", IDEMPOTENCY_KEY=found)
