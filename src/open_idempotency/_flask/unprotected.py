"""Marked views in applications without the extension, and Flask's contexts.

A request that a mark should protect is an error in an application without the extension (O-25). For this
``Flask.dispatch_request`` is wrapped once, when the Flask adapter is loaded. In an application with the extension the
wrapper is bypassed.

The names of Flask's contexts are not documented. Flask 2.1 keeps stacks of contexts; later versions have proxies, and
the latest have one kind of context only.
"""

from __future__ import annotations

import functools
import logging
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from flask import Flask, Request, request
from flask import globals as flask_globals

from open_idempotency import rules
from open_idempotency._engine.engine import say_off
from open_idempotency._routes.coverage import Route
from open_idempotency._wsgi import MARK, OFF
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy

if TYPE_CHECKING:
    from werkzeug.local import LocalProxy

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
