"""Checks when an application starts: rules without an effect, and layers that belong outside.

A rule has no effect on a route whose methods are not covered, and on a function that no route leads to.

CORS and compression belong outside the middleware (R-12). The first client's response passes through an inner layer
before it is stored; the library's own responses do not. So a problem would have no CORS headers, and no script of
another origin could read it. A body that was compressed for the first client would be sent to clients that cannot
decode it.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy, pairs_of
from open_idempotency.rules import Rule, marks

# The application inside a middleware

_CALL = "__call__"


def refuse_wsgi(app: Any) -> None:
    """Raise ``ConfigurationError`` if ``app`` cannot be called as an ASGI application, such as a WSGI application."""
    if _takes(app, 3):
        return
    if _takes(app, 2):
        raise ConfigurationError(
            f"app: {_kind(app)} is called with (environ, start_response), as WSGI applications are, and this "
            "IdempotencyMiddleware is for ASGI; use open_idempotency.wsgi around it, or in Flask Idempotency(app) from "
            "open_idempotency.flask"
        )
    raise ConfigurationError(
        f"app: {_kind(app)} cannot be called with (scope, receive, send), as ASGI applications are"
    )


def refuse_asgi(app: Any) -> None:
    """Raise ``ConfigurationError`` if ``app`` cannot be called as a WSGI application, such as an ASGI application."""
    awaited = inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(type(app), _CALL, None))
    if not awaited and _takes(app, 2):
        return
    if awaited or _takes(app, 3):
        raise ConfigurationError(
            f"app: {_kind(app)} is called with (scope, receive, send), as ASGI applications are, and this "
            "IdempotencyMiddleware is for WSGI; use the one of open_idempotency.fastapi, .starlette or .asgi"
        )
    raise ConfigurationError(f"app: {_kind(app)} cannot be called with (environ, start_response), as WSGI requires")


def _takes(app: Any, count: int) -> bool:
    """Whether a callable takes this many positional arguments; true if Python does not know."""
    if not callable(app):
        return False
    try:
        # The wrapped function may take other arguments than the decorated one.
        signature = inspect.signature(app, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _kind(app: Any) -> str:
    """The name of a function, or of the class of anything else."""
    return str(getattr(app, "__qualname__", None) or type(app).__qualname__)


# Rules without an effect

#: how many layers of functions are inspected for marks
_DEEPEST = 5
_NEVER = NEVER_COVERED | {"WEBSOCKET"}
_VERBS = ("get", "post", "put", "patch", "delete")
#: attributes in which layers keep the callable below
_KEPT = ("__wrapped__", "__func__", "func", "view_class", "cls", "__self__")


class Effects:
    """The rules of one application's routes."""

    def __init__(self) -> None:
        self._effective: set[Rule] = set()
        self._named: dict[Rule, list[str]] = {}
        self._methods: dict[Rule, set[str]] = {}
        self._reached: set[int] = set()
        self._endpoints: dict[int, tuple[str, Any]] = {}

    def note(
        self, method: str, path: str, endpoint: Any, rules: Iterable[Rule], own: Iterable[Rule], covered: bool
    ) -> None:
        """Note one method of one route. ``rules``: all that apply; ``own``: those that belong only to this route.

        ``covered``: whether requests of this method are covered.
        """
        name = f"{method} {path}"
        rules = tuple(rules)
        self._reached.update(map(id, (*rules, *_layers(endpoint))))
        self._endpoints.setdefault(id(endpoint), (name, endpoint))
        if covered:
            self._effective.update(rules)
        for rule in own:
            self._named.setdefault(rule, []).append(name)
            self._methods.setdefault(rule, set()).add(method)

    def complaint(self) -> str | None:
        """The error for rules on routes without a covered method; None if each rule has an effect."""
        found: list[str] = []
        for rule, routes in self._named.items():
            if rule not in self._effective:
                coverable = sorted(self._methods[rule] - _NEVER)
                cure = (
                    f"add methods={coverable!r} to the rule, or remove it"
                    if coverable
                    else "such requests never are, whatever methods= says, so remove it"
                )
                found.append(f"{', '.join(routes)}: the rule has no effect, as no method here is covered; {cure}")
        return "; ".join(found) or None

    def reaches(self, marked: Any) -> bool:
        """Whether a route leads to a marked function or class, directly or by its rule."""
        rule = marks(marked)
        if {id(marked), *map(id, _layers(marked))} & self._reached:
            return True
        return rule is not None and not rule.exempt and id(rule) in self._reached

    def lost(self) -> Iterator[str]:
        """Warnings of marked functions that an endpoint calls or wraps, and that no route leads to."""
        warned: set[int] = set()
        for name, endpoint in self._endpoints.values():
            for marked in _marked_below(endpoint, {id(endpoint)}, _DEEPEST):
                if id(marked) in warned or self.reaches(marked):
                    continue
                warned.add(id(marked))
                yield (
                    f"{marked.__module__}.{marked.__qualname__} is marked, and no route leads to the mark, so it has "
                    f"no effect: the endpoint of {name} calls or wraps it. Mark the function that is given to the "
                    "route, and use functools.wraps in a decorator between them"
                )


