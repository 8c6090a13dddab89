"""Wrappers around the code of Starlette and FastAPI that calls endpoints: they make the claim of a request (O-18).

This is the only module that knows how the two libraries call endpoints. It wraps the following functions. The wrappers
do nothing for requests that make no claim.

- ``handle`` of routes, mounts and hosts, and of classes derived from them. A Starlette endpoint is called inside it. A
mount leads to routes, or to an application that cannot be inspected and is called as a whole.

- ``fastapi.routing.solve_dependencies``, after which FastAPI calls the endpoint, once its parameters are valid. Its
result has the value of ``user=``.

- ``fastapi.routing.run_endpoint_function``, which returns the stand-in if the endpoint must not run. It is not called
for endpoints that are generators, so ``Dependant.call`` is wrapped when the first of them is replayed.

If a release of FastAPI lacks these functions, its endpoints are claimed in ``handle`` as well, before their
dependencies, and one warning is logged.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache, wraps
from types import CodeType, ModuleType
from typing import Any, Protocol

import starlette.authentication
import starlette.routing
from starlette.endpoints import HTTPEndpoint
from starlette.requests import HTTPConnection
from starlette.responses import Response

from open_idempotency import rules as route_rules
from open_idempotency._asgi import MARK, PENDING, Receive, Scope, Send
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._routes.coverage import Route
from open_idempotency._starlette.pending import STAND_IN, PendingExchange
from open_idempotency._starlette.survey import (
    FRAMEWORKS,
    Covering,
    Endpoint,
    Layers,
    all_rules,
    dependant_rules,
    endpoint_rules,
    endpoints_beneath,
    layers_beneath,
    see_layers,
)
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import Rule, changes, combine, deciding, registry

_logger = logging.getLogger("open_idempotency")
_FASTAPI = "fastapi.routing"
_SOLVE, _RUN, _HANDLER = "solve_dependencies", "run_endpoint_function", "get_request_handler"
_OWN = "_open_idempotency_claims"

# The request whose endpoint must not run, from the claim until FastAPI would call the endpoint.
_refused: ContextVar[PendingExchange | None] = ContextVar("open_idempotency_refused", default=None)
# Whether FastAPI's endpoints are claimed after their dependencies; None while FastAPI is not imported.
_behind_dependencies: bool | None = None
_known_kinds: set[type] = set()


def hook() -> bool:
    """Install the wrappers, once. False if FastAPI's endpoints are claimed before their dependencies."""
    global _behind_dependencies
    if _behind_dependencies is None and _FASTAPI in sys.modules:
        _behind_dependencies = _hook_fastapi(sys.modules[_FASTAPI])
        _hook_kind(sys.modules[_FASTAPI].APIRoute)
        if not _behind_dependencies:
            _logger.warning(
                "this release of FastAPI is not known: claims are made before dependencies run, so an expired token "
                "may be sent a stored response, and rules given to include_router may be missed; install an older one"
            )
    return _behind_dependencies is not False


def look_at(app: Any) -> None:
    """Wrap the parts of an application or a router that are not wrapped yet.

    These are the default application of the router, and routes of other classes.
    """
    router = getattr(app, "router", app)
    default = getattr(router, "default", None)
    if default is not None and not isinstance(default, _Default):
        if getattr(default, "__func__", None) is not starlette.routing.Router.not_found:
            router.default = _Default(default)
    for route in getattr(router, "routes", ()):
        if type(route) not in _known_kinds:
            _hook_kind(type(route))
        included = getattr(route, "original_router", None)
        if included is not None:
            look_at(included)


class _Default:
    """Wraps the application that a router calls if no route matches."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        pending = scope.get(PENDING)
        if pending is None:
            awaitable: Awaitable[None] = self.app(scope, receive, send)
            return awaitable
        return claim_and_call(pending, self.app, (), scope, receive, send)


# Starlette


def _hook_kind(kind: type) -> None:
    """Wrap ``handle`` of a class of routes, where it is defined."""
    _known_kinds.add(kind)
    for each in kind.__mro__:
        handle = vars(each).get("handle")
        if handle is not None:
            if not hasattr(handle, _OWN) and not _is_fastapis(each):
                each.handle = _claiming(handle)  # type: ignore[attr-defined]  # the class has one
            return


def _is_fastapis(kind: type) -> bool:
    """Whether a class is FastAPI's own, so that it calls code that is wrapped already."""
    return kind.__module__.partition(".")[0] == "fastapi" and kind.__name__ != "APIRoute"


