"""djangorestframework-idempotency-key's middleware and decorator, on a view of Django REST framework.

It documents nothing; this is what its code asks for.
"""

from __future__ import annotations

from typing import Any

from benchmarks.apps.django_project import make_wsgi, set_for_peer, use_database
from benchmarks.interface import App, BackendName, Kind, Style
from benchmarks.peers.loading import installed

NAME = "djangorestframework-idempotency-key"
STYLE: Style = "wsgi"
FRAMEWORK = "django_wsgi"
BACKENDS: tuple[BackendName, ...] = ("sqlite-normal", "sqlite-full")
ROWS: tuple[Kind, ...] = ("new-key", "replay", "duplicate")
LACKS = (
    "views of REST framework only, so its time has theirs in it",
    "stores what the view returns, not the response; headers are not stored",
    "a request without a key is refused by its decorator",
    "keeps the request's body in clear",
    "nothing expires; no caller in the key",
)


def available() -> bool:
    """See ``interface.Peer``."""
    return installed("rest_framework_idempotency_key", "rest_framework", "data_spec_validator")


def make(backend: BackendName, url: str, **documented: Any) -> App:
    """See ``interface.Peer``."""
    use_database(backend, url)
    set_for_peer("IDEMPOTENCY_KEY_LOCK_TIMEOUT", documented.get("lock", 60))
    middleware = "rest_framework_idempotency_key.middleware.IdempotencyKeyMiddleware"
    return make_wsgi([middleware], "benchmarks.peers.views.djangorestframework_idempotency_key")
