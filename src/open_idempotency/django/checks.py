"""System checks of the settings, the middleware's position and the database, reported at start."""

from __future__ import annotations

import contextvars
import dis
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from asgiref.local import Local
from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RoutePattern
from django.utils.module_loading import import_string

from open_idempotency import rules
from open_idempotency._routes.coverage import PathRules
from open_idempotency._routes.path_patterns import Pattern, meet
from open_idempotency._routes.survey import Effects, kind_of
from open_idempotency.backends.django_orm.connections import lives_in_one_connection
from open_idempotency.django import conf, layers
from open_idempotency.django.conf import Configured, configure
from open_idempotency.django.middleware import IdempotencyMiddleware
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import Rule

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


# System checks of rules: those that contradict the settings, that have no effect, or that no route leads to.

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: where a decorator of Django's keeps the methods that it lets through
_REQUIRED_METHODS = "request_method_list"
#: stands for a parameter in a path; no rule contains it
_SOMETHING = "\0"


class _Route(NamedTuple):
    """``fitting``: the pattern of the paths that lead to the view; None where that cannot be known."""

    path: str
    view: Any
    fitting: Pattern | None


def check_rules(configured: Configured) -> Iterator[CheckMessage]:
    """Check the rules of views and of ``IDEMPOTENCY_RULES``.

    E003: a rule contradicts the settings. E005, W007, W009, W012: a rule has no effect. W008: no view has a rule, and
    only views with a rule are covered.
    """
    if not getattr(settings, "ROOT_URLCONF", None):
        return
    routes = list(_routes(get_resolver().url_patterns, "/", known=True))
    effects = Effects()
    marked = configured.paths is not None
    reported: set[str] = set()
    # ninja names a path once for each operation.
    for route, method in {(each.path, m): (each, m) for each in routes for m in _methods(each.view)}.values():
        marked = marked or any(not rule.exempt for rule in layers.rules_on(route.view, method))
        try:
            _note(effects, configured, route, method)
        except ConfigurationError as error:
            message = f"@idempotent on {_name(route.view, method)}: {error}"
            if message not in reported:
                reported.add(message)
                yield Error(message, obj=route.view, id="open_idempotency.E003")
    yield from _without_effect(effects, [_holder(route.view) for route in routes])
    if configured.paths is not None:
        yield from _without_route(configured.paths, routes)
    if configured.coverages.marked_only and not marked:
        yield Warning(
            'IDEMPOTENCY_COVER is "marked", and no view that ROOT_URLCONF names is marked: nothing is protected.',
            hint="Put @idempotent on the views to protect, or name their paths in IDEMPOTENCY_RULES.",
            id="open_idempotency.W008",
        )


def _note(effects: Effects, configured: Configured, route: _Route, method: str) -> None:
    """Note which rules a route has. Raises ``ConfigurationError`` for rules that contradict the settings."""
    on_view = layers.rules_on(route.view, method)
    by_path: tuple[Rule, ...] = ()
    unknown = False
    if configured.paths is not None:
        unknown = route.fitting is None
        by_path = () if route.fitting is None else configured.paths.find(method, _example(route.fitting))
    coverage = configured.coverages.by((*by_path, *on_view))
    # A rule by path may cover the method at a path that is unknown here.
    covered = unknown or (coverage is not None and method in coverage.policy.methods)
    own = layers.own_rules_on(route.view, method)
    for endpoint in (*layers.behind(route.view, method), *_handlers(route.view, method)):
        effects.note(method, route.path, endpoint, on_view, own, covered=covered)
        own = ()


def _example(pattern: Pattern) -> str:
    return "/" + "/".join(each or _SOMETHING for each in pattern.segments)


def _without_route(paths: PathRules, routes: Iterable[_Route]) -> Iterator[CheckMessage]:
    """W009: a rule by path fits no route. Not reported if a route may fit any path."""
    fitting = [route.fitting for route in routes]
    for text, (pattern, _) in paths.read.items():
        anywhere = pattern._replace(method=None)
        if not any(each is None or meet(anywhere, each) for each in fitting):
            yield Warning(
                f"IDEMPOTENCY_RULES[{text!r}] fits no route of ROOT_URLCONF, so it has no effect.",
                hint="Write the path as Django routes it, with its slashes: '/shop/charges', '/shop/*', '/shop/{id}'.",
                id="open_idempotency.W009",
            )