def _claiming(handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(handle)
    def handle_and_claim(self: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        pending = scope.get(PENDING)
        if pending is None or scope["type"] != "http":
            if route_rules.registry.in_use and scope["type"] == "http" and scope["method"] not in NEVER_COVERED:
                if is_unseen(scope) and not _is_left_to_fastapi(self):
                    look_at_route(self, scope)
            return handle(self, scope, receive, send)
        return _handle(handle, pending, self, scope, receive, send)

    setattr(handle_and_claim, _OWN, True)
    return handle_and_claim


async def _handle(
    handle: Callable[..., Awaitable[None]],
    pending: PendingExchange,
    route: Any,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await handle(route, scope, receive, send)

    endpoint, method = getattr(route, "endpoint", None), scope["method"].upper()
    pending.pass_route(route, _template(route, scope))
    beneath = see_layers(getattr(route, "app", None))
    if endpoint is None:
        rules = tuple(endpoint_rules(beneath.app, method))
        if beneath.routes is not None:
            pending.add_rules(rules)
            look_at(beneath.app)
            await call(scope, receive, send)
            return
    else:
        rules = tuple(all_rules(route, method))
    if _is_left_to_fastapi(route):
        refusal = None
        if scope["method"] in route.methods and (declared := _declared(route, scope)) is not None:
            refusal = pending.look_ahead(scope, all_rules(declared, method))
        await (call if refusal is None else _response_of(refusal))(scope, receive, send)
    elif beneath.inner or _refuses(route, handle, endpoint, scope):
        await call(scope, receive, send)
    else:
        await claim_and_call(pending, call, rules, scope, receive, send)


async def claim_and_call(
    pending: PendingExchange, app: Any, rules: tuple[Any, ...], scope: Scope, receive: Receive, send: Send
) -> None:
    """Make the claim. Then call the application, or send the response that replaces its own."""
    instead = await pending.claim(scope, rules)
    await (app if instead is None else _response_of(instead))(scope, receive, send)


def _is_left_to_fastapi(route: Any) -> bool:
    return getattr(route, "dependant", None) is not None and _behind_dependencies is True


def _declared(route: Any, scope: Scope) -> Any:
    """The route with its dependencies as they are after ``include_router``; None if they are unknown.

    Recent FastAPI includes routers without copying their routes, and puts the effective route into the scope.
    """
    module: Any = sys.modules[_FASTAPI]
    effective = getattr(module, "_get_scope_effective_route_context", None)
    if effective is None:
        return None if hasattr(module, "_IncludedRouter") else route
    return effective(scope) or route


def _template(route: Any, scope: Scope) -> str:
    """The path of a route or a mount as declared; in recent FastAPI with the prefix of its router."""
    effective = getattr(sys.modules.get(_FASTAPI), "_get_scope_effective_route_context", None)
    context = None if effective is None else effective(scope)
    declared = context if context is not None and getattr(context, "original_route", None) is route else route
    return getattr(declared, "path", None) or ""


def _refuses(route: Any, handle: Any, endpoint: Any, scope: Scope) -> bool:
    """Whether Starlette refuses the request itself, so that no endpoint runs."""
    if getattr(route, "methods", None) and scope["method"] not in route.methods:
        return handle.__module__.partition(".")[0] in FRAMEWORKS  # a class of the application may accept it
    if isinstance(endpoint, type) and issubclass(endpoint, HTTPEndpoint):
        handler = getattr(endpoint, scope["method"].lower(), None)
        if endpoint.dispatch is HTTPEndpoint.dispatch:
            return handler is None or is_forbidden(handler, scope)
        return False
    return is_forbidden(endpoint, scope)


def is_forbidden(endpoint: Any, scope: Scope) -> bool:
    """Whether a ``@requires`` of Starlette around an endpoint refuses the present user of the request.

    It is checked before the claim, so a user who has lost a permission gets the decorator's refusal instead of a
    replay.
    """
    if "auth" not in scope:
        return False  # @requires itself reports what is missing
    connection = HTTPConnection(scope)
    return any(not starlette.authentication.has_required_scope(connection, each) for each in _required(endpoint))


def _required(endpoint: Any) -> Iterator[list[str]]:
    """The scopes that each ``@requires`` around a function requires."""
    while endpoint is not None:
        function = getattr(endpoint, "__func__", endpoint)
        code = getattr(function, "__code__", None)
        if code is not None and function.__globals__ is vars(starlette.authentication):
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
            if "scopes_list" in cells:
                yield cells["scopes_list"].cell_contents
        endpoint = getattr(function, "func", None) or getattr(function, "__wrapped__", None)


def _response_of(instead: CoreResponse) -> Response:
    """A stand-in response: layers around the endpoint see the stored response, and the middleware sees the mark."""
    response = Response(instead.body or b"", instead.status)
    response.raw_headers = [*((name.lower(), value) for name, value in instead.headers), STAND_IN]
    return response


# FastAPI


def _hook_fastapi(module: ModuleType) -> bool:
    solve, run = getattr(module, _SOLVE, None), getattr(module, _RUN, None)
    handler = getattr(getattr(module, _HANDLER, None), "__code__", None)
    if solve is None or run is None or handler is None:
        return False
    names = set(_names_in(handler))
    if not {_SOLVE, _RUN} <= names or not {"request", "dependant"} <= set(inspect.signature(solve).parameters):
        return False
    # If its results have another form, they cannot be read. Then nothing is wrapped, and ``hook`` warns.
    if not _returns_what_is_known():
        return False
    setattr(module, _SOLVE, _solving(solve))
    setattr(module, _RUN, _running(run))
    return True


def _names_in(code: CodeType) -> Iterator[str]:
    """The global names and attributes that a function and its inner functions use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _returns_what_is_known() -> bool:
    """Whether ``solve_dependencies`` returns its results in one of the two known forms."""
    kind: Any = getattr(sys.modules.get("fastapi.dependencies.utils"), "SolvedDependency", None)
    return kind is None or {"errors", "dependency_cache", "response"} <= set(getattr(kind, "__annotations__", ()))


def _solving(solve: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(solve)
    def solve_and_claim(*, request: Any, dependant: Any, **rest: Any) -> Awaitable[Any]:
        solving = solve(request=request, dependant=dependant, **rest)
        pending = request.scope.get(PENDING)
        if pending is not None:
            return _claim_behind(solving, pending, request, dependant)
        if (
            route_rules.registry.in_use
            and request.scope.get("method", "GET") not in NEVER_COVERED
            and is_unseen(request.scope)
        ):
            return _look(solving, request, dependant)
        return solving

    return solve_and_claim


async def _look(solving: Awaitable[Any], request: Any, dependant: Any) -> Any:
    """Refuse a request that no middleware of this library has seen, if the endpoint's rules ask for protection."""
    solved = await solving
    look_at_endpoint(_rules_of(dependant, request.scope), request.scope)
    return solved


def _rules_of(dependant: Any, scope: Scope) -> tuple[Rule, ...]:
    return (*dependant_rules(dependant), *endpoint_rules(scope.get("endpoint"), scope["method"]))


async def _claim_behind(solving: Awaitable[Any], pending: PendingExchange, request: Any, dependant: Any) -> Any:
    """Solve the dependencies; then make the claim, if the request was valid."""
    solved = await solving
    if isinstance(solved, tuple):  # before FastAPI 0.112.3
        _, errors, _, response, found = solved
    else:
        errors, response, found = solved.errors, solved.response, solved.dependency_cache
    scope = request.scope
    if errors or is_forbidden(dependant.call, scope):
        return solved
    rules = _rules_of(dependant, scope)
    instead = await pending.claim(scope, rules, found)
    if instead is None:
        return solved
    pending.stand_in = _response_of(instead)
    # FastAPI calls the endpoint in this same context, but passes on no argument of this library.
    _refused.set(pending)
    # The response of a generator is made by FastAPI, with these headers. The response of a function is the stand-in.
    response.headers.raw.append(STAND_IN)
    if not inspect.iscoroutinefunction(dependant.call) and not hasattr(dependant.call, _OWN):
        dependant.call = _stoppable(dependant.call)
    return solved


def _running(run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(run)
    def run_or_replay(**arguments: Any) -> Awaitable[Any]:
        instead = _take_stand_in()
        return run(**arguments) if instead is None else _give(instead)

    return run_or_replay


def _take_stand_in() -> Response | None:
    """The stand-in for the endpoint's response, once; None if the endpoint must be called."""
    pending = _refused.get()
    if pending is None:
        return None
    _refused.set(None)
    instead: Response | None = pending.stand_in  # none is left when its request has ended
    pending.stand_in = None
    return instead


async def _give(instead: Response) -> Response:
    return instead


def _stoppable(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an endpoint whose result FastAPI iterates over: it yields nothing if the endpoint must not run."""
    asynchronous = _is_async_generator(call)

    @wraps(call)
    def call_or_stop(*args: Any, **values: Any) -> Any:
        if _take_stand_in() is None:
            return call(*args, **values)
        return _nothing_async() if asynchronous else iter(())

    setattr(call_or_stop, _OWN, True)
    return call_or_stop


def _is_async_generator(call: Any) -> bool:
    function = inspect.unwrap(getattr(call, "func", call))
    return inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(type(function).__call__)


async def _nothing_async() -> AsyncIterator[Any]:
    return
    yield


for _kind in (starlette.routing.Route, starlette.routing.Mount, starlette.routing.Host):
    if "handle" not in vars(_kind):
        raise ConfigurationError(
            f"this release of Starlette is not known: {_kind.__name__} has no handle(); install an older release"
        )
    _hook_kind(_kind)
hook()


# Routes with rules that no middleware of this library reads: a request that they should protect is an error (O-25).
# The check is made when an endpoint is called, for requests that no ``IdempotencyMiddleware`` has seen. A request that
# one has seen has ``PENDING`` in its scope. Rules inside the middleware for plain ASGI are found at start.

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
        _look_at(route, tuple(all_rules(route, method)), scope, hidden=not _shows_all(beneath, route))


def look_at_endpoint(rules: tuple[Rule, ...], scope: Scope) -> None:
    """Refuse an unseen request if these rules of a FastAPI endpoint ask for protection: ``ConfigurationError``."""
    _look_at(scope.get("route"), rules, scope, hidden=False)


def _look_at(route: Any, rules: tuple[Rule, ...], scope: Scope, *, hidden: bool) -> None:
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
