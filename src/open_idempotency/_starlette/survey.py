"""Inspection of a Starlette or FastAPI application before its first request: layers, routes, rules.

It shows which rules have an effect, which dependencies end after the response, and where authentication runs. An
application of another framework, and a middleware that hides what it wraps, have no routes.
Applications that cannot be inspected are left out; their errors are reported when a request arrives.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, Protocol

from starlette.routing import Host, Mount, Route, WebSocketRoute, compile_path

from open_idempotency import asgi
from open_idempotency._engine.engine import Covered
from open_idempotency._routes.coverage import Coverages, CoveredPaths, PathRules
from open_idempotency._routes.survey import Effects
from open_idempotency.asgi import Scope
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import IdempotencyRule, Rule, own_rules_on, rules_on

# Layers, and the rules of routes and dependencies

#: how many nested layers are inspected
DEEPEST = 100
FRAMEWORKS = ("starlette", "fastapi")
#: routes that contain no further routes of an included router
_SINGLE = (Route, WebSocketRoute, Mount, Host)


class Layers(NamedTuple):
    """The layers of middleware around an application. ``app``: the innermost, with its ``routes``.

    ``inner``: whether one of the layers is a middleware of this library that is enabled. ``outside``: the outermost
    layer. ``off``: whether there is a middleware of this library with ``enabled=False``, which counts as any other
    layer.
    """

    app: Any
    routes: Iterable[Any] | None
    inner: bool
    outside: Any = None
    off: bool = False


def all_rules(route: Any, method: str) -> Iterator[Rule]:
    """The rules among a route's dependencies, then the rules of its endpoint."""
    return chain(dependency_rules(route), endpoint_rules(getattr(route, "endpoint", None), method))


def is_ours(kind: Any) -> bool:
    """Whether a class is a middleware of this library."""
    return isinstance(kind, type) and issubclass(kind, asgi.IdempotencyMiddleware)


def see_layers(app: Any) -> Layers:
    """Look through layers of middleware, as far as they show what they wrap."""
    outside, off = app, False
    for _ in range(DEEPEST):
        if isinstance(app, asgi.IdempotencyMiddleware):
            if not app.off:
                return Layers(app, None, True, outside)
            off = True
        elif hasattr(app, "routes"):
            return Layers(app, app.routes, _has_ours(app), outside, off)
        wrapped = getattr(app, "app", None)
        if wrapped is None:
            # The middleware of a router wraps a method of the router.
            owner = getattr(app, "__self__", app)
            return Layers(owner, getattr(owner, "routes", None), False, outside, off)
        app = wrapped
    return Layers(app, None, False, outside, off)


def layers_beneath(app: Any, scope: Scope) -> Layers:
    """The layers inside a middleware around ``app``; if they are hidden, those of the request's own application."""
    layers = see_layers(app)
    entered = scope.get("app")
    if layers.routes is None and not layers.inner and entered is not None and scope.get("endpoint", entered) is entered:
        return Layers(entered, getattr(entered, "routes", None), False, entered)
    return layers


def _has_ours(app: Any) -> bool:
    """Whether an application, or its router, lists a middleware of this library."""
    if any(is_ours(listed.cls) for listed in getattr(app, "user_middleware", ())):
        return True
    router = getattr(app, "router", app)
    layer = getattr(router, "middleware_stack", None)
    for _ in range(DEEPEST):
        if layer is None or isinstance(layer, asgi.IdempotencyMiddleware):
            break
        layer = getattr(layer, "app", None)
    return layer is not None


def refuses_other_methods(route: Any) -> bool:
    """Whether a route is handled by the framework's own code, which refuses methods that the route does not list."""
    kind: Any = type(getattr(route, "original_route", route))
    handle = getattr(kind, "handle", None)
    return handle is not None and handle.__module__.partition(".")[0] in FRAMEWORKS


def expanded(routes: Iterable[Any]) -> Iterable[Any]:
    """The routes, with the routes of FastAPI's included routers among them; older versions list these already."""
    expand = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    if expand is None:
        return routes
    # FastAPI would wrap other routes too, and forwarding attributes takes longer than matching the route.
    return chain.from_iterable((route,) if isinstance(route, _SINGLE) else expand((route,)) for route in routes)


