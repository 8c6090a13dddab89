"""Who is compared, on which backend and with which documented options; a row of data for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.comparison.options import LOCK, LONG_LOCK
from benchmarks.interface import BackendName, Style


class Option(NamedTuple):
    """A documented option. ``label``: as the table has it; ``function``: in ``options``, returns what ``make`` takes.

    ``lock``: the seconds that it gives to the lock of a key. A scenario that has such an option is run with it only;
    with another option it is run without it first.
    """

    label: str
    function: str
    lock: int = 0

    @property
    def path(self) -> str:
        """For the server process."""
        return f"benchmarks.comparison.options:{self.function}"


@dataclass(frozen=True)
class Subject:
    """An application that is protected by one package.

    ``make``: ``module:function``, which takes a backend's name, its URL and documented options. ``options``: by the
    name of the scenario; ``always``: for all scenarios. ``not_applicable``: by the name of the scenario, why.
    """

    package: str
    framework: str
    make: str
    style: Style
    backend: BackendName
    always: Option | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    not_applicable: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The first cell of its rows."""
        return f"{self.package}, {self.framework}"


def _peer(
    package: str,
    framework: str,
    module: str,
    style: Style,
    backend: BackendName,
    options: Mapping[str, Option] | None = None,
    always: Option | None = None,
    not_applicable: Mapping[str, str] | None = None,
) -> Subject:
    make = f"benchmarks.peers.{module}:make"
    return Subject(package, framework, make, style, backend, always, options or {}, not_applicable or {})


_OURS = {"slow": Option(f"`lease={LOCK}`", "ours_lock", LOCK)}
_IDEMKIT = {
    "callers": Option("`scope=`", "idemkit_scope"),
    "slow": Option(f"`lease_ttl_seconds={LOCK}`", "idemkit_lock", LOCK),
}
_RETURNED = {"streamed": "it stores what a view returns, a dict"}

SUBJECTS: tuple[Subject, ...] = (
    Subject("open-idempotency", "FastAPI", "benchmarks.comparison.ours:fastapi", "asgi", "redis", options=_OURS),
    Subject("open-idempotency", "Flask", "benchmarks.comparison.ours:flask", "wsgi", "redis", options=_OURS),
    Subject("open-idempotency", "Django", "benchmarks.comparison.ours:django", "wsgi", "redis", options=_OURS),
    _peer("idemkit", "FastAPI", "idemkit", "asgi", "redis", _IDEMKIT),
    _peer("idemkit", "Flask", "idemkit_flask", "wsgi", "redis", _IDEMKIT),
    _peer("idemkit", "Django", "idemkit_django", "wsgi", "redis", _IDEMKIT),
    _peer(
        "fastapi-idempotency", "FastAPI", "fastapi_idempotency", "asgi", "memory",
        options={
            "callers": Option("`scope=`", "fastapi_idempotency_scope"),
            "slow": Option(f"`lease_seconds={LOCK}`", "fastapi_idempotency_lock", LOCK),
        },
    ),
    _peer(
        "asgi-idempotency-header", "FastAPI", "asgi_idempotency_header", "asgi", "redis",
        options={
            "keys": Option("`enforce_uuid4_formatting=True`", "asgi_idempotency_header_uuid"),
        },
    ),
    _peer("fastapi-idempotency-key", "FastAPI", "fastapi_idempotency_key", "asgi", "sqlite-full"),
    _peer("fastapi-idempotency-key", "FastAPI", "fastapi_idempotency_key", "asgi", "redis"),
    _peer(
        "fastidempotent", "FastAPI", "fastidempotent", "asgi", "redis",
        options={
            "slow": Option(f"`lock_timeout={LOCK}`", "fastidempotent_lock", LOCK),
            "callers": Option("`fingerprint_headers=`", "fastidempotent_callers"),
            "nokey": Option("`optional=False`, its default", "fastidempotent_required"),
        },
        always=Option("", "fastidempotent_methods"),
    ),
    _peer(
        "mobius-idempotence-library", "FastAPI", "mobius_idempotence", "asgi", "redis",
        options={
            "slow": Option(f"`lock_ttl={LOCK}`", "mobius_lock", LOCK),
            "down": Option("`fail_open=True`, its default", "mobius_open"),
        },
        not_applicable=_RETURNED,
    ),
    _peer(
        "pyidempotent", "FastAPI", "pyidempotent", "asgi", "redis",
        always=Option("", "pyidempotent_arguments"),
        not_applicable=_RETURNED,
    ),
    _peer("idempot", "FastAPI", "idempot_fastapi", "asgi", "redis"),
    _peer("ichido", "FastAPI", "ichido", "asgi", "redis"),
    _peer("idempot", "Flask", "idempot_flask", "wsgi", "memory"),
    _peer("flask-once", "Flask", "flask_once", "wsgi", "memory"),
    _peer(
        "django-idempotency-key", "Django", "django_idempotency_key", "wsgi", "redis",
        options={
            "replay": Option("`CONFLICT_STATUS_CODE` 409, its default", "django_idempotency_key_conflict"),
        },
    ),
    _peer(
        "drf-idempotency", "Django", "drf_idempotency", "wsgi", "redis",
        options={
            "slow": Option(f"`LOCK_TTL_SECONDS` {LOCK}", "drf_idempotency_lock", LOCK),
        },
    ),
    _peer("drf-idempotencykey", "Django REST framework", "drf_idempotencykey", "wsgi", "postgres"),
    _peer(
        "djangorestframework-idempotency-key", "Django REST framework", "djangorestframework_idempotency_key", "wsgi",
        "postgres",
        options={
            "slow": Option(f"`IDEMPOTENCY_KEY_LOCK_TIMEOUT` {LOCK}", "djangorestframework_lock", LOCK),
            "crash": Option(f"`IDEMPOTENCY_KEY_LOCK_TIMEOUT` {LONG_LOCK}", "djangorestframework_long_lock", LONG_LOCK),
        },
        not_applicable=_RETURNED,
    ),
)  # fmt: skip
