"""System checks: what is wrong with the settings and with the middleware's place, told when the project starts.

The place matters less than for other middleware. The claim is made in the view hook, after the request phase of every
middleware, so ``AuthenticationMiddleware`` is heard on either side and is not asked about here. What runs beside the
claim is the other view hooks, in the list's order, and those that refuse requests have to come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.module_loading import import_string

from open_idempotency._engine.engine import Engine
from open_idempotency.django.conf import make_engine
from open_idempotency.django.database_checks import check_database
from open_idempotency.django.middleware import IdempotencyMiddleware
from open_idempotency.django.tenant_checks import check_tenants
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.rules import combine, rules_on

PATH = "open_idempotency.django.IdempotencyMiddleware"

# Listed behind ours their hooks run after the claim: a refused request has taken the key, a duplicate is answered
# without being asked, and a redirect to the login page is stored as the outcome. By name, as Django 4.2 lacks one.
_REFUSING = (
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
)
_METHODS = ("POST", "PATCH", "PUT", "DELETE")
_COMPRESSING = ("django.middleware.gzip.GZipMiddleware",)


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: the settings make no engine. E003: a view's rule contradicts them. W006: a caller has no tenant."""
    if not _is_listed():
        return []
    try:
        engine = make_engine(threads=True)
    except ConfigurationError as error:
        return [Error(str(error), id="open_idempotency.E001")]
    return [*_check_rules(engine), *check_tenants(engine.policy)]


def check_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E002 and W001 to W003: the middleware is listed twice, in the wrong place, or not at all."""
    listed = [(path, _load(path)) for path in settings.MIDDLEWARE]
    places = [number for number, (_, found) in enumerate(listed) if _is_ours(found)]
    if not places:
        hint = f'Add "{PATH}" to MIDDLEWARE, or take the application out of INSTALLED_APPS.'
        return [Warning("open_idempotency.django protects nothing.", hint=hint, id="open_idempotency.W002")]
    if len(places) > 1:
        return [Error("IdempotencyMiddleware is listed more than once in MIDDLEWARE.", id="open_idempotency.E002")]
    return list(_check_behind(listed[places[0] + 1 :]))


CHECKS = (check_settings, check_middleware, check_database)


def _check_behind(behind: Iterable[tuple[str, Any]]) -> Iterator[CheckMessage]:
    for path, found in behind:
        if _is_one_of(found, _REFUSING):
            message = f"{path} refuses requests after IdempotencyMiddleware has claimed them."
            yield Warning(message, hint=_hint(path), id="open_idempotency.W001")
        if _is_one_of(found, _COMPRESSING):
            message = f"{path} compresses for the first client what IdempotencyMiddleware stores for all of them."
            yield Warning(message, hint=_hint(path), id="open_idempotency.W003")


def _hint(path: str) -> str:
    return f'In MIDDLEWARE, list "{path}" before "{PATH}".'


def _check_rules(engine: Engine) -> Iterator[CheckMessage]:
    told: set[str] = set()
    for view in _views(get_resolver().url_patterns) if getattr(settings, "ROOT_URLCONF", None) else ():
        for method in _METHODS:
            try:
                engine.policy_for(combine(rules_on(view, method)))
            except ConfigurationError as error:
                message = f"@idempotent on {_name(view, method)}: {error}"
                if message not in told:
                    told.add(message)
                    yield Error(message, obj=view, id="open_idempotency.E003")


def _name(view: Any, method: str) -> str:
    """The view by its name; of a class the method as well, where it is there."""
    holder = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if holder is None:
        return str(getattr(view, "__qualname__", repr(view)))
    verb = method.lower()
    action = (getattr(view, "actions", None) or {}).get(verb, verb)
    return f"{holder.__name__}.{action}" if hasattr(holder, action) else str(holder.__name__)


def _views(patterns: Iterable[URLPattern | URLResolver]) -> Iterator[Any]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _views(pattern.url_patterns)
        else:
            yield pattern.callback


def _is_listed() -> bool:
    return any(_is_ours(_load(path)) for path in settings.MIDDLEWARE)


def _load(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError:
        return None  # Django itself says so, and better, when it makes the chain


def _is_ours(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, IdempotencyMiddleware)


def _is_one_of(found: Any, paths: Iterable[str]) -> bool:
    """Whether a middleware is one of these classes, or made of one."""
    mro = found.__mro__ if isinstance(found, type) else ()
    return any(f"{base.__module__}.{base.__qualname__}" in paths for base in mro)
