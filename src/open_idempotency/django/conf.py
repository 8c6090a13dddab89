"""The settings: ``IDEMPOTENCY_BACKEND``, ``IDEMPOTENCY_POLICY``, and one for each field of ``IdempotencyPolicy``.

They are read by ``read_settings``, so importing this module needs no configured settings.
"""

from __future__ import annotations

import difflib
from typing import Any

from django.conf import settings

from open_idempotency._engine.engine import Engine
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import FIELD_NAMES

PREFIX = "IDEMPOTENCY_"
_OTHERS = frozenset({"backend", "policy"})


def read_settings() -> dict[str, Any]:
    """The values of all ``IDEMPOTENCY_...`` settings by lower-case name; raises ``ConfigurationError``."""
    found: dict[str, Any] = {}
    for setting in sorted(name for name in dir(settings) if name.startswith(PREFIX)):
        name = setting.removeprefix(PREFIX).lower()
        if name not in FIELD_NAMES and name not in _OTHERS:
            raise ConfigurationError(f"{setting}: no such setting; {_hint(name)}")
        found[name] = getattr(settings, setting)
    return found


def make_engine(*, threads: bool) -> Engine:
    """The engine that the settings describe. ``threads``: coroutines reach the backend through threads.

    Raises ``ConfigurationError``, which names the setting.
    """
    fields = read_settings()
    try:
        return Engine(fields.pop("backend", None), fields.pop("policy", None), fields, threads=threads)
    except ConfigurationError as error:
        raise type(error)(_as_setting(str(error))) from error


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, FIELD_NAMES | _OTHERS, n=1)
    if near:
        return f"did you mean {PREFIX}{near[0].upper()}?"
    return "known: " + ", ".join(sorted(PREFIX + field.upper() for field in FIELD_NAMES | _OTHERS))


def _as_setting(message: str) -> str:
    """The error message with the name of the setting instead of the policy field."""
    name, colon, rest = message.partition(":")
    return f"{PREFIX}{name.upper()}{colon}{rest}" if name in FIELD_NAMES or name in _OTHERS else message
