"""The Flask extension: it wraps some methods of an application, and runs at the end of each request.

``preprocess_request``: reads the body, before any other function can. ``dispatch_request``: makes the claim, after all
``before_request`` functions, so that the caller is known. ``process_response``: settles the attempt, after all
``after_request`` functions and the session. ``teardown_request``: aborts what ended without a response. ``wsgi_app``:
reports errors of teardown functions, which run after the response was recorded.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flask import Flask, Request, Response, request
from flask import globals as flask_globals

from open_idempotency import rules
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.keys import key_names
from open_idempotency._core.settlement import REPLACED
from open_idempotency._engine.engine import Engine
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._flask.exchange import Exchange, Plain, Route, Setting
from open_idempotency._wsgi.environ import MARK, environ_names, find_key
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy, refuse_unknown
from open_idempotency.rules import Rule, combine, rules_on

if TYPE_CHECKING:
    from werkzeug.local import LocalProxy


Original = Callable[..., Any]

_ATTRIBUTE = "_open_idempotency_exchange"
_CONTEXT = "_open_idempotency_context"
_METHODS = ("POST", "PATCH", "PUT", "DELETE")
_logger = logging.getLogger("open_idempotency")


class Hooks:
    """The wrappers around the methods of one application."""

    def __init__(self, app: Flask, engine: Engine) -> None:
        self._app = app
        self._engine = engine
        self._setting = Setting(app, engine, partial(verified_user, app))
        self._routes: dict[tuple[Rule, ...], Route | None] = {}
        self._looked = False

    def install(self) -> None:
        """Wrap the application's methods, including wrappers of other extensions.

        After this a view whose rule contradicts the policy raises ``ConfigurationError`` when it is added.
        """
        wrappers: dict[str, Original] = {
            "preprocess_request": self._preprocess,
            "dispatch_request": self._dispatch,
            "process_response": self._process,
            "add_url_rule": self._add_url_rule,
            "wsgi_app": self._wsgi_app,
        }
        for endpoint in self._app.view_functions:
            self._check(endpoint)
        for name, wrapper in wrappers.items():
            setattr(self._app, name, partial(wrapper, getattr(self._app, name)))
        self._app.teardown_request(self._teardown)

    # Later versions of Flask pass their context to these methods, so arguments are passed on unchanged.

    def _preprocess(self, original: Original, *args: Any) -> Any:
        here = current_request()
        exchange = self._open(here)
        if exchange is not None:
            setattr(here, _ATTRIBUTE, exchange)
            setattr(here, _CONTEXT, _context())
            exchange.receive()
        return original(*args)

    def _dispatch(self, original: Original, *args: Any) -> Any:
        exchange = _exchange(current_request())
        if exchange is None:
            return original(*args)
        instead = exchange.begin()
        if instead is not None:
            return instead
        try:
            return original(*args)
        except REPLACED as error:
            return exchange.overtaken(error)
        finally:
            exchange.viewed()

    def _process(self, original: Original, *args: Any) -> Response:
        response: Response = original(*args)
        exchange = _exchange(current_request())
        return response if exchange is None else exchange.conclude(response)

    def _teardown(self, error: BaseException | None) -> None:
        here = current_request()
        exchange = _exchange(here)
        # copy_current_request_context ends a copy of the context, while the request goes on.
        if exchange is not None and getattr(here, _CONTEXT) == _context():
            delattr(here, _ATTRIBUTE)
            exchange.end(error)

    def _open(self, here: Request) -> Exchange | Plain | None:
        """The exchange of a covered request; None for a request that passes through."""
        if here.url_rule is None or MARK in here.environ:
            return None
        if not self._looked:
            self._look_late()
        route = self._route(self._app.view_functions.get(here.url_rule.endpoint), here.method)
        if route is None or here.method not in route.policy.methods:
            return None
        key_headers = find_key(here.environ, route.names)
        if not key_headers and not route.policy.required:
            return Plain(self._engine, here, route.policy)
        return Exchange(self._setting, here, route.policy, key_headers)

    def _route(self, view: Any, method: str) -> Route | None:
        found = rules_on(view, method) if rules.in_use else ()
        if found not in self._routes:
            policy = self._engine.policy_for(combine(found))
            self._routes[found] = None if policy is None else Route(policy, environ_names(key_names(policy)))
        return self._routes[found]

    def _wsgi_app(self, original: Original, environ: dict[str, Any], start_response: Any) -> Any:
        try:
            return original(environ, start_response)
        except Exception as error:
            attempt: Attempt | None = environ.get(MARK)
            if attempt is not None:
                report_late_error(attempt, error)
            raise

    # Errors in the views' rules, reported as early as they can be known

    def _add_url_rule(self, original: Original, *args: Any, **options: Any) -> Any:
        before = set(self._app.view_functions)
        added = original(*args, **options)
        for endpoint in self._app.view_functions.keys() - before:
            self._check(endpoint)
        return added

    def _check(self, endpoint: str) -> None:
        view = self._app.view_functions[endpoint]
        for method in _METHODS:
            try:
                self._route(view, method)
            except ConfigurationError as error:
                raise ConfigurationError(f"@idempotent on the view {endpoint!r}: {error}") from None

    def _look_late(self) -> None:
        """Log, at the first request, what is wrong with rules that were added after their views."""
        self._looked = True
        for endpoint in self._app.view_functions:
            try:
                self._check(endpoint)
            except ConfigurationError as error:
                _logger.error("this view will respond with 500: %s", error)


def _exchange(here: Request) -> Exchange | Plain | None:
    exchange: Exchange | Plain | None = getattr(here, _ATTRIBUTE, None)
    return exchange


def _context() -> int:
    """Which context of the request this is. Later versions of Flask have one kind of context only."""
    names = vars(flask_globals)
    return id(names.get("request_ctx", names["app_ctx"])._get_current_object())


def current_request() -> Request:
    """The request object behind Flask's proxy."""
    proxy = cast("LocalProxy[Request]", request)
    return proxy._get_current_object()  # pyright: ignore[reportPrivateUsage]


