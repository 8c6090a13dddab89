"""The Flask extension, which wraps some methods of an application, and its decorator ``@idempotent``.

- ``preprocess_request``: reads the body before any other function.
- ``dispatch_request``: makes the claim, after all ``before_request`` functions, so that the caller is known.
- ``process_response``: settles the attempt, after all ``after_request`` functions and the session.
- ``do_teardown_request``: aborts an attempt that ended without a response, whatever the teardown functions raise.

``do_teardown_request`` and ``do_teardown_appcontext`` report errors of teardown functions, which run after the response
was recorded.

Nothing here holds a reference to the application, so it is freed with its last reference. The decorator sets a view's
rule, and marks the view for decorators above it.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from inspect import ismethod
from typing import Any, TypeVar, overload

from flask import Flask, Request, Response, has_request_context

from open_idempotency import rules
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.settlement import REPLACED
from open_idempotency._engine.engine import COVERING, Engine
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._flask.exchange import Exchange, Plain, Setting
from open_idempotency._flask.survey import (
    KEY,
    PREFIX,
    CoveredViews,
    after_request_functions,
    app_context,
    current_request,
    look_over,
    method_of,
    request_context,
    uninitialised,
    warn_of_compression,
    warn_of_views,
)
from open_idempotency._routes.coverage import Coverages, PathRules, mark_view, spelling
from open_idempotency._wsgi import MARK, find_key, octets
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy, refuse_unknown
from open_idempotency.rules import Rule, RulesByPath, rules_on

# A method of the application as a function, whose first argument is the application.
Original = Callable[..., Any]

_ATTRIBUTE = "_open_idempotency_exchange"
_ATTEMPT = "_open_idempotency_attempt"
_CONTEXT = "_open_idempotency_context"
_METHODS = ("POST", "PATCH", "PUT", "DELETE")
_logger = logging.getLogger("open_idempotency")


class Hooks:
    """The wrappers around the methods of one application."""

    def __init__(self, app: Flask, engine: Engine, paths: RulesByPath | None = None) -> None:
        self._app = weakref.ref(app)
        self._engine = engine
        self._off = not engine.policy.enabled
        self.coverages = Coverages(engine)
        self.paths = PathRules(paths, self.coverages) if paths else None
        self._setting = Setting(self._app, engine)
        self._looked = False
        self._config = _settings(app.config)
        # a compressing layer was found and reported
        self._compresses = False

    def install(self, app: Flask) -> None:
        """Wrap the application's methods, including wrappers of other extensions.

        After this a view whose rule contradicts the policy raises ``ConfigurationError`` when it is added.
        """
        wrappers: dict[str, Original] = {
            "preprocess_request": self._preprocess,
            "dispatch_request": self._dispatch,
            "process_response": self._process,
            "add_url_rule": self._add_url_rule,
            "after_request": self._after_request,
            "do_teardown_request": self._tear_down_request,
            "do_teardown_appcontext": self._tear_down,
        }
        warn_of_release()
        for endpoint, view in app.view_functions.items():
            self._check(endpoint, view)
        self._compresses = warn_of_compression(after_request_functions(app))
        for name, wrapper in wrappers.items():
            setattr(app, name, partial(wrapper, _function(app, name)))

    # Later versions of Flask pass their context to these methods, so arguments are passed on unchanged.

    def _preprocess(self, original: Original, *args: Any) -> Any:
        here = current_request()
        exchange = self._open(here)
        if exchange is not None:
            setattr(here, _ATTRIBUTE, exchange)
            setattr(here, _CONTEXT, id(request_context()))
            exchange.receive()
        return original(self._app(), *args)

    def _dispatch(self, original: Original, *args: Any) -> Any:
        exchange = _exchange(current_request())
        if exchange is None:
            return original(self._app(), *args)
        instead = exchange.begin()
        # The request is gone when the teardown functions of the application's context run.
        setattr(app_context(), _ATTEMPT, exchange.attempt)
        if instead is not None:
            return instead
        try:
            return original(self._app(), *args)
        except REPLACED as error:
            return exchange.overtaken(error)
        finally:
            exchange.viewed()

    def _process(self, original: Original, *args: Any) -> Response:
        response: Response = original(self._app(), *args)
        exchange = _exchange(current_request())
        return response if exchange is None else exchange.conclude(response)

    def _tear_down_request(self, original: Original, *args: Any) -> None:
        try:
            self._tear_down(original, *args)
        finally:  # not a teardown_request function: it would not run if an earlier one raises
            self._end(next((each for each in args if isinstance(each, BaseException)), None))

    def _end(self, error: BaseException | None) -> None:
        here = current_request()
        exchange = _exchange(here)
        # copy_current_request_context ends a copy of the context while the request continues.
        if exchange is not None and getattr(here, _CONTEXT) == id(request_context()):
            delattr(here, _ATTRIBUTE)
            exchange.end(error)

    def _open(self, here: Request) -> Exchange | Plain | None:
        """The exchange of a covered request; None for a request that passes through."""
        if here.url_rule is None or MARK in here.environ:
            return None
        if not self._looked:
            self._look_late()
        if self._off:
            return Plain(self._engine, here, self._engine.policy)
        view = self._setting.app.view_functions.get(here.url_rule.endpoint)
        found = rules_on(view, here.method) if self._engine.rules.in_use else ()
        if self.paths is not None:
            path = octets(here.environ.get("PATH_INFO", "")).decode("utf-8", "replace")
            found = (*self.paths.find(here.method, path), *found)
        route = self.coverages.by(found)
        if route is None or here.method not in route.policy.methods:
            return None
        key_headers = find_key(here.environ, route.environ_names)
        if not key_headers and not route.always:
            for name in route.environ_spellings:
                if name in here.environ:
                    spelling.warn(name, route.policy)
            return Plain(self._engine, here, route.policy)
        return Exchange(self._setting, here, route.policy, key_headers)

    def _tear_down(self, original: Original, *args: Any) -> None:
        try:
            original(self._app(), *args)
        except Exception as error:
            attempt = _attempt()
            if attempt is not None:
                report_late_error(attempt, error)
            raise

    # What is wrong with the application, reported as early as it can be known

    def _after_request(self, original: Original, function: Any) -> Any:
        self._compresses = self._compresses or warn_of_compression([function])
        return original(self._app(), function)

    def _add_url_rule(self, original: Original, *args: Any, **options: Any) -> Any:
        views = self._setting.app.view_functions
        before = set(views)
        added = original(self._app(), *args, **options)
        for endpoint in views.keys() - before:
            self._check(endpoint, views[endpoint])
        return added

    def _check(self, endpoint: str, view: Any) -> None:
        for method in _METHODS:
            try:
                self.coverages.by(rules_on(view, method))
            except ConfigurationError as error:
                raise ConfigurationError(f"@idempotent on the view {endpoint!r}: {error}") from None

    def _policy_of(self, view: Any) -> IdempotencyPolicy | None:
        """The policy of a covered view, by any method; None if it is not covered or its rules are wrong."""
        try:
            routes = [(method, self.coverages.by(rules_on(view, method))) for method in _METHODS]
        except ConfigurationError:
            return None
        return next((route.policy for method, route in routes if route and method in route.policy.methods), None)

    def _look_late(self) -> None:
        """Check all views at the first request, when decorators that were applied late are known.

        Rules that contradict the policy are logged. Raises ``ConfigurationError``, for this and all later requests, for
        rules without an effect, and for settings that were changed after they were read.
        """
        app = self._setting.app
        now = _settings(app.config)
        late = sorted(key for key in now.keys() | self._config.keys() if now.get(key) is not self._config.get(key))
        if late:
            raise ConfigurationError(
                f"app.config: {', '.join(late)} changed after Idempotency(app) had read the settings, so the "
                "change has no effect; set it before, or call init_app(app) when the configuration is complete"
            )
        effects, covered = look_over(app, self._covers)
        complaint = effects.complaint()
        if complaint is not None:
            raise ConfigurationError(complaint)
        self._looked = True
        self._compresses = self._compresses or warn_of_compression(after_request_functions(app))
        warn_of_views(app, self._policy_of)
        for endpoint, view in app.view_functions.items():
            try:
                self._check(endpoint, view)
            except ConfigurationError as error:
                _logger.error("this view will respond with 500: %s", error)
        if self.coverages.marked_only and not covered and not self._off:
            _logger.warning('cover="marked" covers nothing: no view is marked, and no rule by path fits one')
        for said in effects.lost():
            _logger.warning("%s", said)

    def _covers(self, path: str, method: str, found: tuple[Rule, ...]) -> bool:
        """Whether requests of this method to this path are covered. ``path``: as its URL rule is written."""
        if self.paths is not None:
            found = (*self.paths.find(method, path), *found)
        try:
            route = self.coverages.by(found)
        except ConfigurationError:
            return True  # reported elsewhere
        return route is not None and method in route.policy.methods


def _exchange(here: Request) -> Exchange | Plain | None:
    exchange: Exchange | Plain | None = getattr(here, _ATTRIBUTE, None)
    return exchange


def _attempt() -> Attempt | None:
    """The attempt of the request that ends now, or whose application context ends now."""
    if has_request_context():
        of_request: Attempt | None = current_request().environ.get(MARK)
        return of_request
    of_context: Attempt | None = getattr(app_context(), _ATTEMPT, None)
    return of_context


def _function(app: Flask, name: str) -> Original:
    """A method of the application as a function; a wrapper of another extension is called as it is."""
    method = method_of(app, name)
    if ismethod(method) and method.__self__ is app:
        return method.__func__

    def call(app: Flask, *args: Any, **options: Any) -> Any:
        return method(*args, **options)

    return call


class Idempotency:
    """Protects the views of Flask applications: ``Idempotency(app, backend="sqlite:///idempotency.db")``.

    ``backend``: a URL or an instance. ``policy`` and ``fields``: an ``IdempotencyPolicy``, its fields, or both. Missing
    ones are read from ``app.config``: ``IDEMPOTENCY_BACKEND``, ``IDEMPOTENCY_LEASE`` and so on, one key for each policy
    field. A ``policy`` replaces all of these fields. ``rules``, or ``IDEMPOTENCY_RULES``: paths, each with policy
    fields of its own, such as ``{"/payments/*": {"required": True}, "POST /ping": exempt}``. Without an application,
    call ``init_app`` once for each application. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        app: Flask | None = None,
        backend: Given | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        rules: RulesByPath | None = None,
        **fields: Any,
    ) -> None:
        refuse_unknown(fields)
        if app is not None and not hasattr(app, "extensions"):
            raise ConfigurationError(
                f"the first argument is the Flask application, not {type(app).__name__}; the backend is backend=..."
            )
        self._backend = backend
        self._policy = policy
        self._rules = rules
        self._fields = fields
        if app is not None:
            self.init_app(app)
        elif fields.get("enabled") is not False:
            uninitialised.add(self)

    def init_app(self, app: Flask) -> None:
        """Protect one more application. Its engine is then ``app.extensions["open_idempotency"]``.

        Raises ``ConfigurationError`` for wrong options, and for an application that is protected already.
        """
        uninitialised.discard(self)
        if KEY in app.extensions:
            raise ConfigurationError("open_idempotency: this application is initialised already")
        backend, paths, fields = read_config(app.config)
        if self._policy is not None:
            fields = {}
        if self._backend is not None:
            backend = self._backend
        if self._rules is not None:
            paths = self._rules
        off = {**fields, **self._fields}.get("enabled") is False
        if backend is None and not off:
            raise ConfigurationError(
                'backend: none given; pass a URL such as backend="sqlite:///idempotency.db", '
                f'or set app.config["{PREFIX}BACKEND"]'
            )
        engine = Engine(backend, self._policy, {**fields, **self._fields}, threads=True)
        hooks = Hooks(app, engine, paths)
        hooks.install(app)
        app.extensions[COVERING] = CoveredViews(hooks.coverages, hooks.paths, app)
        app.extensions[KEY] = engine


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key.startswith(PREFIX)}