def _layers(view: Any) -> Iterator[Any]:
    """A view and the callables inside its layers, methods of classes included."""
    waiting, known = [view], set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in known or isinstance(each, ModuleType):
            continue
        known.add(id(each))
        yield each
        if isinstance(each, type):
            waiting += [getattr(each, verb, None) for verb in _VERBS]
        else:
            waiting += [getattr(each, name, None) for name in _KEPT]


def _marked_below(view: Any, known: set[int], depth: int) -> Iterator[Any]:
    """The marked functions and classes that a view refers to by its closure, its globals or its attributes."""
    if not depth:
        return
    for each in _referred(view):
        if id(each) in known or not _may_be_marked(each, view):
            continue
        known.add(id(each))
        function = getattr(each, "__func__", each)
        if marks(function) is not None and hasattr(function, "__qualname__"):
            yield function
        elif not issubclass(type(each), type) and _package(each) == _package(view):
            yield from _marked_below(each, known, depth - 1)


def _may_be_marked(each: Any, view: Any) -> bool:
    """Whether a view refers to a function, a class, or a callable object of the application.

    Only the type is inspected: reading an attribute would resolve a proxy, such as the current user.
    """
    kind = type(each)
    if issubclass(kind, FunctionType | MethodType | functools.partial | type):
        return True
    return callable(each) and _package(kind) == _package(view)


def _referred(view: Any) -> Iterator[Any]:
    if isinstance(view, functools.partial):
        yield view.func
        return
    if isinstance(view, type):
        for verb in _VERBS:
            yield from _referred(getattr(view, verb, None))
        return
    function = getattr(view, "__func__", view)
    if not isinstance(function, FunctionType):
        # A callable object, such as a decorator written as a class.
        yield from getattr(function, "__dict__", {}).values()
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet filled
            continue
    names = set(_names_in(function.__code__))
    for name in names:
        found = function.__globals__.get(name)
        yield found
        if issubclass(type(found), ModuleType):
            yield from (vars(found).get(other) for other in names)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _package(holder: Any) -> str:
    while isinstance(holder, functools.partial):
        holder = holder.func
    return str(getattr(holder, "__module__", "")).partition(".")[0]


# Layers inside that belong outside

_logger = logging.getLogger("open_idempotency")

#: how many nested layers are inspected
_DEEPEST_LAYER = 100
# Recognised by parts of their names in any case, since derived and similar classes have such names too.
_KINDS = {
    "cors": re.compile(r"CORS(\w*Middleware)?$", re.IGNORECASE),
    "compression": re.compile(r"(?<!de)(GZip|Brotli|Zstd|Deflate|Compress|Compression)(Middleware)?$", re.IGNORECASE),
}
# Attributes in which layers of ASGI and WSGI keep the wrapped application.
_WRAPPED = ("app", "wsgi_app", "application")

CORS_INSIDE = (
    "%s is inside IdempotencyMiddleware: problems (400, 409, 422 and others) have no CORS headers, so no page of "
    "another origin can read them, and a replay has them only for the origin of the first request. Put it around "
    "IdempotencyMiddleware, or name the headers by problem_headers="
)
COMPRESSION_INSIDE = (
    "%s is inside IdempotencyMiddleware: what it compresses for the first client is stored, and sent to clients that "
    "cannot read it. Put it around IdempotencyMiddleware, or leave compression to the server in front"
)


