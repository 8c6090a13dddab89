"""What Starlette and FastAPI applications are made of, as far as they show it: layers of middleware, routes, rules.

What cannot be seen into (an application of another framework, a middleware that hides what it wraps) has no routes.
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

#: how deep applications are looked into
DEEPEST = 100
#: routes that are no more than themselves
_SINGLE = (Route, WebSocketRoute, Mount, Host)


class Layers(NamedTuple):
    """What middleware wraps: ``app`` is innermost, ``routes`` are its own; ``inner``: one of them is ours.

    ``outside``: the outermost layer.
    """

    app: Any
    routes: Iterable[Any] | None
    inner: bool
    outside: Any = None


def all_rules(route: Any, method: str) -> Iterator[Rule]:
    """Those of a route's dependencies, then those of its endpoint."""
    return chain(dependency_rules(route), endpoint_rules(getattr(route, "endpoint", None), method))


def is_ours(kind: Any) -> bool:
    """Whether this is a middleware class of ours."""
    return isinstance(kind, type) and issubclass(kind, asgi.IdempotencyMiddleware)


def see_layers(app: Any) -> Layers:
    """Look through what middleware wraps, as far as it shows it."""
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
    """What a middleware around ``app`` will lead this request to: where a layer hides it, the application entered."""
    layers = see_layers(app)
    entered = scope.get("app")
    if layers.routes is None and not layers.inner and entered is not None and scope.get("endpoint", entered) is entered:
        return Layers(entered, getattr(entered, "routes", None), False, entered)
    return layers


def _has_ours(app: Any) -> bool:
    """Whether an application, or its router, has a middleware of ours in its own list."""
    if any(is_ours(listed.cls) for listed in getattr(app, "user_middleware", ())):
        return True
    router = getattr(app, "router", app)
    layer = getattr(router, "middleware_stack", None)
    for _ in range(DEEPEST):
        if layer is None or isinstance(layer, asgi.IdempotencyMiddleware):
            break
        layer = getattr(layer, "app", None)
    return layer is not None


def expanded(routes: Iterable[Any]) -> Iterable[Any]:
    """The routes, with those of FastAPI's included routers in place; older versions have them there already."""
    expand = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    if expand is None:
        return routes
    # What it makes of any other route asks that route for each attribute, which takes longer than matching it.
    return chain.from_iterable((route,) if isinstance(route, _SINGLE) else expand((route,)) for route in routes)


def endpoint_rules(endpoint: Any, method: str) -> Iterator[Rule]:
    """Those on a function, or on a class and then on its method for this verb."""
    return iter(() if endpoint is None else rules_on(endpoint, method))


def dependency_rules(route: Any) -> Iterator[Rule]:
    """Those among a FastAPI route's dependencies: its application's, its routers', and its own."""
    dependant = getattr(route, "dependant", None)
    return iter(()) if dependant is None else dependant_rules(dependant)


def dependant_rules(dependant: Any) -> Iterator[Rule]:
    """The rules among the dependencies of one FastAPI endpoint, the nearest last."""
    own = [dependant.call.rule] if isinstance(dependant.call, IdempotencyRule) else []
    return chain(own, *map(dependant_rules, dependant.dependencies))
