"""Where the endpoints of Starlette and FastAPI are called: the claim of a request is made there (O-18).

This is the one module that knows how the two libraries call endpoints. It puts wrappers in these places, which do
nothing for requests that have no claim to make:

- ``handle`` of routes, mounts and hosts, and of the classes that somebody derives from them. A Starlette endpoint is
  called behind it. A mount leads on to routes, or is an application that cannot be seen into and called as a whole.
- ``fastapi.routing.solve_dependencies``, behind which FastAPI calls the endpoint, once its parameters are valid. It
  returns what ``user=`` has found.
- ``fastapi.routing.run_endpoint_function``, which returns the stand-in where the endpoint is not to run. Endpoints that
  are generators do not pass there, so ``Dependant.call`` is wrapped when the first of them is replayed.

Where FastAPI has another shape, its endpoints are claimed in ``handle`` as well, before their dependencies, and one
warning is logged.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from types import CodeType, ModuleType
from typing import Any

import starlette.authentication
import starlette.routing
from starlette.endpoints import HTTPEndpoint
from starlette.requests import HTTPConnection
from starlette.responses import Response

from open_idempotency._asgi.exchange import PENDING, Receive, Scope, Send
from open_idempotency._core.requests import Response as CoreResponse
from open_idempotency._starlette.pending import STAND_IN, PendingExchange
from open_idempotency._starlette.routes import all_rules, dependant_rules, endpoint_rules, see_layers
from open_idempotency.exceptions import ConfigurationError

_logger = logging.getLogger("open_idempotency")
_FASTAPI = "fastapi.routing"
_SOLVE, _RUN, _HANDLER = "solve_dependencies", "run_endpoint_function", "get_request_handler"
_FRAMEWORKS = ("starlette", "fastapi")
_OWN = "_open_idempotency_claims"

# The request whose endpoint is not to run, between the claim and the place where FastAPI would call the endpoint.
_refused: ContextVar[PendingExchange | None] = ContextVar("open_idempotency_refused", default=None)
# Whether FastAPI's endpoints are claimed behind their dependencies; None while it is not imported.
_behind_dependencies: bool | None = None
_known_kinds: set[type] = set()


def hook() -> bool:
    """Put the wrappers in place, once. False if FastAPI's endpoints are claimed before their dependencies."""
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
    """See to it that what an application or a router leads to asks for its claim.

    That is the router's default, and routes of somebody's own kind.
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
    """What a router calls where no route fits, if that is an application of somebody's own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        pending = scope.get(PENDING)
        if pending is None:
            awaitable: Awaitable[None] = self.app(scope, receive, send)
            return awaitable
        return _claim_and_call(pending, self.app, (), scope, receive, send)


# Starlette


def _hook_kind(kind: type) -> None:
    """Wrap ``handle`` of a class of routes, where it is defined."""
    _known_kinds.add(kind)
    for each in kind.__mro__:
        handle = vars(each).get("handle")
        if handle is not None:
            if not hasattr(handle, _OWN) and not _is_fastapis(each):
                each.handle = _claiming(handle)  # type: ignore[attr-defined]
            return


def _is_fastapis(kind: type) -> bool:
    """Whether FastAPI's own class leads on to what asks for the claim."""
    return kind.__module__.partition(".")[0] == "fastapi" and kind.__name__ != "APIRoute"


