"""What can be known of an application before its first request: the rules of its routes, and who authenticates where.

The routes are walked as ``matching`` asks them. What cannot be seen into is left out, and told when a request comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from open_idempotency._starlette.matching import (
    DEEPEST,
    Layers,
    all_rules,
    endpoint_rules,
    expanded,
    is_ours,
    see_layers,
)
from open_idempotency.rules import Rule

#: methods that a policy may cover, and that routes have
_METHODS = ("POST", "PATCH", "PUT", "DELETE")
_AUTHENTICATING = ("AuthenticationMiddleware", "AuthMiddleware")


def rules_beneath(app: Any) -> Iterator[tuple[str, str, tuple[Rule, ...]]]:
    """Path, method and rules of each route that requests reach without another middleware of ours."""
    return _rules_in(see_layers(app), "", (), DEEPEST)


def _rules_in(
    layers: Layers, path: str, around: dict[str, tuple[Rule, ...]] | tuple[()], depth: int
) -> Iterator[tuple[str, str, tuple[Rule, ...]]]:
    if layers.inner or layers.routes is None or not depth:
        return
    for route in expanded(layers.routes):
        place = path + _path_of(route)
        beneath = see_layers(getattr(route, "app", None))
        found: dict[str, tuple[Rule, ...]] = {}
        for method in _methods_of(route):
            found[method] = (*(around or {}).get(method, ()), *all_rules(route, method))
            if _is_mount(route):
                found[method] += tuple(endpoint_rules(beneath.app, method))
        if beneath.routes is None and not beneath.inner:
            yield from ((place, method, rules) for method, rules in found.items())
        yield from _rules_in(beneath, place, found, depth - 1)


def _is_mount(route: Any) -> bool:
    return getattr(route, "endpoint", None) is None


def _path_of(route: Any) -> str:
    """As it is written; a mount's format has a parameter for the rest, and a host has no path."""
    return str(getattr(route, "path" if _is_mount(route) else "path_format", None) or "")


def _methods_of(route: Any) -> Iterator[str]:
    allowed = getattr(route, "methods", None)
    return (method for method in _METHODS if allowed is None or method in allowed)


def authentication_beneath(app: Any, depth: int = DEEPEST) -> str | None:
    """The name of a middleware that authenticates somewhere beneath, and is not outside of another one of ours."""
    for _ in range(DEEPEST):
        listed = [type(app), *(each.cls for each in getattr(app, "user_middleware", ()))]
        if any(map(is_ours, listed)):
            return None
        for kind in listed:
            if _authenticates(kind):
                return str(kind.__name__)
        inner = getattr(app, "app", None)
        if inner is None:
            break
        app = inner
    routes = see_layers(app).routes
    if routes is None or not depth:
        return None
    found = (authentication_beneath(getattr(route, "app", None), depth - 1) for route in expanded(routes))
    return next((name for name in found if name is not None), None)


def _authenticates(kind: Any) -> bool:
    """Starlette's own, one made of it, or one that is named as such are."""
    return any(base.__name__.endswith(_AUTHENTICATING) for base in getattr(kind, "__mro__", ()))
