"""The policies that the suite runs with, and the capabilities of each adapter. One table each.

A test requires a capability with ``@needs("...")``; adapters without it are deselected when tests are collected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import django
import pytest

from open_idempotency._core.models import Response
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.redaction import redact_json
from tests.http import measured

BACKENDS = ("memory", "sqlite", "redis", "postgres")

#: async: endpoints are coroutines, and blocking ones run in a threadpool. routes: a view, or its router, can require a
#: key or be exempt. duplicates: its responses can have several fields of one name. background: tasks run after the
#: response. users: the application's authentication names the caller. undisturbed: a handler goes on when its client
#: leaves. cancelled: one that is awaited is cancelled then. sessions: a login by ``/login/NAME`` is in the session
#: alone.
CAPABILITIES: Mapping[str, frozenset[str]] = {
    "asgi": frozenset({"async", "duplicates", "background", "undisturbed"}),
    "starlette": frozenset({"async", "routes", "duplicates", "background", "users", "undisturbed", "sessions"}),
    "fastapi": frozenset({"async", "routes", "duplicates", "background", "users", "undisturbed", "sessions"}),
    "wsgi": frozenset({"duplicates", "undisturbed"}),
    "flask": frozenset({"duplicates", "routes", "users", "undisturbed", "sessions"}),
    "django-wsgi": frozenset({"routes", "users", "undisturbed", "sessions"}),
    "django-asgi": frozenset({"async", "routes", "users", "cancelled", "sessions"}),
    "rest-framework": frozenset({"routes", "users", "undisturbed", "sessions"}),
}
if django.VERSION < (5, 0):  # which does not listen for the client's disconnect, and runs every view to its end
    _can = CAPABILITIES["django-asgi"] - {"cancelled"} | {"undisturbed"}
    CAPABILITIES = {**CAPABILITIES, "django-asgi": _can}
#: adapters that are served by uvicorn; the others are served by waitress
ON_UVICORN = frozenset({"asgi", "starlette", "fastapi", "django-asgi"})

#: adapters whose backend "postgres" is version 16; that of the others is 18
ON_POSTGRES_16 = frozenset({"starlette", "flask", "django-wsgi"})
#: with ``OI_TEST_HTTP=full`` all of them run on both, by these names
POSTGRES_VERSIONS = ("postgres16", "postgres18")

LIMIT = 1000
SHORT_LEASE = 0.5
LIVE_KEYS = 2
#: the origin whose pages may read problems
ORIGIN = "https://app.example"


def _uuid(key: str) -> bool:
    return bool(UUID(key))


def _own_rule(response: Response) -> bool | None:
    """A 401 that names the next step is stored, a 429 too, and a 201 is not."""
    if response.status == 401 and b"next" in (response.body or b""):
        return True
    return {201: False, 429: True}.get(response.status)


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "strict": {"profile": "strict"},
    "alias": {"aliases": ("X-Idempotency-Key",)},
    "renamed": {"header": "X-Request-Key"},
    "uuid": {"validate": _uuid},
    "required": {"required": True},
    "puts": {"methods": ("PUT", "POST")},
    "waits": {"wait": 8.0},
    "waits briefly": {"wait": 0.2},
    "waits if asked": {"max_wait": 0.2},
    "waits long if asked": {"max_wait": 8.0},
    "waits in numbers": {"wait": 8.0, "max_waiting": 100},
    "two attempts": {"max_attempts": 2},
    "rejects failed": {"on_failed": "reject"},
    "replays failed": {"on_failed": "replay"},
    "rejects abandoned": {"on_abandoned": "reject"},
    "small": {"max_request_bytes": LIMIT, "max_response_bytes": LIMIT, "spool_bytes": LIMIT // 10},
    "own rule": {"store": _own_rule},
    "json": {"fingerprint": "json"},
    "by route": {"scope_by_route": True},
    "limited": {"max_live_keys": LIVE_KEYS},
    "as stripe": {"compat": "stripe", "required": True},
    "rejects failed as stripe": {"compat": "stripe", "on_failed": "reject"},
    # for one test alone: an engine logs this once, for the first request that gives a reason
    "advised": {},
    # for one test alone: no other request of the application has begun before it
    "unrenewed": {},
    # for one test alone, for the same reason as "advised"
    "advised of cookies": {},
    "anonymous": {"scope": "anonymous"},
    "responds soon": {"respond_within": 0.1},
    "for pages": {
        "problem_headers": {"Access-Control-Allow-Origin": ORIGIN},
        "required": True,
        "max_request_bytes": LIMIT,
    },
    "documented": {"docs_url": "https://example.org/idempotency"},
    "short lease": {"lease": SHORT_LEASE},
    "strict stages": {"strict_stages": True},
    "encrypted": {"encryption": EncryptionKeys({"2026": b"k" * 32})},
    "redacts": {"redact": redact_json("/reserved/card")},
    "measured": {"on_event": measured.LISTENER},
    "unheard": {"on_event": None},
    "unheard, required": {"on_event": None, "required": True},
    "unheard, small": {"on_event": None, "max_request_bytes": LIMIT},
    "down": {},
    "down, open": {"fail_open": True},
}
DOWN = frozenset({"down", "down, open"})


def needs(*capabilities: str) -> pytest.MarkDecorator:
    """Run the test on the adapters with this capability."""
    return pytest.mark.needs(*capabilities)


#: what does not reach the backend, or does not depend on which one it is
on_memory_only = pytest.mark.on_backends("memory")
