"""Routes with rules that no middleware of this library reads: a request that they should protect is an error (O-25).

The check is made when an endpoint is called, for requests that no ``IdempotencyMiddleware`` has seen. A request that
one has seen has ``PENDING`` in its scope. Rules inside the middleware for plain ASGI are found at start (R-15).
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Protocol

from open_idempotency._asgi import MARK, PENDING, Scope
from open_idempotency._routes.coverage import Route
from open_idempotency._starlette.survey import (
    FRAMEWORKS,
    Covering,
    Endpoint,
    Layers,
    all_rules,
    endpoint_rules,
    endpoints_beneath,
    layers_beneath,
    see_layers,
)
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import Rule, changes, combine, deciding, registry

_logger = logging.getLogger("open_idempotency")
_ABOVE = "open_idempotency.rules_above"
_MISSING = (
    "has a rule (@idempotent or IdempotencyRule), and no IdempotencyMiddleware reads it, so a retry runs again; add "
    "app.add_middleware(IdempotencyMiddleware, backend=...) from open_idempotency.starlette or "
    "open_idempotency.fastapi, with enabled=False in tests that need no protection"
)
_IGNORED = (
    "has a rule (@idempotent, @exempt or IdempotencyRule) that has no effect: the middleware that protects it reads "
    "none, as it is the one for plain ASGI, or cannot see into what it wraps; use "
    "open_idempotency.starlette.IdempotencyMiddleware, or FastAPI's, around the application itself"
)
#: routes that were warned about, and how many are
_warned: set[str] = set()
_MOST = 100
#: how many endpoints an error names
_NAMED = 5
_NEVER = NEVER_COVERED | {"WEBSOCKET"}


def is_unseen(scope: Scope) -> bool:
    """Whether no middleware of this library that reads rules has seen a request that one may cover."""
    return PENDING not in scope and scope["type"] == "http" and scope["method"].upper() not in NEVER_COVERED


def look_at_route(route: Any, scope: Scope) -> None:
    """Refuse an unseen request if the route's rules ask for protection, and note the rules of a mounted application.

    Raises ``ConfigurationError``. If a layer hides whether a middleware is inside it, a warning is logged instead.
    """
    method = scope["method"].upper()
    beneath = see_layers(getattr(route, "app", None))
    if getattr(route, "endpoint", None) is None:
        rules = tuple(endpoint_rules(beneath.app, method))
        if rules:
            scope[_ABOVE] = (*scope.get(_ABOVE, ()), *rules)
    elif not (beneath.inner or beneath.off):
        _look(route, tuple(all_rules(route, method)), scope, hidden=not _shows_all(beneath, route))


def look_at_endpoint(rules: tuple[Rule, ...], scope: Scope) -> None:
    """Refuse an unseen request if these rules of a FastAPI endpoint ask for protection: ``ConfigurationError``."""
    _look(scope.get("route"), rules, scope, hidden=False)


def _look(route: Any, rules: tuple[Rule, ...], scope: Scope, *, hidden: bool) -> None:
    name = f"{scope['method'].upper()} {_path_of(route)}"
    if MARK in scope:
        rule = combine((*scope.get(_ABOVE, ()), *rules))
        if rule is not None and changes(rule, scope[MARK].policy):
            _warn(name, _IGNORED)
        return
    if not asks_for_protection(scope, rules):
        return
    if hidden:
        _warn(name, f"{_MISSING}; a layer around it hides whether it has one of its own")
    else:
        raise ConfigurationError(f"{name} {_MISSING}")


class _Protecting(Covering, Protocol):
    """The parts of a middleware for plain ASGI that are read here."""

    app: Any


def find_unread(middleware: _Protecting, scope: Scope) -> str | None:
    """The error for rules of endpoints inside a middleware that reads none; None if the rules change nothing."""
    found = [
        f"{at.method} {at.path} ({_name_of(at.route)}): {_rule_text(at.rules)}"
        for at in endpoints_beneath(layers_beneath(middleware.app, scope))
        if at.rules and at.method not in _NEVER and _would_change(at, middleware)
    ]
    if not found:
        return None
    named = "; ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    return (
        f"rules of endpoints have no effect here, as open_idempotency.asgi.IdempotencyMiddleware reads none: {named}. "
        "Use open_idempotency.starlette.IdempotencyMiddleware, which FastAPI's extends, or give these rules by path: "
        "rules="
    )


def _would_change(at: Endpoint, middleware: _Protecting) -> bool:
    """Whether the rules of an endpoint would change how its requests are covered."""
    by_path = middleware.rules_of_path({"method": at.method, "path": at.path})
    try:
        each = [middleware.coverages.by((*by_path, *rules)) for rules in ((), at.rules)]
    except ConfigurationError:  # they contradict the policy, which would go unnoticed too
        return True
    plain, read = (route.policy if route is not None and at.method in route.policy.methods else None for route in each)
    return plain != read


def _name_of(route: Any) -> str:
    endpoint = getattr(route, "endpoint", None)
    return str(getattr(endpoint, "__qualname__", None) or type(endpoint).__qualname__)


def _rule_text(rules: tuple[Rule, ...]) -> str:
    rule = combine(rules)
    if rule is None or rule.exempt:
        return "exempt"
    return f"idempotent({', '.join(f'{name}=' for name in rule.fields)})"


registry.find_unread = find_unread


def _warn(name: str, said: str) -> None:
    if name not in _warned and len(_warned) < _MOST:
        _warned.add(name)
        _logger.warning("%s %s", name, said)


def asks_for_protection(scope: Scope, rules: tuple[Rule, ...]) -> bool:
    """Whether these rules cover a request that has a key or needs one."""
    coverage = _coverage((*scope.get(_ABOVE, ()), *rules))
    if coverage is None or scope["method"].upper() not in coverage.policy.methods:
        return False
    return coverage.always or any(name in coverage.names for name, _ in scope["headers"])


@lru_cache(1024)
def _coverage(rules: tuple[Rule, ...]) -> Route | None:
    rule = combine(rules)
    if rule is None or rule.exempt:
        return None
    policy = IdempotencyPolicy(**deciding(rule))
    return Route.of(policy)


def _shows_all(beneath: Layers, route: Any) -> bool:
    """Whether every layer between a route and its endpoint shows what it wraps."""
    innermost = beneath.app
    return innermost is route.endpoint or str(innermost.__module__).partition(".")[0] in FRAMEWORKS


def _path_of(route: Any) -> str:
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or "(a route without a path)")