def endpoint_rules(endpoint: Any, method: str) -> Iterator[Rule]:
    """The rules on a function, or on a class and then on its method for this verb."""
    return iter(() if endpoint is None else rules_on(endpoint, method))


def dependency_rules(route: Any) -> Iterator[Rule]:
    """The rules among a FastAPI route's dependencies: its application's, its routers', and its own."""
    dependant = getattr(route, "dependant", None)
    return iter(()) if dependant is None else dependant_rules(dependant)


def dependant_rules(dependant: Any) -> Iterator[Rule]:
    """The rules among the dependencies of one FastAPI endpoint, the nearest last.

    A marked class among the dependencies has the endpoint as a method, as class-based views are built.
    """
    call = dependant.call
    own: tuple[Rule, ...] = ()
    if isinstance(call, IdempotencyRule):
        own = (call.rule,)
    elif isinstance(call, type):
        _refuse_class(call)
        own = rules_on(call, "")
    return chain(own, *map(dependant_rules, dependant.dependencies))


def _refuse_class(call: type) -> None:
    if issubclass(call, IdempotencyRule):
        raise ConfigurationError(
            f"Depends({call.__name__}): the class itself is no rule, and FastAPI takes its arguments from the request; "
            f"call it: Depends({call.__name__}()), or with policy fields such as {call.__name__}(required=True)"
        )


def signature_rules(dependant: Any) -> Iterator[Rule]:
    """The rules that are dependencies themselves, without those of classes."""
    own = (dependant.call.rule,) if isinstance(dependant.call, IdempotencyRule) else ()
    return chain(own, *map(signature_rules, dependant.dependencies))


# The survey of endpoints

#: methods that a policy may cover, and that routes have
_METHODS = ("POST", "PATCH", "PUT", "DELETE")
#: methods that nothing covers, so one of them stands for all
_UNCOVERED = frozenset({"HEAD", "OPTIONS"})
_WEBSOCKET = "WEBSOCKET"
_NEVER = NEVER_COVERED | {_WEBSOCKET}
#: how many routes a warning names
_NAMED_ROUTES = 5
_AUTHENTICATING = ("AuthenticationMiddleware", "AuthMiddleware")


class Endpoint(NamedTuple):
    """One method of one route: its path as the application writes it, the rules on it, and the route itself.

    ``own``: the rules that belong to this route alone, and to no router or application.
    """

    path: str
    method: str
    rules: tuple[Rule, ...]
    route: Any
    own: tuple[Rule, ...]


class Covering(Protocol):
    """The parts of a middleware that a survey uses."""

    coverages: Coverages

    def rules_of_path(self, scope: dict[str, Any]) -> tuple[Rule, ...]:
        """The rules for the path of a request, or for the path of a route as written."""
        ...


class Survey:
    """The rules of an application's routes.

    ``covered``: the routes that are covered, once for each method. ``contradictions``: routes whose rules contradict
    the policy, and how.
    """

    def __init__(self) -> None:
        self.effects = Effects()
        self.covered: list[Any] = []
        self.contradictions: list[str] = []
        self._late: dict[str, list[str]] = {}

    def add(self, endpoint: Endpoint, covering: Covering) -> None:
        """Look at one method of one route."""
        path, method, rules, route, own = endpoint
        coverage = None
        effective = True
        if method not in _NEVER:
            try:
                coverage = covering.coverages.by((*covering.rules_of_path({"method": method, "path": path}), *rules))
                effective = coverage is not None and method in coverage.policy.methods
            except ConfigurationError as error:
                self.contradictions.append(f"{method} {path}: {error}")
        else:
            effective = False
        self.effects.note(method, path, getattr(route, "endpoint", None), rules, own, effective)
        if coverage is not None and effective:
            self.covered.append(route)
            for dependency in dict.fromkeys(late_dependencies(route)):
                self._late.setdefault(dependency, []).append(f"{method} {path}")

    def late(self) -> Iterator[str]:
        """Warnings of dependencies of covered routes that end after the response."""
        for dependency, routes in self._late.items():
            named = ", ".join(routes[:_NAMED_ROUTES])
            if len(routes) > _NAMED_ROUTES:
                named += f" and {len(routes) - _NAMED_ROUTES} more"
            yield (
                f"{dependency} ends after the response of {named}: the response is recorded first, so if a commit "
                "after its yield fails, or the worker dies before it, a retry replays a success whose rows do not "
                'exist. If it commits, declare it with Depends(..., scope="function"), or commit in the endpoint, or '
                'use idem.atomic(session) or tx=session. If it only cleans up, scope="function" is right as well, and '
                "ends this warning"
            )


