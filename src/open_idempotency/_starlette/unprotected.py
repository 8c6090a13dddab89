"""Routes with rules that no middleware of this library reads: a request that they should protect is an error (O-25).

The look happens where an endpoint is called, for requests that no ``IdempotencyMiddleware`` has seen. Those that one
has seen have ``PENDING`` in their scope.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from open_idempotency._asgi import MARK, PENDING, Scope
from open_idempotency._routes.coverage import Route
from open_idempotency._starlette.survey import FRAMEWORKS, Layers, all_rules, endpoint_rules, see_layers
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import Rule, combine, deciding

_logger = logging.getLogger("open_idempotency")
_ABOVE = "open_idempotency.rules_above"
_MISSING = (
    "has a rule (@idempotent or IdempotencyRule), and no IdempotencyMiddleware reads it, so a retry runs again; add "
    "app.add_middleware(IdempotencyMiddleware, backend=...) from open_idempotency.starlette or "
    "open_idempotency.fastapi, with enabled=False in tests that need no protection"
)
_IGNORED = (
    "has a rule (@idempotent or IdempotencyRule), and the middleware that protects it reads none, as it is the one for "
    "plain ASGI, or cannot see into what it wraps; take IdempotencyMiddleware from open_idempotency.starlette or "
    "open_idempotency.fastapi, and put it around the application itself"
)
#: routes that were warned about, and how many are
_warned: set[str] = set()
_MOST = 100


def is_unseen(scope: Scope) -> bool:
    """Whether no middleware of this library that reads rules has seen a request that one may cover."""
    return PENDING not in scope and scope["type"] == "http" and scope["method"].upper() not in NEVER_COVERED


def look_at_route(route: Any, scope: Scope) -> None:
    """Refuse an unseen request if the route's rules ask for protection; note the rules of a mounted application.

    Raises ``ConfigurationError``. Where a layer hides whether a middleware is inside it, a warning is logged instead.
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
    if not asks_for_protection(scope, rules):
        return
    name = f"{scope['method'].upper()} {_path_of(route)}"
    if MARK in scope:
        _warn(name, _IGNORED)
    elif hidden:
        _warn(name, f"{_MISSING}; a layer around it hides whether it has one of its own")
    else:
        raise ConfigurationError(f"{name} {_MISSING}")


def _warn(name: str, said: str) -> None:
    if name not in _warned and len(_warned) < _MOST:
        _warned.add(name)
        _logger.warning("%s %s", name, said)


def asks_for_protection(scope: Scope, rules: tuple[Rule, ...]) -> bool:
    """Whether some rules cover a request that has a key, or that needs one."""
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
    """Whether every layer between a route and its endpoint can be seen."""
    innermost = beneath.app
    return innermost is route.endpoint or str(innermost.__module__).partition(".")[0] in FRAMEWORKS


def _path_of(route: Any) -> str:
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or "(a route without a path)")