def read_config(config: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The backend, the rules by path and the policy fields in an application's configuration.

    Raises ``ConfigurationError``.
    """
    found = _settings(config)
    backend, paths = found.pop(f"{PREFIX}BACKEND", None), found.pop(f"{PREFIX}RULES", None)
    fields: dict[str, Any] = {}
    for key, value in found.items():
        name = key[len(PREFIX) :].lower()
        try:
            refuse_unknown([name])
        except ConfigurationError as error:
            raise ConfigurationError(f"{key}: {error}") from None
        fields[name] = value
    return backend, paths, fields


# The decorator of views

V = TypeVar("V", bound=Callable[..., Any])


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(**fields: Any) -> Callable[[V], V]: ...


def idempotent(view: Any = None, /, **fields: Any) -> Any:
    """Give a view its own policy fields, such as ``@idempotent(required=True, ttl=3600)``.

    Put it below the decorators that refuse callers (``login_required``, ``roles_required``). Decorators above it run
    for every try, also before a stored response is sent, and their refusal is sent instead. The fields of a class apply
    to all its methods; no decorator counts as above the mark of a class. ``fields``: policy fields, as
    ``open_idempotency.rules.idempotent`` takes them.

    Returns the view; for a function, a function that calls it. Raises ``ConfigurationError``. A request with a key, or
    that needs one, raises it too in an application without ``Idempotency``.
    """
    mark = rules.idempotent(**fields)

    def decorate(marked: Any) -> Any:
        return mark_view(mark(marked), _find_request)

    return decorate if view is None else decorate(view)


def _find_request() -> object:
    """The request of this context, which a decorator may have copied into a thread; None without one."""
    return current_request() if has_request_context() else None


# Whether this release of Flask calls the methods that the extension wraps.
# The methods are public, and subclasses may override them, but Flask does not document which of its methods calls
# which. A release that no longer calls them would run requests unprotected, and nothing else would show it. No other
# way is as safe: ``before_request`` functions of blueprints run after those of the application, so a claim in such a
# function may not know the caller yet.

#: for each method of Flask, the wrapped methods that it calls
CALLED = {
    "full_dispatch_request": ("preprocess_request", "dispatch_request"),
    "finalize_request": ("process_response",),
}
_logger = logging.getLogger("open_idempotency")
_warned_of: list[str] = []


def warn_of_release() -> None:
    """Warn, once in each process, if Flask does not call a wrapped method where it always has."""
    missing = [name for caller, names in CALLED.items() for name in names if name not in _names_in(caller)]
    if not missing or _warned_of:
        return
    _warned_of.extend(missing)
    _logger.warning(
        "Flask %s may not call %s, which this extension wraps, so requests may run unprotected: test that a retry is "
        "replayed, and install an older release of Flask, or a later one of open-idempotency, if it is not",
        version("flask"),
        ", ".join(f"{name}()" for name in missing),
    )


def _names_in(method: str) -> tuple[str, ...]:
    """The names that a method of Flask uses; if another library has wrapped it, those of the wrapped method."""
    function: Any = inspect.unwrap(getattr(Flask, method, warn_of_release))
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_names", ())
    return names