class CoveredEndpoints(CoveredPaths):
    """The routes of an application that are covered."""

    def __init__(self, coverages: Coverages, paths: PathRules | None, app: Any) -> None:
        super().__init__(coverages, paths)
        self._app = app

    def every(self) -> Iterator[Covered]:
        """See ``Covering``. If the application cannot be inspected, only the rules by path are known."""
        layers = layers_beneath(self._app, {})
        if layers.routes is None:
            yield from super().every()
            return
        for path, method, rules, _, _ in endpoints_beneath(layers):
            policy = None if method in _NEVER else self.policy_of(method, (*self.by_path(method, path), *rules))
            if policy is not None:
                yield Covered(method, path, policy)

    def at(self, method: str, path: str) -> IdempotencyPolicy | None:
        """See ``Covering``. The first route that fits counts, as in Starlette."""
        layers = layers_beneath(self._app, {})
        if layers.routes is None:
            return super().at(method, path)
        for template, allowed, rules, route, _ in endpoints_beneath(layers):
            if allowed == method and _leads_to(template, route, path):
                return self.policy_of(method, (*self.by_path(method, path), *rules))
        return None


def _leads_to(template: str, route: Any, path: str) -> bool:
    """Whether a route or a mounted application has this path, which may also be its template."""
    if _is_mount(route):
        return path == template or path.startswith(template.rstrip("/") + "/")
    # The route's own part of the path has its converters; the template does not.
    own = str(getattr(route, "path", template))
    whole = template[: len(template) - len(_path_of(route))] + own
    return path in (template, whole) or compile_path(whole)[0].match(path) is not None


def look_over(layers: Layers, covering: Covering) -> Survey:
    """Look at every route that requests reach without another middleware of this library."""
    survey = Survey()
    for endpoint in endpoints_beneath(layers):
        survey.add(endpoint, covering)
    return survey


def endpoints_beneath(layers: Layers) -> Iterator[Endpoint]:
    """Every endpoint that requests reach without another middleware of this library."""
    return _endpoints_in(layers, "", {}, DEEPEST)


def _endpoints_in(layers: Layers, path: str, around: dict[str, tuple[Rule, ...]], depth: int) -> Iterator[Endpoint]:
    if layers.inner or layers.routes is None or not depth:
        return
    shared = _shared_dependencies(layers.app)
    for route in expanded(layers.routes):
        full_path = path + _path_of(route)
        beneath = see_layers(getattr(route, "app", None))
        found: dict[str, tuple[Rule, ...]] = {}
        for method in _methods_of(route):
            found[method] = (*around.get(method, ()), *all_rules(route, method))
            if _is_mount(route):
                found[method] += tuple(endpoint_rules(beneath.app, method))
        if beneath.routes is None and not beneath.inner:
            for method, rules in found.items():
                yield Endpoint(full_path, method, rules, route, own_rules(route, method, shared))
        yield from _endpoints_in(beneath, full_path, found, depth - 1)


def _is_mount(route: Any) -> bool:
    return getattr(route, "endpoint", None) is None


def _path_of(route: Any) -> str:
    """The path as written; a mount's format would have a parameter for the rest, and a host has no path."""
    return str(getattr(route, "path" if _is_mount(route) else "path_format", None) or "")


def _methods_of(route: Any) -> Iterable[str]:
    if isinstance(getattr(route, "original_route", route), WebSocketRoute):
        return (_WEBSOCKET,)
    allowed, endpoint = getattr(route, "methods", None), getattr(route, "endpoint", None)
    if allowed is None and isinstance(endpoint, type):
        allowed = [method for method in (*_METHODS, "GET") if hasattr(endpoint, method.lower())]
    if not allowed:
        return (*_METHODS, "GET") if _is_mount(route) else _METHODS
    listed = sorted(set(allowed) - _UNCOVERED) or sorted(allowed)
    # A class of routes with its own handle() may accept other methods too.
    return listed if refuses_other_methods(route) else dict.fromkeys((*listed, *_METHODS))


