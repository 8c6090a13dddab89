"""Which endpoint a request is going to reach, and what is said on the way there, asked before any of it runs.

Starlette routes in the innermost layer, when it is too late to claim anything. So its routes are asked the same
questions here, in the same order: through mounts, hosts, sub-applications, and FastAPI's included routers. What cannot
be seen into (an application of another framework, a middleware that hides what it wraps) has no rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute

from open_idempotency import asgi, rules
from open_idempotency.asgi import Scope
from open_idempotency.rules import IdempotencyRule, Rule, rules_on

#: how deep applications are looked into
DEEPEST = 100
#: routes that are no more than themselves
_FRAMEWORKS = ("starlette", "fastapi")
_SINGLE = (Route, WebSocketRoute, Mount, Host)


class Found(NamedTuple):
    """``rules``: those of the endpoint and of all around it, the nearest last. ``passing``: the request is no matter of
    the middleware that asks, since another one of ours stands between, or no endpoint will take it. ``unsure``: no
    endpoint would take it as it is here, but what stands between may make another request of it."""

    rules: tuple[Rule, ...]
    passing: bool
    unsure: bool = False


class Layers(NamedTuple):
    """What middleware wraps: ``app`` is innermost, ``routes`` are its own; ``inner``: one of them is ours.

    ``plain``: what lies before the routes is Starlette's and FastAPI's own, so that it hands requests on as they are
    and stays what it is.
    """

    app: Any
    routes: Iterable[Any] | None
    inner: bool
    plain: bool = False

    def again(self) -> Layers:
        """The same once more, where it is plain: only the routes may change."""
        return Layers(self.app, self.app.routes, self.inner, True)


#: for most requests: nothing is said, and this middleware protects them
NOTHING_SAID = Found((), False)


def find(layers: Layers, scope: Scope) -> Found:
    """What is said about the request by what it will reach beneath ``layers``."""
    if layers.routes is None and not layers.inner:
        layers = _routed_here(scope) or layers
    if layers.routes is None:
        # A middleware of one route: Starlette has noted which one before it came here.
        return Found(_rules_here(scope) if rules.in_use else (), layers.inner)
    said: list[Rule] = []
    plain = True
    while not layers.inner and layers.routes is not None:
        plain = plain and layers.plain
        matched = _match(layers.routes, _as_entered(layers.app, scope))
        if matched is None:
            refused = _refuses_itself(layers.app)
            return Found(tuple(said), refused and plain, refused and not plain)
        route, child = matched
        layers = see_layers(getattr(route, "app", None))
        if layers.routes is not None:
            scope = {**scope, **child}
        if rules.in_use:
            said += all_rules(route, scope["method"])
            if getattr(route, "endpoint", None) is None:  # a mount; the rules are on what is mounted
                said += endpoint_rules(layers.app, scope["method"])
    return Found(tuple(said), layers.inner) if said or layers.inner else NOTHING_SAID


def _rules_here(scope: Scope) -> tuple[Rule, ...]:
    return (*_dependency_rules(scope.get("route")), *endpoint_rules(scope.get("endpoint"), scope["method"]))


def all_rules(route: Any, method: str) -> Iterator[Rule]:
    """Those of a route's dependencies, then those of its endpoint."""
    return chain(_dependency_rules(route), endpoint_rules(getattr(route, "endpoint", None), method))


def is_ours(kind: Any) -> bool:
    """Whether this is a middleware class of ours."""
    return isinstance(kind, type) and issubclass(kind, asgi.IdempotencyMiddleware)


def see_layers(app: Any) -> Layers:
    """Look through what middleware wraps, as far as it shows it."""
    plain = True
    for _ in range(DEEPEST):
        if isinstance(app, asgi.IdempotencyMiddleware):
            return Layers(app, None, True)
        plain = plain and _is_plain(app)
        if hasattr(app, "routes"):
            return Layers(app, app.routes, _has_ours(app), plain)
        wrapped = getattr(app, "app", None)
        if wrapped is None:
            # What a router's own middleware wraps is the router's method.
            owner = getattr(app, "__self__", None)
            return Layers(app, getattr(owner, "routes", None), False, plain and _is_plain(owner))
        app = wrapped
    return Layers(app, None, False)


def _is_plain(app: Any) -> bool:
    """Whether this hands a request on as it is: an application, a router or a middleware as the framework made it.

    An application may wrap itself in middleware that is listed. A ``BaseHTTPMiddleware`` calls somebody's function.
    """
    kinds = [type(app), *(listed.cls for listed in getattr(app, "user_middleware", ()))]
    return all(map(_is_plain_class, kinds))


def _is_plain_class(kind: Any) -> bool:
    module = str(getattr(kind, "__module__", ""))
    return module.partition(".")[0] in _FRAMEWORKS and not (
        isinstance(kind, type) and issubclass(kind, BaseHTTPMiddleware)
    )


def _as_entered(app: Any, scope: Scope) -> Scope:
    """The scope as an application sees it: FastAPI puts the ``root_path`` of its own in."""
    root_path = getattr(app, "root_path", None)
    return {**scope, "root_path": root_path} if root_path and isinstance(root_path, str) else scope


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


def _routed_here(scope: Scope) -> Layers | None:
    """The routes of the application that the request has just entered, where a middleware hides them."""
    app = scope.get("app")
    if app is None or scope.get("endpoint", app) is not app:
        return None
    return Layers(app, getattr(app, "routes", None), False, _is_plain(app))


def _match(routes: Iterable[Any], scope: Scope) -> tuple[Any, Scope] | None:
    """The route that a router would choose: the first that fits, else the first but for the method."""
    partial: tuple[Any, Scope] | None = None
    for listed in routes:
        for route in (listed,) if isinstance(listed, _SINGLE) else expanded((listed,)):
            match, child = route.matches(scope)
            if match is Match.FULL:
                return route, child
            if match is Match.PARTIAL and partial is None:
                partial = (route, child)
    return partial


def _refuses_itself(app: Any) -> bool:
    """Whether a router answers with its own 404, or a redirect to where a slash is missing, when no route fits.

    Neither is worth a record, and a redirect that took the key would make the redirected request a mismatch.
    """
    default = getattr(getattr(app, "router", app), "default", None)
    return getattr(default, "__func__", None) is Router.not_found


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


def _dependency_rules(route: Any) -> Iterator[Rule]:
    """Those among a FastAPI route's dependencies: its application's, its routers', and its own."""
    dependant = getattr(route, "dependant", None)
    return iter(()) if dependant is None else _rules_beneath(dependant)


def _rules_beneath(dependant: Any) -> Iterator[Rule]:
    own = [dependant.call.rule] if isinstance(dependant.call, IdempotencyRule) else []
    return chain(own, *map(_rules_beneath, dependant.dependencies))