def _without_effect(effects: Effects, classes: Iterable[Any]) -> Iterator[CheckMessage]:
    complaint = effects.complaint()
    if complaint is not None:
        yield Error(complaint, id="open_idempotency.E005")
    named: set[str] = set()
    for message in effects.lost():
        named.add(message.partition(" ")[0])
        yield Warning(message, id="open_idempotency.W007")
    yield from _without_view(effects, [each for each in classes if isinstance(each, type)], named)


def _without_view(effects: Effects, classes: Iterable[type], named: set[str]) -> Iterator[CheckMessage]:
    """W012: no route leads to a marked function or class of the project."""
    for name, marked in sorted(((f"{each.__module__}.{each.__qualname__}", each) for each in rules.marked), key=_first):
        if name in named or "<locals>" in name or not _is_of_project(marked) or effects.reaches(marked):
            continue
        if isinstance(marked, type) and any(issubclass(each, marked) for each in classes):
            continue
        named.add(name)  # a function, and what other decorators have made of it
        yield Warning(
            f"{name} is marked, and no route of ROOT_URLCONF leads to it. If another view or a table of functions "
            "calls it, its rule has no effect.",
            hint="Mark the view that the route names. If another URL configuration names it, silence this check.",
            id="open_idempotency.W012",
        )


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _is_of_project(marked: Any) -> bool:
    """Whether an installed application, or the package of ROOT_URLCONF, has the code."""
    urls = settings.ROOT_URLCONF
    package = urls.partition(".")[0] if isinstance(urls, str) else None
    module = str(marked.__module__)
    return module.partition(".")[0] == package or apps.get_containing_app_config(module) is not None


def _holder(view: Any) -> Any:
    """The class of a class-based view; None for another one."""
    return getattr(view, "view_class", None) or getattr(view, "cls", None)


def _handlers(view: Any, method: str) -> list[Any]:
    """The method or action of a class-based view for requests of this HTTP method; none for a function."""
    verb = method.lower()
    handler = getattr(_holder(view), (getattr(view, "actions", None) or {}).get(verb, verb), None)
    return [] if handler is None else [handler]


def _methods(view: Any) -> list[str]:
    """The methods that a view handles; the usual ones for a function that declares none."""
    shared = layers.operations(view)
    if shared:
        return sorted({method for each in shared for method in each.methods})
    holder = _holder(view)
    actions = getattr(view, "actions", None)
    if actions:
        found = [verb.upper() for verb in actions]
    elif holder is not None:
        options = getattr(view, "view_initkwargs", None) or getattr(view, "initkwargs", None) or {}
        names = options.get("http_method_names", getattr(holder, "http_method_names", ()))
        found = [verb.upper() for verb in names if hasattr(holder, verb) and verb != "options"]
    else:
        found = _let_through(view)
    return found or list(_METHODS)


def _let_through(view: Any) -> list[str]:
    """The methods that ``require_POST`` or another decorator of Django lets through to a function."""
    while view is not None:
        names = getattr(getattr(view, "__code__", None), "co_freevars", ())
        if _REQUIRED_METHODS in names:
            listed = view.__closure__[names.index(_REQUIRED_METHODS)].cell_contents
            return [str(method).upper() for method in listed]
        view = getattr(view, "__wrapped__", None)
    return []


def _name(view: Any, method: str) -> str:
    """The name of a view; for a class also the method, if the class has it."""
    operation = layers.find_operation(view, method)
    if operation is not None:
        view = operation.view_func
    holder = _holder(view)
    if holder is None:
        return str(getattr(view, "__qualname__", repr(view)))
    verb = method.lower()
    action = (getattr(view, "actions", None) or {}).get(verb, verb)
    return f"{holder.__name__}.{action}" if hasattr(holder, action) else str(holder.__name__)


def _routes(patterns: Iterable[URLPattern | URLResolver], path: str, *, known: bool) -> Iterator[_Route]:
    """The views of a URL configuration, each with its route as written in the project."""
    for pattern in patterns:
        here, known_here = path + str(pattern.pattern), known and _is_known(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern.url_patterns, here, known=known_here)
        else:
            yield _Route(here, pattern.callback, _fitting(here) if known_here else None)


def _is_known(route: Any) -> bool:
    """Whether a part of a route is text and parameters of one segment each."""
    return isinstance(route, RoutePattern) and not any(
        re.fullmatch(each.regex, "a/b") for each in route.converters.values()
    )


def _fitting(path: str) -> Pattern:
    segments = [None if "<" in each else each for each in path.strip("/").split("/")] if path.strip("/") else []
    return Pattern(None, tuple(segments), open=False)
