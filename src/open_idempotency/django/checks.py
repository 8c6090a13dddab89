"""System checks of the settings, the middleware's position and the database, reported at start."""

from __future__ import annotations

import contextvars
import dis
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

from asgiref.local import Local
from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.module_loading import import_string

from open_idempotency._routes.survey import kind_of
from open_idempotency.backends.django_orm.connections import lives_in_one_connection
from open_idempotency.django import conf
from open_idempotency.django.conf import configure
from open_idempotency.django.middleware import IdempotencyMiddleware
from open_idempotency.django.rule_checks import check_rules
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy

_IN_MEMORY = "mode=memory"


def check_database(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E004: no migration reaches the database. W004, W005: SQLite in memory, or SQLite with ATOMIC_REQUESTS."""
    try:
        with conf.opened() as backend:
            alias = None if backend is None else backend.alias
    except ConfigurationError:
        return []  # E001
    return [] if alias is None else list(_check(alias))


def _check(alias: str) -> Iterator[CheckMessage]:
    if not router.allow_migrate(alias, "open_idempotency", model_name="record"):
        message = f"DATABASE_ROUTERS keep the tables of django://{alias} out of that database."
        hint = f'Let allow_migrate("{alias}", "open_idempotency") be true.'
        yield Error(message, hint=hint, id="open_idempotency.E004")
    settings = connections.settings[alias]
    if connections[alias].vendor != "sqlite":
        return
    name = str(settings["NAME"])
    if lives_in_one_connection(name) or _IN_MEMORY in name:
        yield Warning(
            f"django://{alias} is SQLite in memory, which no other process shares.",
            hint="Give it a file, or use memory:// if there is only one process.",
            id="open_idempotency.W004",
        )
    if settings["ATOMIC_REQUESTS"]:
        yield Warning(
            f"django://{alias} is SQLite with ATOMIC_REQUESTS: while a view's transaction writes, no other "
            "connection can, so neither its stages nor its lease can be recorded.",
            hint=f'Record stages with tx="{alias}", or keep the records in another database.',
            id="open_idempotency.W005",
        )


# Packages with which a request belongs to one tenant. Packages that share users between tenants and only filter what a
# view reads are not listed: they do not change whose request it is.
_PACKAGES = ("django_tenants", "tenant_schemas", "django_pgschemas", "django_multitenant")
_PER_REQUEST = (threading.local, contextvars.ContextVar, Local)
_TENANT = "tenant"


def check_tenants(policy: IdempotencyPolicy) -> Iterator[CheckMessage]:
    """W006: the project has tenants, and under this policy no part of the caller names the tenant."""
    found = [*_packages(), *_routers()]
    if found and not _separates_tenants(policy):
        yield Warning(
            f"{' and '.join(found)}: the project has tenants, and nothing that IdempotencyMiddleware knows of a caller "
            "differs between them. One user of two tenants is one caller, and so are all anonymous callers.",
            hint="Set IDEMPOTENCY_SCOPE to a callable that names tenant and user, or IDEMPOTENCY_SCOPE_BY_HOST = True "
            "if each tenant has a host of its own, or set request.tenant in a middleware.",
            id="open_idempotency.W006",
        )


def _packages() -> Iterator[str]:
    for name in _PACKAGES:
        if apps.is_installed(name):
            yield f"INSTALLED_APPS has {name}"


def _routers() -> Iterator[str]:
    """The routers that choose a database for each request, except for the user model.

    A router that looks only at the model, such as one for replicas, does not separate tenants. If users are routed like
    all other models, the database is part of the caller already.
    """
    for one in router.routers:
        choose = getattr(one, "db_for_write", None)
        if choose is not None and _reads_request_state(choose) and not _users_go_with_the_rest(choose):
            yield f"DATABASE_ROUTERS has {type(one).__module__}.{type(one).__qualname__}"


def _users_go_with_the_rest(choose: Any) -> bool:
    """Whether a router chooses for users as for every other model, outside of any request."""
    try:
        users = get_user_model()
    except ImproperlyConfigured:
        return False  # no user model is installed, so no user has a database
    return {_choice(choose, users)} == {_choice(choose, model) for model in apps.get_models()}


def _choice(choose: Any, model: Any) -> object:
    try:
        return choose(model)
    except Exception as error:  # the project's router may fail outside of a request, where there is no tenant
        return type(error)


def _separates_tenants(policy: IdempotencyPolicy) -> bool:
    return (
        policy.scope is not None
        or policy.scope_by_host
        or hasattr(connections[DEFAULT_DB_ALIAS], "schema_name")
        or any(map(_sets_tenant, settings.MIDDLEWARE))
    )


def _sets_tenant(path: str) -> bool:
    """Whether a middleware sets ``request.tenant``, by its own code and that of its base classes."""
    try:
        found = import_string(path)
    except ImportError:
        return False  # Django reports it when it makes the chain, with a better message
    held = [vars(base).values() for base in found.__mro__] if isinstance(found, type) else [[found]]
    codes = (code for values in held for value in values for code in _codes(value))
    return any(_stores_tenant(code) for code in codes)


def _stores_tenant(code: CodeType) -> bool:
    if "setattr" in code.co_names and _TENANT in code.co_consts:
        return True
    return any(each.opname == "STORE_ATTR" and each.argval == _TENANT for each in dis.get_instructions(code))


def _codes(value: Any) -> Iterator[CodeType]:
    """The code of a function, behind ``staticmethod`` and decorators, and of its inner functions."""
    value = getattr(value, "__func__", value)
    while value is not None:
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            yield from _within(code)
        value = getattr(value, "__wrapped__", None)


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _within(each)


def _reads_request_state(function: Any) -> bool:
    """Whether a function, or one that it calls by name, reads the state of a thread, a task or a request."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, _PER_REQUEST):
            return True
        waiting += _named_in(here)
    return False


def _named_in(function: Any) -> Iterator[Any]:
    """The objects that a function's code names: globals, attributes of modules and of its own object, closures."""
    owner = getattr(function, "__self__", None)
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        return
    names = {name for code in _codes(plain) for name in code.co_names}
    found = [plain.__globals__[name] for name in names & plain.__globals__.keys()]
    yield from found
    yield from (cell.cell_contents for cell in plain.__closure__ or () if cell.cell_contents is not plain)
    for holder in [owner, *(each for each in found if isinstance(each, ModuleType))]:
        if holder is not None:
            yield from (getattr(holder, name) for name in names if hasattr(holder, name))


PATH = "open_idempotency.django.IdempotencyMiddleware"

# If these are listed after IdempotencyMiddleware, their hooks run after the claim: a refused request has taken the key,
# a duplicate is replayed unchecked, and a redirect to the login page is stored as the outcome. Compared by name, since
# Django 4.2 has no LoginRequiredMiddleware.
_REFUSING = (
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
)


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: the settings are wrong. E003, E005, W007 to W009: wrong rules. W006: a caller has no tenant."""
    if not _is_listed():
        return []
    try:
        configured = configure(threads=True)
    except ConfigurationError as error:
        return [Error(str(error), id="open_idempotency.E001")]
    return [*check_rules(configured), *check_tenants(configured.engine.policy)]


def check_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E002, W001 to W003, W011, W013: the middleware is listed twice, in the wrong position, or not at all."""
    listed = [(path, _load(path)) for path in settings.MIDDLEWARE]
    positions = [number for number, (_, found) in enumerate(listed) if _is_ours(found)]
    if not positions:
        hint = (
            f'Add "{PATH}" to MIDDLEWARE. Without it the decorators of this package have no effect. If that is meant, '
            'remove them, and "open_idempotency.django" from INSTALLED_APPS.'
        )
        return [Warning("open_idempotency.django protects nothing.", hint=hint, id="open_idempotency.W002")]
    if len(positions) > 1:
        return [Error("IdempotencyMiddleware is listed more than once in MIDDLEWARE.", id="open_idempotency.E002")]
    position = positions[0]
    behind = listed[position + 1 :]
    return [*_check_outside(listed[:position]), *_check_behind(behind), *_check_cors(behind)]


def check_enabled(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W010, with ``--deploy``: protection is switched off, which only tests need."""
    try:
        off = _is_listed() and not configure(threads=True).engine.policy.enabled
    except ConfigurationError:
        return []  # E001
    if not off:
        return []
    hint = "Keep IDEMPOTENCY_ENABLED = False only in the settings of tests."
    return [Warning("IDEMPOTENCY_ENABLED is False: nothing is protected.", hint=hint, id="open_idempotency.W010")]


def register_all() -> None:
    """Register the checks with Django. Calling it again changes nothing."""
    for check in (check_settings, check_middleware, check_database):
        register(check)
    register(check_enabled, deploy=True)


# Attributes of a first response that a replay lacks: middleware that reads them belongs inside. template_name is not
# among them, since middleware has attributes of this name for its own pages. process_template_response runs only for
# the view's own response, and its effect is stored.
_NOT_IN_REPLAYS = frozenset({"context_data", "resolve_context"})
_FOR_UNRENDERED = "process_template_response"


def _check_outside(outside: Iterable[tuple[str, Any]]) -> Iterator[CheckMessage]:
    for path, found in outside:
        asked = sorted(_asks_for(found))
        if asked:
            yield Warning(
                f"{path} asks for {', '.join('response.' + name for name in asked)}, which a replay does not have: a "
                "record holds status, headers and body. It is listed outside IdempotencyMiddleware, so a retry may get "
                "another response than the first request.",
                hint=f'In MIDDLEWARE, list "{path}" behind "{PATH}".',
                id="open_idempotency.W011",
            )


def _asks_for(found: Any) -> set[str]:
    """The attributes of template responses that a middleware's code names; none for Django's own middleware."""
    if getattr(found, "__module__", "django").partition(".")[0] == "django":
        return set()
    held = [vars(base) for base in found.__mro__[:-1]] if isinstance(found, type) else [{"": found}]
    values = (value for each in held for name, value in each.items() if name != _FOR_UNRENDERED)
    return {name for value in values for code in _codes(value) for name in _named(code)} & _NOT_IN_REPLAYS


def _named(code: CodeType) -> set[str]:
    return {*code.co_names, *(const for const in code.co_consts if isinstance(const, str))}


def _check_behind(behind: Iterable[tuple[str, Any]]) -> Iterator[CheckMessage]:
    for path, found in behind:
        if _is_one_of(found, _REFUSING):
            message = f"{path} refuses requests after IdempotencyMiddleware has claimed them."
            yield Warning(message, hint=_hint(path), id="open_idempotency.W001")
        if isinstance(found, type) and kind_of(found) == "compression":
            message = f"{path} compresses for the first client what IdempotencyMiddleware stores for all clients."
            yield Warning(message, hint=_hint(path), id="open_idempotency.W003")


def _check_cors(behind: Iterable[tuple[str, Any]]) -> Iterator[CheckMessage]:
    """W013: CORS headers are stored with the first response, for its origin alone."""
    for path, found in behind:
        if isinstance(found, type) and kind_of(found) == "cors":
            message = (
                f"{path} sets CORS headers on responses that IdempotencyMiddleware stores. They belong to the first "
                "request's origin, and a replay repeats them, whatever the settings allow by then."
            )
            yield Warning(message, hint=_hint(path), id="open_idempotency.W013")


def _hint(path: str) -> str:
    return f'In MIDDLEWARE, list "{path}" before "{PATH}".'


def _is_listed() -> bool:
    return any(_is_ours(_load(path)) for path in settings.MIDDLEWARE)


def _load(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError:
        return None  # Django reports it when it makes the chain, with a better message


def _is_ours(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, IdempotencyMiddleware)


def _is_one_of(found: Any, paths: Iterable[str]) -> bool:
    """Whether a middleware is one of these classes, or derived from one."""
    mro = found.__mro__ if isinstance(found, type) else ()
    return any(f"{base.__module__}.{base.__qualname__}" in paths for base in mro)
