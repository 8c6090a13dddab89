"""Layers of middleware, routes and rules of Starlette and FastAPI applications, as far as they can be inspected.

An application of another framework, and a middleware that hides what it wraps, have no routes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from starlette.routing import Host, Mount, Route, WebSocketRoute

from open_idempotency import asgi
from open_idempotency.asgi import Scope
from open_idempotency.rules import IdempotencyRule, Rule, rules_on

#: how many nested layers are inspected
DEEPEST = 100
FRAMEWORKS = ("starlette", "fastapi")
#: routes that contain no further routes of an included router
_SINGLE = (Route, WebSocketRoute, Mount, Host)


class Layers(NamedTuple):
    """The layers of middleware around an application. ``app``: the innermost, with its ``routes``.

    ``inner``: whether one of the layers is a middleware of this library. ``outside``: the outermost layer.
    """

    app: Any
    routes: Iterable[Any] | None
    inner: bool
    outside: Any = None


def all_rules(route: Any, method: str) -> Iterator[Rule]:
    """The rules among a route's dependencies, then the rules of its endpoint."""
    return chain(dependency_rules(route), endpoint_rules(getattr(route, "endpoint", None), method))


def is_ours(kind: Any) -> bool:
    """Whether a class is a middleware of this library."""
    return isinstance(kind, type) and issubclass(kind, asgi.IdempotencyMiddleware)


def see_layers(app: Any) -> Layers:
    """Look through layers of middleware, as far as they show what they wrap."""
    outside = app
    for _ in range(DEEPEST):
        if isinstance(app, asgi.IdempotencyMiddleware):
            return Layers(app, None, True, outside)
        if hasattr(app, "routes"):
            return Layers(app, app.routes, _has_ours(app), outside)
        wrapped = getattr(app, "app", None)
        if wrapped is None:
            # What a router's own middleware wraps is the router's method.
            owner = getattr(app, "__self__", app)
            return Layers(owner, getattr(owner, "routes", None), False, outside)
        app = wrapped
    return Layers(app, None, False, outside)


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
    # Its wrapper of any other route forwards each attribute, which takes longer than matching the route.
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

    A class that is marked and a dependency has the endpoint for a method: class-based views are made so.
    """
    call = dependant.call
    own: tuple[Rule, ...] = ()
    if isinstance(call, IdempotencyRule):
        own = (call.rule,)
    elif isinstance(call, type):
        own = rules_on(call, "")
    return chain(own, *map(dependant_rules, dependant.dependencies))


def signature_rules(dependant: Any) -> Iterator[Rule]:
    """The rules that are dependencies themselves, without those of classes."""
    own = (dependant.call.rule,) if isinstance(dependant.call, IdempotencyRule) else ()
    return chain(own, *map(signature_rules, dependant.dependencies))