def _claiming(handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(handle)
    def handle_and_claim(self: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        pending = scope.get(PENDING)
        if pending is None or scope["type"] != "http":
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
        await _claim_and_call(pending, call, rules, scope, receive, send)


async def _claim_and_call(
    pending: PendingExchange, app: Any, rules: tuple[Any, ...], scope: Scope, receive: Receive, send: Send
) -> None:
    instead = await pending.claim(scope, rules)
    await (app if instead is None else _response_of(instead))(scope, receive, send)


def _is_left_to_fastapi(route: Any) -> bool:
    return getattr(route, "dependant", None) is not None and _behind_dependencies is True


def _declared(route: Any, scope: Scope) -> Any:
    """What has the dependencies of a FastAPI route as they are where its router was included; None if unknown.

    Since FastAPI includes routers without copying their routes, that is in the scope.
    """
    module: Any = sys.modules[_FASTAPI]
    effective = getattr(module, "_get_scope_effective_route_context", None)
    if effective is None:
        return None if hasattr(module, "_IncludedRouter") else route
    return effective(scope) or route


def _refuses(route: Any, handle: Any, endpoint: Any, scope: Scope) -> bool:
    """Whether Starlette itself will refuse the request, so that no endpoint runs."""
    if getattr(route, "methods", None) and scope["method"] not in route.methods:
        return handle.__module__.partition(".")[0] in _FRAMEWORKS  # somebody's own class may take it
    if isinstance(endpoint, type) and issubclass(endpoint, HTTPEndpoint):
        handler = getattr(endpoint, scope["method"].lower(), None)
        if endpoint.dispatch is HTTPEndpoint.dispatch:
            return handler is None or is_forbidden(handler, scope)
        return False
    return is_forbidden(endpoint, scope)


def is_forbidden(endpoint: Any, scope: Scope) -> bool:
    """Whether ``@requires`` of Starlette, somewhere around an endpoint, refuses the user that the request has now.

    It is asked before the claim: who may no longer do it gets no replay, but the refusal of the decorator itself.
    """
    if "auth" not in scope:
        return False  # requires itself says what is missing
    connection = HTTPConnection(scope)
    return any(not starlette.authentication.has_required_scope(connection, each) for each in _required(endpoint))


def _required(endpoint: Any) -> Iterator[list[str]]:
    """The scopes that each ``@requires`` around a function asks for."""
    while endpoint is not None:
        function = getattr(endpoint, "__func__", endpoint)
        code = getattr(function, "__code__", None)
        if code is not None and function.__globals__ is vars(starlette.authentication):
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
            if "scopes_list" in cells:
                yield cells["scopes_list"].cell_contents
        endpoint = getattr(function, "func", None) or getattr(function, "__wrapped__", None)


def _response_of(instead: CoreResponse) -> Response:
    """A stand-in: what stands around the endpoint sees the stored response, and the middleware its mark."""
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
    if not _returns_what_is_known():
        return False
    setattr(module, _SOLVE, _solving(solve))
    setattr(module, _RUN, _running(run))
    return True


def _names_in(code: CodeType) -> Iterator[str]:
    """The global names and attributes that a function and those within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _returns_what_is_known() -> bool:
    """Whether ``solve_dependencies`` returns its results in one of the two forms that are known."""
    kind: Any = getattr(sys.modules.get("fastapi.dependencies.utils"), "SolvedDependency", None)
    return kind is None or {"errors", "dependency_cache", "response"} <= set(getattr(kind, "__annotations__", ()))


def _solving(solve: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(solve)
    def solve_and_claim(*, request: Any, dependant: Any, **rest: Any) -> Awaitable[Any]:
        solving = solve(request=request, dependant=dependant, **rest)
        pending = request.scope.get(PENDING)
        return solving if pending is None else _claim_behind(solving, pending, request, dependant)

    return solve_and_claim


async def _claim_behind(solving: Awaitable[Any], pending: PendingExchange, request: Any, dependant: Any) -> Any:
    """Solve the dependencies; then, if nothing was wrong with the request, make the claim."""
    solved = await solving
    if isinstance(solved, tuple):  # before FastAPI 0.112.3
        _, errors, _, response, found = solved
    else:
        errors, response, found = solved.errors, solved.response, solved.dependency_cache
    scope = request.scope
    if errors or is_forbidden(dependant.call, scope):
        return solved
    rules = (*dependant_rules(dependant), *endpoint_rules(scope.get("endpoint"), scope["method"]))
    instead = await pending.claim(scope, rules, found)
    if instead is None:
        return solved
    pending.stand_in = _response_of(instead)
    _refused.set(pending)
    # A generator's response is made by FastAPI, with these headers. A function's is the stand-in itself.
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
    """What stands for the endpoint's response, once; None where the endpoint is to be called."""
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
    """An endpoint that FastAPI may call by itself, to iterate over its result: nothing, where it is not to run."""
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
