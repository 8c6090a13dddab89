"""Documented options of this package and of the peers that would change a scenario's result.

Each function returns the options for ``make``. If a scenario's handler has to outlast a peer's lock, and the peer has
an option for it, its lock lasts ``LOCK`` seconds.
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers.loading import load

#: seconds: longer than this package's timeout of a call to the backend, and than a machine with much to do pauses
LOCK = 6
#: for a lock that has no default
LONG_LOCK = 60


def ours_lock() -> dict[str, Any]:
    """``lease=``."""
    return {"lease": LOCK}


def idemkit_lock() -> dict[str, Any]:
    """``lease_ttl_seconds=``."""
    return {"config": load("idemkit").HttpConfig(lease_ttl_seconds=LOCK)}


def idemkit_scope() -> dict[str, Any]:
    """``scope=``, which its README asks for in production."""
    return {"config": load("idemkit").HttpConfig(scope=lambda request: request.headers.get("authorization", "nobody"))}


def fastapi_idempotency_lock() -> dict[str, Any]:
    """``lease_seconds=`` and ``heartbeat_seconds=``, by the proportion of their defaults."""
    return {"lease_seconds": LOCK, "heartbeat_seconds": LOCK / 3}


def fastapi_idempotency_scope() -> dict[str, Any]:
    """``scope=``, which its README asks for where users log in."""
    return {"scope": lambda request: request.headers.get("authorization", "nobody")}


def asgi_idempotency_header_uuid() -> dict[str, Any]:
    """``enforce_uuid4_formatting=``."""
    return {"enforce_uuid4_formatting": True}


def fastidempotent_methods() -> dict[str, Any]:
    """``methods=`` as in the middleware example of its README; a key is optional."""
    return {"methods": ["POST", "PUT", "PATCH"]}


def fastidempotent_required() -> dict[str, Any]:
    """Its default: a key is required."""
    return {**fastidempotent_methods(), "optional": False}


def fastidempotent_callers() -> dict[str, Any]:
    """``fingerprint_headers=``, which its documentation names for keys by user."""
    config = load("fastidempotent").IdempotencyConfig(fingerprint_headers=["Authorization"])
    return {**fastidempotent_methods(), "config": config}


def fastidempotent_lock() -> dict[str, Any]:
    """``lock_timeout=``."""
    return {**fastidempotent_methods(), "config": load("fastidempotent").IdempotencyConfig(lock_timeout=LOCK)}


def mobius_lock() -> dict[str, Any]:
    """``lock_ttl=``."""
    return {"lock_ttl": LOCK}


def mobius_open() -> dict[str, Any]:
    """``fail_open=True``, its default; its quick start sets False."""
    return {"fail_open": True}


def pyidempotent_arguments() -> dict[str, Any]:
    """A view that takes the order as an argument, since arguments are what it compares."""
    return {"view": load("benchmarks.peers.returned").charge_order}


def django_idempotency_key_conflict() -> dict[str, Any]:
    """``CONFLICT_STATUS_CODE``, as it is by default."""
    return {"CONFLICT_STATUS_CODE": 409}


def drf_idempotency_lock() -> dict[str, Any]:
    """``LOCK_TTL_SECONDS``."""
    return {"LOCK_TTL_SECONDS": LOCK}


def djangorestframework_long_lock() -> dict[str, Any]:
    """``IDEMPOTENCY_KEY_LOCK_TIMEOUT``, which has no default."""
    return {"lock": LONG_LOCK}


def djangorestframework_lock() -> dict[str, Any]:
    """``IDEMPOTENCY_KEY_LOCK_TIMEOUT``."""
    return {"lock": LOCK}
