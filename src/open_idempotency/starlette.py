"""Idempotency keys for Starlette: the ASGI middleware, which also knows Starlette's users and routes.

``app.add_middleware(IdempotencyMiddleware, backend="sqlite:///idempotency.db", lease=30)``. Add it before
``AuthenticationMiddleware``: what is added last is outermost, and authentication belongs outside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any
from uuid import UUID

from open_idempotency import asgi
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.callers import follow, told
from open_idempotency._core.requests import Identity
from open_idempotency._perform.coverage import Coverage
from open_idempotency._perform.engine import new_owner
from open_idempotency.asgi import MARK, Message, Receive, Scope, Send
from open_idempotency.exceptions import ConfigurationError, MissingExtra, ScopeUnknown
from open_idempotency.rules import IdempotencyRule, exempt, idempotent

try:
    import starlette
except ModuleNotFoundError as error:
    if error.name != "starlette":
        raise
    raise MissingExtra(
        "open_idempotency.starlette needs the starlette package: pip install 'open-idempotency[starlette]'"
    ) from error

from starlette.authentication import SimpleUser

from open_idempotency._starlette.matching import NOTHING_SAID, Layers, find, see_layers
from open_idempotency._starlette.sessions import SessionTrace
from open_idempotency._starlette.survey import authentication_beneath, endpoints_beneath, late_dependencies

__all__ = ["IdempotencyMiddleware", "IdempotencyRule", "exempt", "idempotent"]

# The package is only looked for here; what is needed of it is routing's, and matching has that.
del starlette

_logger = logging.getLogger("open_idempotency")
# The responses of a router where no route fits. Here store= is not asked, as it cannot tell them from a view's own.
_ROUTERS_OWN = (307, 308, 404, 405)
#: how many routes a warning names
_NAMED_ROUTES = 5
_TRACE = "open_idempotency.session"


class IdempotencyMiddleware(asgi.IdempotencyMiddleware):
    """Protects the requests of a Starlette application that carry an ``Idempotency-Key``.

    Takes what ``open_idempotency.asgi.IdempotencyMiddleware`` takes. The caller is ``request.user`` where an outer
    ``AuthenticationMiddleware`` has verified one: its ``identity``; of Starlette's ``SimpleUser`` its ``username``. A
    user that is authenticated and has no identity raises ``ScopeUnknown``, which is a 500. Without a verified user it
    is the one whom the session of an outer ``SessionMiddleware`` names, by an entry of ``session_identity``.

    The endpoint's ``@idempotent(...)`` and ``@exempt`` count, wherever the middleware stands: around the application, a
    mount, a router or one route. Of several around one endpoint the innermost protects it. Since 0.1.
    """

    _asks_routes = True
    _looked = False
    _warned = False
    _layers: Layers | None = None

    @cached_property
    def _unsures(self) -> dict[int, Coverage]:
        """By the identity of a coverage, each of which lives as long as the middleware."""
        return {}

    def coverage_of(self, scope: Scope) -> Coverage | None:
        """As its route wants it; None where that is exempt, or another's matter."""
        layers = self._layers
        if layers is None:
            if not self._looked:
                self._look_late()
            layers = see_layers(self.app)
            if layers.plain:
                self._layers = layers
        else:
            layers = layers.again()
        found = find(layers, scope)
        if found is NOTHING_SAID and self._paths is None:
            return self.coverages.default
        if found.passing:
            return None
        coverage = self.coverages.by((*self.rules_of_path(scope), *found.rules))
        return self._unsure(coverage) if found.unsure and coverage is not None else coverage

    def _unsure(self, coverage: Coverage) -> Coverage:
        """Protect what a layer between may lead to an endpoint; but keep no answer by which a router says that none is
        there, as a redirect that took the key would make the redirected request a mismatch.
        """
        known = self._unsures.get(id(coverage))
        if known is None:
            store = coverage.policy.store
            kept = coverage.policy.replace(store=partial(_stored_if_routed, store))
            known = self._unsures[id(coverage)] = Coverage(kept, coverage.names)
        return known

    def check_start(self) -> None:
        """Warn if it is the application's inside that authenticates, and of dependencies that end after the response.

        Raises ``ConfigurationError`` that names the routes whose rules contradict the policy.
        """
        self._looked = True
        if self.engine.policy.scope is None:
            name = authentication_beneath(self.app)
            if name is not None:
                self._warn(name)
        wrong: list[str] = []
        late: dict[str, list[str]] = {}
        for endpoint in endpoints_beneath(self.app):
            place = f"{endpoint.method} {endpoint.path}"
            by_path = self.rules_of_path({"method": endpoint.method, "path": endpoint.path})
            try:
                coverage = self.coverages.by((*by_path, *endpoint.rules))
            except ConfigurationError as error:
                wrong.append(f"{place}: {error}")
                continue
            if coverage is not None and endpoint.method in coverage.policy.methods:
                for dependency in dict.fromkeys(late_dependencies(endpoint.route)):
                    late.setdefault(dependency, []).append(place)
        if wrong:
            raise ConfigurationError("; ".join(wrong))
        for dependency, places in late.items():
            _warn_of_late(dependency, places)

    def _look_late(self) -> None:
        """No server has said that it starts: the first request says what is wrong, and others may well be served."""
        try:
            self.check_start()
        except ConfigurationError as error:
            _logger.error("these routes will answer 500: %s", error)

    def _warn(self, authenticating: str) -> None:
        self._warned = True
        _logger.warning(
            "IdempotencyMiddleware runs outside authentication (%s), so it cannot tell users apart: call "
            "add_middleware(IdempotencyMiddleware, ...) before add_middleware(%s, ...), or list it after it in "
            "middleware=[...]",
            authenticating,
            authenticating,
        )

    def identify(self, scope: Scope) -> Identity | str | None:
        """The verified user of ``scope["user"]``, else the session, which may name one. Raises ``ScopeUnknown``."""
        user = scope.get("user")
        if user is None or not getattr(user, "is_authenticated", True):
            return super().identify(scope)
        # Never its display name: two people may have one.
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
        trace = scope[_TRACE] = SessionTrace(session)
        return trace

    def _following(self, scope: Scope, send: Send) -> Send:
        """Let a retry find the record although the view has changed the caller (O-14), before the session leaves."""
        trace: SessionTrace | None = scope.get(_TRACE)
        attempt: Attempt = scope[MARK]
        caller, lease, attempt.caller = attempt.caller, attempt.lease, None  # it has the scope, which has the attempt
        if trace is None or caller is None or lease is None:
            return send

        async def follow_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                change = told(lambda: trace.change(caller, lease.record_id))
                if change is not None:
                    await self.engine.aio.run(follow(attempt, caller, change, new_owner()))
            await send(message)

        return follow_and_send

    async def call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application; warn, if that was not seen at the start, where its inside has authenticated."""
        unknown = scope.get("user") is None
        try:
            await self.app(scope, receive, self._following(scope, send))
        finally:
            if unknown and not self._warned and scope.get("user") is not None and not scope[MARK].policy.scope:
                self._warn("AuthenticationMiddleware")


def _warn_of_late(dependency: str, places: list[str]) -> None:
    named = ", ".join(places[:_NAMED_ROUTES])
    if len(places) > _NAMED_ROUTES:
        named += f" and {len(places) - _NAMED_ROUTES} more"
    _logger.warning(
        "%s ends after the response of %s: the response is recorded first, so if a commit behind its yield fails, or "
        "the worker dies before it, a retry replays a success whose rows do not exist. If it commits, declare it with "
        'Depends(..., scope="function"), or commit in the endpoint, or use idem.atomic(session) or tx=session. If it '
        'only cleans up, scope="function" is right as well, and ends this warning',
        dependency,
        named,
    )


def _stored_if_routed(store: Callable[[int], bool | None] | None, status: int) -> bool | None:
    if status in _ROUTERS_OWN:
        return False
    return None if store is None else store(status)


def _read(user: object, name: str) -> Any:
    try:
        return getattr(user, name, None)
    except NotImplementedError:  # Starlette's BaseUser, where the application did not say
        return None


def _text(value: object, user: object, name: str) -> str:
    """An identity as text; only types whose text is the same in every process."""
    if isinstance(value, bool) or not isinstance(value, str | int | UUID) or not str(value):
        raise ScopeUnknown(f"{type(user).__name__}.{name} is empty, or neither a string, an integer nor a UUID")
    return str(value)
