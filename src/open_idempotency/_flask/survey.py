"""Inspection of a Flask application before its first view runs: its rules, and extensions that change responses.

A warning names extensions that change stored responses (R-12). Functions of ``after_request`` run for every response,
problems and replays too, so CORS for the whole application is right in any order. CORS for one view runs only with the
view. Compression by ``after_request`` runs before the response is stored.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from flask import Flask, Request, request
from flask import globals as flask_globals
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule as UrlRule

from open_idempotency import rules
from open_idempotency._engine.engine import Covered, say_off
from open_idempotency._routes.coverage import Coverages, CoveredPaths, PathRules, Route
from open_idempotency._routes.survey import COMPRESSION_INSIDE, Effects, FlaskCORS, allows_pages, kind_of, layer_of
from open_idempotency._wsgi import MARK, OFF
from open_idempotency.exceptions import ConfigurationError
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


if TYPE_CHECKING:
    from werkzeug.local import LocalProxy

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


# Marked views in applications without the extension, and Flask's contexts.
# A request that a mark should protect is an error in an application without the extension (O-25). For this
# ``Flask.dispatch_request`` is wrapped once, when the Flask adapter is loaded. In an application with the extension the
# wrapper is bypassed.
# The names of Flask's contexts are not documented. Flask 2.1 keeps stacks of contexts; later versions have proxies, and
# the latest have one kind of context only.

# Flask's contexts, in each of its versions

_NAMES = vars(flask_globals)


def current_request() -> Request:
    """The request object behind Flask's proxy."""
    proxy = cast("LocalProxy[Request]", request)
    return proxy._get_current_object()  # pyright: ignore[reportPrivateUsage]  # documented by Werkzeug


def request_context() -> Any:
    """The context of the current request, or the single context of the latest versions; None without one."""
    return _current("request_ctx", "_request_ctx_stack") or app_context()


def app_context() -> Any:
    """The current context of the application; None without one."""
    return _current("app_ctx", "_app_ctx_stack")


def _current(proxy: str, stack: str) -> Any:
    # looked up by name, since a later version warns about deprecated names
    if proxy in _NAMES:
        try:
            return _NAMES[proxy]._get_current_object()
        except RuntimeError:  # there is none
            return None
    return _NAMES[stack].top if stack in _NAMES else None


# Marked views without the extension (O-25)

#: the extension's entry in ``app.extensions``, and the prefix of its settings
KEY = "open_idempotency"
PREFIX = "IDEMPOTENCY_"
_OWN = "_open_idempotency_original"
_logger = logging.getLogger("open_idempotency")
#: extensions that were made without an application, and whose ``init_app`` was not called yet; the first request of an
#: application without an extension empties it
uninitialised: set[object] = set()
#: routes that were warned about, and how many are
_warned: set[str] = set()
_MOST = 100


def hook() -> None:
    """Wrap ``Flask.dispatch_request``, once."""
    original = Flask.dispatch_request
    if hasattr(original, _OWN):
        return

    @functools.wraps(original)
    def dispatch_or_refuse(self: Flask, *args: Any) -> Any:
        # Later versions of Flask pass their context, so arguments are passed on unchanged.
        if rules.registry.in_use and KEY not in self.extensions:
            _refuse_unprotected(self, current_request())
        if uninitialised and KEY not in self.extensions:
            uninitialised.clear()
            _logger.warning(
                "%r has no idempotency extension, and an Idempotency(...) without an application was made whose "
                "init_app(app) was never called, so it protects nothing and retries run again; call init_app(app) "
                "where the application is made",
                self,
            )
        return original(self, *args)

    setattr(dispatch_or_refuse, _OWN, original)
    Flask.dispatch_request = dispatch_or_refuse  # type: ignore[method-assign]  # wrapped on purpose


def method_of(app: Flask, name: str) -> Any:
    """A method of an application without the wrapper of this module."""
    method = getattr(app, name)
    original = getattr(method, _OWN, None)
    return method if original is None else MethodType(original, app)


def _refuse_unprotected(app: Flask, here: Request) -> None:
    """Raise ``ConfigurationError`` for a request that the rules of its view cover, as no extension reads them.

    Warns instead, once for each route, where a middleware for WSGI protects the request: it reads no rules of views.
    """
    view = None if here.url_rule is None else app.view_functions.get(here.url_rule.endpoint)
    rule = rules.combine(rules.rules_on(view, here.method))
    if rule is not None and MARK in here.environ and rules.changes(rule, here.environ[MARK].policy):
        _warn_of_unread(f"{here.method} {here.url_rule}")
    if rule is None or rule.exempt or MARK in here.environ or OFF in here.environ:
        return
    if app.config.get(f"{PREFIX}ENABLED") is False:
        say_off()
        return
    policy = IdempotencyPolicy(**rules.deciding(rule))
    route = Route.of(policy)
    keyed = any(name in here.environ for name, _ in route.environ_names)
    if here.method in policy.methods and (keyed or route.always):
        raise ConfigurationError(
            f"{here.method} {here.url_rule}: the view is marked with @idempotent, and the application has no "
            'extension that reads it, so a retry runs again; add Idempotency(app, backend="...") from '
            "open_idempotency.flask, with enabled=False in tests that need no protection"
        )


def _warn_of_unread(name: str) -> None:
    if name not in _warned and len(_warned) < _MOST:
        _warned.add(name)
        _logger.warning(
            "%s: the view has a rule (@idempotent or @exempt) that has no effect: the middleware that protects it is "
            'the one for WSGI, and reads none; use Idempotency(app, backend="...") from open_idempotency.flask instead',
            name,
        )


hook()