def own_rules(route: Any, method: str, shared: frozenset[int] | None) -> tuple[Rule, ...]:
    """The rules that belong to one route alone.

    ``shared``: the dependencies of routers, by id; None if FastAPI does not show them. Then a rule in a list of
    dependencies counts as that of a router.
    """
    dependant = getattr(route, "dependant", None)
    listed = [] if dependant is None else list(getattr(route, "dependencies", ()))
    foreign: set[Rule] = {
        each.dependency.rule
        for each in listed
        if isinstance(each.dependency, IdempotencyRule) and (shared is None or id(each) in shared)
    }
    mine = () if dependant is None else signature_rules(dependant)
    kept = (rule for rule in mine if rule not in foreign and not rule.exempt)
    return (*kept, *own_rules_on(getattr(route, "endpoint", None), method))


def _shared_dependencies(app: Any) -> frozenset[int] | None:
    """The dependencies, by id, that FastAPI's routers and inclusions give to each of their routes."""
    if not hasattr(sys.modules.get("fastapi.routing"), "iter_route_contexts"):
        return None
    return frozenset(map(id, _dependencies_of_routers(getattr(app, "router", app), DEEPEST)))


def _dependencies_of_routers(router: Any, depth: int) -> Iterator[Any]:
    yield from getattr(router, "dependencies", ())
    for route in getattr(router, "routes", ()) if depth else ():
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from getattr(getattr(route, "include_context", None), "dependencies", ())
            yield from _dependencies_of_routers(included, depth - 1)


def late_dependencies(route: Any) -> Iterator[str]:
    """The names of a FastAPI route's dependencies whose code after ``yield`` runs after the response.

    FastAPI does so since 0.118, unless the dependency was declared with ``scope="function"``.
    """
    dependant = getattr(route, "dependant", None)
    if dependant is None or not _ends_dependencies_late():
        return iter(())
    return _late_beneath(dependant)


def _late_beneath(dependant: Any) -> Iterator[str]:
    for each in dependant.dependencies:
        if getattr(each, "scope", None) != "function" and _is_generator(each.call):
            yield _name_of(each.call)
        yield from _late_beneath(each)


def _is_generator(call: Any) -> bool:
    function = _behind_partials(call)
    candidates = (function, type(function).__call__)
    return any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in candidates)


def _name_of(call: Any) -> str:
    function = _behind_partials(call)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _behind_partials(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    return inspect.unwrap(call)


@functools.cache
def _ends_dependencies_late() -> bool:
    version = str(getattr(sys.modules.get("fastapi"), "__version__", "0"))
    numbers = [int(part) if part.isdigit() else 0 for part in version.split(".")]
    return numbers >= [0, 118]


def depends_on(route: Any, call: Any) -> bool:
    """Whether a FastAPI route depends on this callable, at any depth."""
    dependant = getattr(route, "dependant", None)
    return dependant is not None and _is_beneath(dependant, call)


def _is_beneath(dependant: Any, call: Any) -> bool:
    return any(each.call == call or _is_beneath(each, call) for each in dependant.dependencies)


def authentication_beneath(layers: Layers, depth: int = DEEPEST) -> str | None:
    """The name of a middleware that authenticates after the claim is made.

    It is inside a route, or inside an application that cannot be inspected.
    """
    if layers.inner or not depth:
        return None
    if layers.routes is None:
        return _authentication_around(layers.outside)
    for route in expanded(layers.routes):
        within = getattr(route, "app", None)
        if _is_mount(route):
            name = authentication_beneath(see_layers(within), depth - 1)
        else:
            inner = getattr(route, "dependant", None) is not None or see_layers(within).inner
            name = None if inner else _authentication_around(within)
        if name is not None:
            return name
    return None


def _authentication_around(app: Any) -> str | None:
    """The name of an authenticating layer around an application, as far as layers show what they wrap."""
    for _ in range(DEEPEST):
        for kind in (type(app), *(each.cls for each in getattr(app, "user_middleware", ()))):
            if _authenticates(kind):
                return str(kind.__name__)
        app = getattr(app, "app", None)
        if app is None:
            break
    return None


def _authenticates(kind: Any) -> bool:
    """Whether a class is Starlette's AuthenticationMiddleware, derived from it, or named like one."""
    return any(base.__name__.endswith(_AUTHENTICATING) for base in getattr(kind, "__mro__", ()))
