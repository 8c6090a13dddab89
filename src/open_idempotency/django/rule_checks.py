"""System checks of rules: those that contradict the settings, that have no effect, or that no route leads to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RoutePattern

from open_idempotency import rules
from open_idempotency._routes.coverage import PathRules
from open_idempotency._routes.path_patterns import Pattern, meet
from open_idempotency._routes.survey import Effects
from open_idempotency.django import layers
from open_idempotency.django.conf import Configured
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.rules import Rule

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
    """The methods that a view handles; the usual ones for a function that says nothing of them."""
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
