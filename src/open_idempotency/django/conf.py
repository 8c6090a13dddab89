"""The settings ``IDEMPOTENCY_*``, and the ``django://`` backend that they name.

There are ``IDEMPOTENCY_BACKEND``, ``_POLICY``, ``_RULES``, and one for each field of ``IdempotencyPolicy``. They are
read by ``read_settings``, so importing this module needs no configured settings. ``opened`` is for code that manages
records: admin pages, checks, commands.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.conf import settings
from django.core.signals import setting_changed
from django.db import connections
from django.utils.module_loading import import_string

from open_idempotency._engine.engine import Engine
from open_idempotency._routes.coverage import Coverages, PathRules
from open_idempotency.backend import Backend
from open_idempotency.backends.django_orm import AsyncDjangoBackend, DjangoBackend
from open_idempotency.backends.registry import Given, open_backend, refuse_new_file
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import FIELD_NAMES, IdempotencyPolicy, make_policy

PREFIX = "IDEMPOTENCY_"
_OTHERS = frozenset({"backend", "policy", "rules"})
#: settings whose values are functions or other objects; a string may be the dotted path of one
_OBJECTS = frozenset(
    {
        "encryption",
        "fingerprint",
        "key",
        "ledger",
        "on_event",
        "on_replay",
        "policy",
        "redact",
        "render_problem",
        "scope",
        "store",
        "validate",
    }
)
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def read_settings() -> dict[str, Any]:
    """The values of all ``IDEMPOTENCY_...`` settings by lower-case name, with dotted paths imported.

    Raises ``ConfigurationError``, which names the setting.
    """
    found: dict[str, Any] = {}
    for setting in sorted(name for name in dir(settings) if name.startswith(PREFIX)):
        name = setting.removeprefix(PREFIX).lower()
        if name not in FIELD_NAMES and name not in _OTHERS:
            raise ConfigurationError(f"{setting}: no such setting; {_hint(name)}")
        value = getattr(settings, setting)
        if name == "key" and isinstance(value, Mapping):
            _check_neighbour(setting)
            continue
        found[name] = _read_rules(setting, value) if name == "rules" else _imported(setting, name, value)
    return found


def _check_neighbour(setting: str) -> None:
    """Raise ``ConfigurationError`` for the dictionary of django-idempotency-key, unless its middleware is there."""
    if not any(str(path).startswith("idempotency_key.") for path in settings.MIDDLEWARE):
        raise ConfigurationError(
            f"{setting}: a dictionary is the setting of django-idempotency-key, whose middleware is not in MIDDLEWARE; "
            "remove the setting, or give a callable that returns a request's key"
        )


def _read_rules(setting: str, value: object) -> object:
    """The rules by path, with dotted paths imported. Anything but a dictionary is returned as it is."""
    if not isinstance(value, Mapping):
        return value
    return {path: _read_rule(f"{setting}[{path!r}]", rule) for path, rule in value.items()}


def _read_rule(setting: str, rule: object) -> object:
    if isinstance(rule, Mapping):
        return {name: _imported(f"{setting}[{name!r}]", name, value) for name, value in rule.items()}
    return _import(setting, rule) if isinstance(rule, str) and _DOTTED.fullmatch(rule) else rule


def _imported(setting: str, name: str, value: object) -> object:
    """The object that a dotted path names, if the setting takes objects; else the value itself."""
    if name not in _OBJECTS or not isinstance(value, str) or not _DOTTED.fullmatch(value):
        return value
    if name == "ledger" and value in connections:  # an alias of DATABASES may have a dot in it
        return value
    return _import(setting, value)


def _import(setting: str, path: str) -> object:
    try:
        return import_string(path)
    except ImportError as error:
        raise ConfigurationError(
            f"{setting}: {path!r} cannot be imported ({error}); give the dotted path of a function or object at the "
            "top level of a module, or the object itself"
        ) from error


def configured_policy() -> IdempotencyPolicy:
    """The policy of the settings, without the rules of views. Raises ``ConfigurationError`` that names the setting."""
    fields = read_settings()
    given = fields.pop("policy", None)
    for name in ("backend", "rules"):
        fields.pop(name, None)
    try:
        return make_policy(given, fields)
    except ConfigurationError as error:
        raise type(error)(_as_setting(str(error))) from error


# Each handler and each test client makes a new middleware. They share the records in memory.
_in_memory: dict[str, Backend] = {}


def _forget_memory(*, setting: str, **kwargs: Any) -> None:
    """Empty the memory when a test overrides the backend setting, and when the override ends."""
    if setting == f"{PREFIX}BACKEND":
        _in_memory.clear()


setting_changed.connect(_forget_memory, dispatch_uid="open_idempotency.memory")


def _named_backend(named: Any) -> Any:
    """The backend of the settings; a ``memory://`` URL is the same backend for every middleware of this process."""
    if not isinstance(named, str) or not named.lower().startswith("memory://"):
        return named
    if named not in _in_memory:
        _in_memory.setdefault(named, open_backend(named))
    return _in_memory[named]


class Configured(NamedTuple):
    """What the settings describe. ``paths``: the rules by path; None without any."""

    engine: Engine
    coverages: Coverages
    paths: PathRules | None


def configure(*, threads: bool) -> Configured:
    """Read the settings, and check them. ``threads``: coroutines reach the backend through threads.

    Raises ``ConfigurationError``, which names the setting.
    """
    fields = read_settings()
    said = fields.pop("rules", None)
    try:
        backend = _named_backend(fields.pop("backend", None))
        engine = Engine(backend, fields.pop("policy", None), fields, threads=threads)
        coverages = Coverages(engine)
        return Configured(engine, coverages, None if said is None or said == {} else PathRules(said, coverages))
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
    head, bracket, key = name.partition("[")
    known = head in FIELD_NAMES or head in _OTHERS
    return f"{PREFIX}{head.upper()}{bracket}{key}{colon}{rest}" if known else message


# The backend of the settings

SCHEME = "django://"


@contextmanager
def opened() -> Generator[DjangoBackend | None, None, None]:
    """The backend of the settings, if it is ``django://``; else None.

    It is closed afterwards, unless the setting is a ready object. Raises ``ConfigurationError``.
    """
    named: Any = getattr(settings, "IDEMPOTENCY_BACKEND", None)
    if isinstance(named, DjangoBackend | AsyncDjangoBackend):
        found = open_backend(named)
        yield found if isinstance(found, DjangoBackend) else None
    elif isinstance(named, str) and named.lower().startswith(SCHEME):
        backend = DjangoBackend.from_url(named)
        try:
            yield backend
        finally:
            backend.close()
    else:
        yield None


@contextmanager
def opened_any() -> Generator[Backend, None, None]:
    """The backend of the settings, of any kind. It is closed afterwards, unless the setting is a ready object.

    A missing database file is not created. Raises ``ConfigurationError``.
    """
    named: Given | None = read_settings().get("backend")
    if named is None:
        raise ConfigurationError("IDEMPOTENCY_BACKEND: none given")
    backend = open_backend(_named_backend(named))
    try:
        refuse_new_file(backend.file)
        yield backend
    finally:
        if isinstance(named, str) and not is_in_memory():
            backend.close()


def is_in_memory() -> bool:
    """Whether the settings name a ``memory://`` URL, whose records exist only in this process."""
    named: Any = getattr(settings, "IDEMPOTENCY_BACKEND", None)
    return isinstance(named, str) and named.lower().startswith("memory://")
