"""What can be known of an application before its first request: the rules of its routes, which of their dependencies
end after the response, and where authentication runs.

Applications that cannot be inspected are left out; their errors are reported when a request arrives.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from open_idempotency._starlette.routes import (
    DEEPEST,
    Layers,
    all_rules,
    endpoint_rules,
    expanded,
    see_layers,
)
from open_idempotency.rules import Rule

#: methods that a policy may cover, and that routes have
_METHODS = ("POST", "PATCH", "PUT", "DELETE")
_AUTHENTICATING = ("AuthenticationMiddleware", "AuthMiddleware")


class Endpoint(NamedTuple):
    """One method of one route: its path as the application writes it, the rules on it, and the route itself."""

    path: str
    method: str
    rules: tuple[Rule, ...]
    route: Any


def endpoints_beneath(layers: Layers) -> Iterator[Endpoint]:
    """Every endpoint that requests reach without another middleware of this library."""
    return _endpoints_in(layers, "", (), DEEPEST)


def _endpoints_in(
    layers: Layers, path: str, around: dict[str, tuple[Rule, ...]] | tuple[()], depth: int
) -> Iterator[Endpoint]:
    if layers.inner or layers.routes is None or not depth:
        return
    for route in expanded(layers.routes):
        full_path = path + _path_of(route)
        beneath = see_layers(getattr(route, "app", None))
        found: dict[str, tuple[Rule, ...]] = {}
        for method in _methods_of(route):
            found[method] = (*(around or {}).get(method, ()), *all_rules(route, method))
            if _is_mount(route):
                found[method] += tuple(endpoint_rules(beneath.app, method))
        if beneath.routes is None and not beneath.inner:
            yield from (Endpoint(full_path, method, rules, route) for method, rules in found.items())
        yield from _endpoints_in(beneath, full_path, found, depth - 1)


def _is_mount(route: Any) -> bool:
    return getattr(route, "endpoint", None) is None


def _path_of(route: Any) -> str:
    """The path as it is written; a mount's format has a parameter for the rest, and a host has no path."""
    return str(getattr(route, "path" if _is_mount(route) else "path_format", None) or "")


def _methods_of(route: Any) -> Iterator[str]:
    allowed = getattr(route, "methods", None)
    return (method for method in _METHODS if allowed is None or method in allowed)


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
