"""Idempotency keys for Starlette: the ASGI middleware, which also knows Starlette's users and routes.

``app.add_middleware(IdempotencyMiddleware, backend="sqlite:///idempotency.db", lease=30)``. Its position among other
middleware does not change who the caller is, since the claim is made when the endpoint is called.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from open_idempotency import asgi
from open_idempotency._asgi import PENDING
from open_idempotency._core.keys import find_key
from open_idempotency._core.models import Identity
from open_idempotency._routes.coverage import Route, key_among
from open_idempotency.asgi import MARK, App, Receive, Scope, Send
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError, MissingExtra, ScopeUnknown
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import IdempotencyRule, PolicyFields, Rule, RulesByPath, exempt, exempts, idempotent

if TYPE_CHECKING:
    from typing_extensions import Unpack


try:
    import starlette
except ModuleNotFoundError as error:
    if error.name != "starlette":
        raise
    raise MissingExtra(
        "open_idempotency.starlette needs the starlette package: pip install 'open-idempotency[starlette]'"
    ) from error

from starlette.authentication import SimpleUser

from open_idempotency._starlette import at_call
from open_idempotency._starlette.pending import PendingExchange, SessionTrace
from open_idempotency._starlette.survey import (
    CoveredEndpoints,
    Layers,
    authentication_beneath,
    dependency_rules,
    depends_on,
    endpoint_rules,
    layers_beneath,
    look_over,
)

__all__ = ["IdempotencyMiddleware", "IdempotencyRule", "exempt", "idempotent"]

# Imported only to check that the package is installed.
del starlette

_logger = logging.getLogger("open_idempotency")
#: how many routes without a claim are reported
_UNCLAIMED = 100
# Attributes that may hold the identity in the result of a user= dependency; never a display name.
_IDENTITIES = ("identity", "id", "sub")


class IdempotencyMiddleware(asgi.IdempotencyMiddleware):
    """Protects the requests of a Starlette or FastAPI application that carry an ``Idempotency-Key``.

    Takes what ``open_idempotency.asgi.IdempotencyMiddleware`` takes, and ``user``: the FastAPI dependency that finds
    the caller, such as ``current_user``. Its value is the identity: a string, an integer or a UUID, or an object or
    mapping that has one as ``identity``, ``id`` or ``sub``. The caller of an endpoint that does not depend on it is the
    same as without ``user=``: ``request.user`` if an ``AuthenticationMiddleware`` has verified one (its ``identity``;
    for Starlette's ``SimpleUser`` its ``username``), else the user whom the session of a ``SessionMiddleware`` names by
    an entry of ``session_identity``, else the credentials in the headers.

    The claim is made when the endpoint is called: after routing, authentication and dependencies (O-18). An
    application that cannot be inspected is called as an endpoint. A user without an identity raises ``ScopeUnknown``,
    which is a 500. Raises ``ConfigurationError`` at once for a ``user`` that is not callable, or beside ``scope=``.

    The endpoint's ``@idempotent(...)`` and ``@exempt`` apply in every position of the middleware: around the
    application, a mount, a router or one route. If several are around one endpoint, the innermost protects it. Since
    0.1.
    """

    _asks_routes = True
    _looked = False
    _warned = False

    def __init__(
        self,
        app: App,
        backend: Given | None = None,
        *,
        user: Callable[..., Any] | None = None,
        policy: IdempotencyPolicy | None = None,
        rules: RulesByPath | None = None,
        **fields: Unpack[PolicyFields],
    ) -> None:
        super().__init__(app, backend, policy=policy, rules=rules, **fields)
        self.covering = CoveredEndpoints(self.coverages, self._paths, self.app)
        self._user = user
        self._unclaimed: set[str] = set()
        # the error about user=, or about rules without an effect, if the start shows one
        self._wrong: str | None = None
        if user is None:
            return
        if not callable(user):
            raise ConfigurationError(f"user: expected the dependency that finds the caller, got {user!r}")
        if self.engine.policy.scope is not None:
            raise ConfigurationError("user: scope= names the caller already; leave one of them out")

    def treat(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Let the claim be made when the endpoint is called, or make it here if no endpoint can be seen."""
        outer: PendingExchange | None = scope.pop(PENDING, None)
        if not self._looked:
            self._look_late(scope)
        self._refuse_wrong()
        layers = layers_beneath(self.app, scope)
        behind = at_call.hook()
        # A middleware of one route is below the point at which Starlette's routes make the claim.
        hidden = layers.routes is None and not layers.inner
        if hidden and not (behind and getattr(scope.get("route"), "dependant", None) is not None):
            if self._user is not None:
                self._wrong = f"user: no FastAPI routes can be seen below, so {_name(self._user)} cannot be called"
                self._refuse_wrong()
            if outer is None:
                return super().treat(scope, receive, send)
            return self._treat_within(outer, scope, receive, send)
        at_call.look_at(layers.app)
        names = self._candidates()
        found = find_key(scope["headers"], names | self._likely)
        # key= is known together with the route. Until then any request may have a key.
        makes_keys = self.engine.rules.makes_keys or self.engine.policy.key is not None
        keyed = makes_keys or (bool(found) and any(name in names for name, _ in found))
        if found and not keyed and not self._marked_only and scope["method"].upper() in self.engine.policy.methods:
            key_among(found, self.coverages.default)  # before its route is known, it counts as covered
        return PendingExchange(self, self.rules_of_path(scope), keyed, scope, receive, send, outer).run()

    async def _treat_within(self, outer: PendingExchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the claim here, or let the outer middleware make it if this one does not cover the request."""
        rules = self._rules_here(scope)
        coverage = self.coverages.by((*self.rules_of_path(scope), *rules))
        mine = coverage is not None and scope["method"].upper() in coverage.policy.methods
        if coverage is not None and outer.may_have_key(rules) and not coverage.always:
            mine = mine and bool(find_key(scope["headers"], coverage.names))
        if mine or exempts((*self.rules_of_path(scope), *rules)):
            outer.withdraw()
            await self.cover(coverage, scope, receive, send)
            return

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            await (self.app if MARK in scope else partial(self.cover, coverage))(scope, receive, send)

        await at_call.claim_and_call(outer, call, rules, scope, receive, send)

    def _candidates(self) -> frozenset[bytes]:
        """The headers that may carry a key under some rule."""
        named = self.engine.rules.headers
        return self._names.union(name.lower().encode("ascii") for name in named) if named else self._names

    def coverage_of(self, scope: Scope) -> Route | None:
        """The coverage by path and by the route around this middleware; None if one of them is exempt."""
        return self.coverages.by((*self.rules_of_path(scope), *self._rules_here(scope)))

    def _rules_here(self, scope: Scope) -> tuple[Rule, ...]:
        """The rules of the route around this middleware."""
        return (*dependency_rules(scope.get("route")), *endpoint_rules(scope.get("endpoint"), scope["method"]))

    def check_start(self, scope: Scope) -> None:
        """Check the application when a server starts it.

        Warns about layers inside that belong outside, dependencies that end after the response, and marks that no route
        leads to.

        Raises ``ConfigurationError`` that names the routes whose rules contradict the policy, or have no effect.
        """
        self._looked = True
        super().check_start(scope)
        layers = layers_beneath(self.app, scope)
        if self.engine.policy.scope is None and self._user is None:
            name = authentication_beneath(layers)
            if name is not None:
                self._warn(name)
        found = look_over(layers, self)
        if self._user is not None:
            self._check_user(self._user, [depends_on(route, self._user) for route in found.covered], layers)
        self._wrong = found.effects.complaint()
        if self._marked_only and layers.routes is not None and not found.covered and not self.off:
            _logger.warning('cover="marked" covers nothing: no route is marked, and no rule by path fits one')
        for said in (*found.late(), *found.effects.lost()):
            _logger.warning("%s", said)
        if found.contradictions or self._wrong is not None:
            raise ConfigurationError("; ".join((*found.contradictions, *([self._wrong] if self._wrong else ()))))

    def _check_user(self, user: Callable[..., Any], depending: list[bool], layers: Layers) -> None:
        """Raise ``ConfigurationError``, now and for each request, if the ``user=`` dependency can never be called."""
        if not at_call.hook():
            self._wrong = "user: this release of FastAPI is not known; install an older one, or use scope= instead"
        elif layers.routes is not None and depending and not any(depending):
            self._wrong = (
                f"user: no covered route depends on {_name(user)}; name the function that is given to Depends() itself"
            )
        self._refuse_wrong()

    def _refuse_wrong(self) -> None:
        if self._wrong is not None:
            raise ConfigurationError(self._wrong)

    def _look_late(self, scope: Scope) -> None:
        """Check the application at the first request, if no lifespan ran. Errors are logged: other routes may work."""
        try:
            self.check_start(scope)
        except ConfigurationError as error:
            _logger.error("these routes will respond with 500: %s", error)

    def _warn(self, authenticating: str) -> None:
        self._warned = True
        _logger.warning(
            "IdempotencyMiddleware claims before authentication (%s) runs, so it cannot distinguish users: %s is "
            "inside a route, or inside an application that cannot be inspected. Put it around them, or give them an "
            "IdempotencyMiddleware of their own inside it",
            authenticating,
            authenticating,
        )

    def identify(self, scope: Scope) -> Identity | str | None:
        """The verified user of ``scope["user"]``, or the session, which may name a user. Raises ``ScopeUnknown``."""
        user = scope.get("user")
        if user is None or not getattr(user, "is_authenticated", True):
            return super().identify(scope)
        # Never its display name, which two people may share.
        for name in ("identity", "username") if isinstance(user, SimpleUser) else ("identity",):
            value = _read(user, name)
            if value is not None:
                return _text(value, user, name)
        raise ScopeUnknown(
            f"{type(user).__name__} is authenticated and has no identity; give the class an identity property, or pass "
            "scope= to the middleware"
        )

    def session_of(self, scope: Scope) -> SessionTrace | None:
        """The session that an outer ``SessionMiddleware`` has opened."""
        session = scope.get("session")
        if session is None:
            return None
        return SessionTrace(session)

    def session_within(self, scope: Scope) -> SessionTrace | None:
        """The session that a ``SessionMiddleware`` inside has opened, as the endpoint sees it."""
        session = scope.get("session")
        return None if session is None else SessionTrace(session, sent=True)

    def user_among(self, solved: Mapping[Any, Any]) -> str | None:
        """The identity that the ``user=`` dependency has returned. ``solved``: FastAPI's results by callable.

        None if the endpoint does not depend on it. Raises ``ScopeUnknown`` if the result names no identity.
        """
        if self._user is None:
            return None
        found = {_identity(value, self._user) for key, value in solved.items() if key[0] == self._user}
        if len(found) > 1:
            raise ScopeUnknown(f"user: {_name(self._user)} found several users for one request")
        return found.pop() if found else None

    async def call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application after the claim. Warn once if a user is authenticated only inside it."""
        unknown = scope.get("user") is None
        try:
            await self.app(scope, receive, send)
        finally:
            if unknown and MARK in scope:
                self.look_back(scope, scope[MARK].policy)

    def look_back(self, scope: Scope, policy: IdempotencyPolicy) -> None:
        """Warn if the scope has a user now who was not known at the claim."""
        if not self._warned and policy.scope is None and scope.get("user") is not None:
            self._warn("AuthenticationMiddleware")

    def report_unclaimed(self, scope: Scope, status: int) -> None:
        """Warn, once for each route, that a request with a key, or that needs one, succeeded without a claim."""
        route = scope.get("route")
        route_name = str(getattr(route, "path_format", None) or getattr(route, "path", None) or "(no route)")
        if route_name in self._unclaimed or len(self._unclaimed) >= _UNCLAIMED:
            return
        self._unclaimed.add(route_name)
        _logger.warning(
            "%s %s responded with %d without a claim, so a retry runs again: the response comes from a middleware "
            "inside, or from a route class that does not call its endpoint as Starlette or FastAPI does. Put "
            "IdempotencyMiddleware around that part alone, or let it call the endpoint",
            scope["method"],
            route_name,
            status,
        )


def _identity(value: Any, user: Callable[..., Any]) -> str:
    """The identity in the result of a ``user=`` dependency."""
    if isinstance(value, str | int | UUID):
        return _text(value, user, "value")
    read = value.get if isinstance(value, Mapping) else partial(_read, value)
    for name in _IDENTITIES:
        found = read(name)
        if found is None:
            continue
        text, issuer = _text(found, value, name), read("iss")
        # A subject is unique for one issuer only (RFC 7519, section 4.1.2).
        return json.dumps([text, issuer]) if name == "sub" and isinstance(issuer, str) else text
    raise ScopeUnknown(
        f"user: {_name(user)} returned {type(value).__name__}, which names no user; let it return a string, an integer "
        "or a UUID, or an object or mapping with one as identity, id or sub, and raise HTTPException(401) where there "
        "is no user"
    )


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _read(user: object, name: str) -> Any:
    try:
        return getattr(user, name, None)
    except NotImplementedError:  # a BaseUser of Starlette without this property
        return None


def _text(value: object, user: object, name: str) -> str:
    """An identity as text. Only types whose text is the same in every process are allowed."""
    if isinstance(value, bool) or not isinstance(value, str | int | UUID) or not str(value):
        raise ScopeUnknown(f"{type(user).__name__}.{name} is empty, or neither a string, an integer nor a UUID")
    return str(value)
