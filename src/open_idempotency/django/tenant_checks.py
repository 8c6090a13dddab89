"""A system check of tenants: whether a caller of one tenant is another one in the next (O-16).

The caller includes the database that the user would be written to, the schema of the default connection, and
``request.tenant``. A project may tell its tenants apart in a way that changes none of them.
"""

from __future__ import annotations

import contextvars
import dis
import threading
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from asgiref.local import Local
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.module_loading import import_string

from open_idempotency.policy import IdempotencyPolicy

# Applications under which one request belongs to one tenant. Packages whose users are the same in all tenants, and that
# only filter what a view reads, do not change whose a request is.
_PACKAGES = ("django_tenants", "tenant_schemas", "django_pgschemas", "django_multitenant")
_PER_REQUEST = (threading.local, contextvars.ContextVar, Local)
_TENANT = "tenant"


def check_tenants(policy: IdempotencyPolicy) -> Iterator[CheckMessage]:
    """W006: the project has tenants, and nothing of the caller under this policy says whose tenant's it is."""
    found = [*_packages(), *_routers()]
    if found and not _is_told_apart(policy):
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
    """The routers that choose a database by request, and leave users out of it.

    A router that chooses by the model alone, as one for replicas does, separates nobody. Where users go with the rest,
    their database is part of the caller.
    """
    for one in router.routers:
        choose = getattr(one, "db_for_write", None)
        if choose is not None and _reads_request_state(choose) and not _users_go_with_the_rest(choose):
            yield f"DATABASE_ROUTERS has {type(one).__module__}.{type(one).__qualname__}"


def _users_go_with_the_rest(choose: Any) -> bool:
    """Whether a router says the same of users as of every other model, outside of any request."""
    try:
        users = get_user_model()
    except ImproperlyConfigured:
        return False  # no user model is installed, so no user has a database
    return {_answer(choose, users)} == {_answer(choose, model) for model in apps.get_models()}


def _answer(choose: Any, model: Any) -> object:
    try:
        return choose(model)
    except Exception as error:  # of the project; outside of a request it may well know no tenant
        return type(error)


def _is_told_apart(policy: IdempotencyPolicy) -> bool:
    return (
        policy.scope is not None
        or policy.scope_by_host
        or hasattr(connections[DEFAULT_DB_ALIAS], "schema_name")
        or any(map(_sets_tenant, settings.MIDDLEWARE))
    )


def _sets_tenant(path: str) -> bool:
    """Whether a middleware sets ``request.tenant``, as far as its own code and its base classes' say."""
    try:
        found = import_string(path)
    except ImportError:
        return False  # Django itself says so, and better, when it makes the chain
    held = [vars(base).values() for base in found.__mro__] if isinstance(found, type) else [[found]]
    codes = (code for values in held for value in values for code in _codes(value))
    return any(_stores_tenant(code) for code in codes)


def _stores_tenant(code: CodeType) -> bool:
    if "setattr" in code.co_names and _TENANT in code.co_consts:
        return True
    return any(each.opname == "STORE_ATTR" and each.argval == _TENANT for each in dis.get_instructions(code))


def _codes(value: Any) -> Iterator[CodeType]:
    """The code of a function, behind ``staticmethod`` and decorators, and of those that are written inside of it."""
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
    """Whether a function, or one that it calls by name, reads what belongs to a thread, a task or a request."""
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
    """What a function's code names: globals, what modules and its own object have, and what it encloses."""
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
