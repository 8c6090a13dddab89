"""Inspection of a Flask application before its first view runs: its rules, and extensions that change responses.

A warning names extensions that change stored responses (R-12). Functions of ``after_request`` run for every response,
problems and replays too, so CORS for the whole application is right in any order. CORS for one view runs only with the
view. Compression by ``after_request`` runs before the response is stored.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule as UrlRule

from open_idempotency._engine.engine import Covered
from open_idempotency._routes.coverage import Coverages, CoveredPaths, PathRules
from open_idempotency._routes.survey import COMPRESSION_INSIDE, Effects, FlaskCORS, allows_pages, kind_of, layer_of
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import Rule, own_rules_on, rules_on

#: methods that Flask handles itself for every view
_ADDED = frozenset({"HEAD", "OPTIONS"})


def look_over(app: Flask, covers: Callable[[str, str, tuple[Rule, ...]], bool]) -> tuple[Effects, bool]:
    """The effects of all views' rules, and whether anything is covered.

    ``covers``: called with a path as its URL rule is written, a method and the rules of the view.
    """
    effects, any_covered = Effects(), False
    for rule in app.url_map.iter_rules():
        view = app.view_functions.get(rule.endpoint)
        listed: set[str] = set(rule.methods or ())
        for method in sorted(listed - _ADDED) or sorted(listed):
            found = rules_on(view, method)
            covered = covers(rule.rule, method, found)
            any_covered = any_covered or covered
            effects.note(method, rule.rule, view, found, own_rules_on(view, method), covered)
    return effects, any_covered


class CoveredViews(CoveredPaths):
    """The views of an application that are covered."""

    def __init__(self, coverages: Coverages, paths: PathRules | None, app: Flask) -> None:
        super().__init__(coverages, paths)
        self._app = weakref.ref(app)

    def every(self) -> Iterator[Covered]:
        """See ``Covering``."""
        app = self._app()
        for rule in () if app is None else app.url_map.iter_rules():
            for method in sorted(set(rule.methods or ()) - NEVER_COVERED):
                policy = self._policy_at(app, rule, method, rule.rule)
                if policy is not None:
                    yield Covered(method, rule.rule, policy)

    def at(self, method: str, path: str) -> IdempotencyPolicy | None:
        """See ``Covering``. ``path`` may also be the template of a route."""
        app = self._app()
        if app is None:
            return None
        rule: UrlRule | None
        try:
            rule, _ = app.url_map.bind("localhost").match(path, method=method, return_rule=True)
        except HTTPException:
            named = (each for each in app.url_map.iter_rules() if each.rule == path and method in (each.methods or ()))
            rule = next(named, None)
        return None if rule is None else self._policy_at(app, rule, method, path)

    def _policy_at(self, app: Any, rule: UrlRule, method: str, path: str) -> IdempotencyPolicy | None:
        found = rules_on(app.view_functions.get(rule.endpoint), method)
        return self.policy_of(method, (*self.by_path(method, path), *found))


# Extensions that change stored responses

_logger = logging.getLogger("open_idempotency")
_CROSS_ORIGIN = "flask_cors.decorator"
#: how many views a warning names
_NAMED = 5


def warn_of_compression(functions: Iterable[Any]) -> bool:
    """Log a warning if one of these ``after_request`` functions compresses. Returns whether one does."""
    for layer in map(layer_of, functions):
        if kind_of(layer) == "compression":
            _logger.warning(COMPRESSION_INSIDE, layer.__name__)
            return True
    return False


def warn_of_views(app: Flask, policy_of: Callable[[Any], IdempotencyPolicy | None]) -> None:
    """Log a warning that names the covered views whose CORS headers are missing from problems.

    ``policy_of``: returns the policy of a view; None if it is not covered.
    """
    if FlaskCORS in map(layer_of, app.after_request_funcs.get(None, ())):
        return
    alone: list[str] = []
    for endpoint, view in app.view_functions.items():
        policy = policy_of(view) if _is_cross_origin(view) else None
        if policy is not None and not allows_pages(policy):
            alone.append(endpoint)
    if alone:
        further = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
        _logger.warning(
            "@cross_origin on %s%s: problems (400, 409, 422 and others) are sent without calling the view, so they "
            "have no CORS headers, and no page of another origin can read them. Name the headers by problem_headers=, "
            "or use CORS(app, resources=...)",
            ", ".join(alone[:_NAMED]),
            further,
        )


def after_request_functions(app: Flask) -> Iterator[Any]:
    """The functions of the application and of its blueprints."""
    return chain.from_iterable(app.after_request_funcs.values())


def _is_cross_origin(view: Any) -> bool:
    """Whether Flask-CORS's decorator is around a view. Its wrapper has the name and module of the view."""
    while view is not None:
        if getattr(view, "__globals__", {}).get("__name__") == _CROSS_ORIGIN:
            return True
        view = getattr(view, "__wrapped__", None)
    return False