def allows_pages(policy: IdempotencyPolicy) -> bool:
    """Whether the policy's ``problem_headers`` let pages of another origin read a problem."""
    return any(name.lower() == "access-control-allow-origin" for name, _ in pairs_of(policy.problem_headers))


def warn_of_layers(layers: Iterable[type], policy: IdempotencyPolicy) -> None:
    """Log one warning for each kind of inner layer that belongs outside. ``layers``: classes of layers."""
    found: dict[str, str] = {}
    for layer in layers:
        kind = kind_of(layer)
        if kind is not None:
            found.setdefault(kind, layer.__name__)
    if "cors" in found and not allows_pages(policy):
        _logger.warning(CORS_INSIDE, found["cors"])
    if "compression" in found:
        _logger.warning(COMPRESSION_INSIDE, found["compression"])


def kind_of(layer: type) -> str | None:
    """``cors`` or ``compression`` by the names of a class and its bases; None for any other class."""
    names = [base.__name__ for base in layer.__mro__]
    return next((kind for kind, named in _KINDS.items() if any(map(named.search, names))), None)


def layers_inside(app: Any, ours: type, depth: int = _DEEPEST_LAYER) -> Iterator[type]:
    """The classes of the layers of an ASGI or WSGI application, and of the applications that its routes lead to.

    The search ends at another middleware of this library, ``ours``: the innermost one protects, and checks for itself.
    """
    seen: set[int] = set()
    for _ in range(depth):
        # The callable of a framework's application may be a method of it.
        app = getattr(app, "__self__", app)
        if app is None or id(app) in seen or isinstance(app, ours):
            return
        seen.add(id(app))
        yield type(app)
        listed = [each for each in _listed(app) if isinstance(each, type)]
        if any(issubclass(each, ours) for each in listed):
            return
        yield from listed
        functions = getattr(app, "after_request_funcs", None)
        if isinstance(functions, dict):
            yield from map(layer_of, chain.from_iterable(functions.values()))
        routes = getattr(app, "routes", None)
        if isinstance(routes, list | tuple):
            beneath = [getattr(route, "app", None) for route in routes]
            yield from chain.from_iterable(layers_inside(each, ours, depth - 1) for each in beneath)
            return
        app = next((inner for inner in (getattr(app, name, None) for name in _WRAPPED) if inner is not None), None)


def warn_of_stack(app: Any, ours: type, policy: IdempotencyPolicy) -> None:
    """Warn about the layers below a middleware of a Litestar route, once in each process for each kind.

    Litestar creates the middleware again for each route, and its lifespan does not pass through any of them.
    """
    if not type(app).__module__.startswith("litestar.") or _is_litestar(app):
        return
    layers = [layer for layer in layers_inside(app, ours) if (kind_of(layer), layer) not in _warned]
    _warned.update((kind_of(layer), layer) for layer in layers)
    warn_of_layers(layers, policy)


_warned: set[tuple[str | None, type]] = set()


def _listed(app: Any) -> list[Any]:
    """The middleware that an application was given. It may not be built yet, or be built for each route."""
    if _is_litestar(app):
        compression = getattr(getattr(app, "compression_config", None), "middleware_class", None)
        return [compression, LitestarCORS if getattr(app, "cors_config", None) is not None else None]
    given = getattr(app, "user_middleware", None)
    return [getattr(each, "cls", None) for each in given] if isinstance(given, list) else []


def _is_litestar(app: Any) -> bool:
    return any(base.__module__ == "litestar.app" for base in type(app).__mro__)


class LitestarCORS:
    """Stands for the ``cors_config`` of Litestar, whose layer is outside of its routes."""


class FlaskCORS:
    """Stands for Flask-CORS, whose layer is a function."""


class QuartCORS:
    """Stands for Quart-CORS, whose layer is a partial of a function."""


def layer_of(function: Any) -> type:
    """The extension's class of an ``after_request`` function of Flask or Quart, or the function's own class."""
    while isinstance(function, functools.partial):
        function = function.func
    owner: Any = getattr(function, "__self__", None)
    if owner is not None:
        return type(owner)
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    extensions: dict[str, type] = {"flask_cors": FlaskCORS, "quart_cors": QuartCORS}
    return extensions.get(package, type(function))