def verified_user(app: Flask, here: Request) -> str | None:
    """Flask-Login's user if the application uses it, else the user that the server verified."""
    if not hasattr(app, "login_manager"):
        return here.remote_user or None
    login: Any = sys.modules.get("flask_login")
    if login is None or not login.current_user.is_authenticated:
        return None
    identity = login.current_user.get_id()
    return None if identity is None else str(identity)


KEY = "open_idempotency"
PREFIX = "IDEMPOTENCY_"


class Idempotency:
    """Protects the views of Flask applications: ``Idempotency(app, backend="sqlite:///idempotency.db")``.

    ``backend``: a URL or an instance. ``policy`` and ``fields``: an ``IdempotencyPolicy``, its fields, or both. Missing
    ones are read from ``app.config``: ``IDEMPOTENCY_BACKEND``, ``IDEMPOTENCY_LEASE`` and so on, one key for each policy
    field; a whole ``policy`` replaces all fields there. Without an application, call ``init_app`` once for each
    application. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        app: Flask | None = None,
        backend: Given | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        **fields: Any,
    ) -> None:
        refuse_unknown(fields)
        if app is not None and not hasattr(app, "extensions"):
            raise ConfigurationError(
                f"the first argument is the Flask application, not {type(app).__name__}; the backend is backend=..."
            )
        self._backend = backend
        self._policy = policy
        self._fields = fields
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Protect one more application. Its engine is then ``app.extensions["open_idempotency"]``.

        Raises ``ConfigurationError`` for wrong options, and for an application that is protected already.
        """
        if KEY in app.extensions:
            raise ConfigurationError("open_idempotency: this application is initialised already")
        backend, fields = read_config(app.config)
        if self._policy is not None:
            fields = {}
        if self._backend is not None:
            backend = self._backend
        if backend is None:
            raise ConfigurationError(
                'backend: none given; pass a URL such as backend="sqlite:///idempotency.db", '
                f'or set app.config["{PREFIX}BACKEND"]'
            )
        engine = Engine(backend, self._policy, {**fields, **self._fields}, threads=True)
        Hooks(app, engine).install()
        app.extensions[KEY] = engine


def read_config(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The backend and the policy fields in an application's configuration. Raises ``ConfigurationError``."""
    found = {key: value for key, value in config.items() if key.startswith(PREFIX)}
    backend = found.pop(f"{PREFIX}BACKEND", None)
    fields: dict[str, Any] = {}
    for key, value in found.items():
        name = key[len(PREFIX) :].lower()
        try:
            refuse_unknown([name])
        except ConfigurationError as error:
            raise ConfigurationError(f"{key}: {error}") from None
        fields[name] = value
    return backend, fields
